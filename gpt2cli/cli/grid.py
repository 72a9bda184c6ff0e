"""`gpt2 grid`: a training command for each combination of values and each seed, and a table of them all.

Each run is a process of its own, one after another: its speed does not depend on the runs before it, and one
that diverges, or runs out of memory, ends alone.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli.options import JsonOption, OfflineOption, RecipeArgument
from gpt2cli.cli.signals import install
from gpt2cli.errors import DivergedError, ResourceError, UsageError
from gpt2cli.ui.console import is_terminal, out, print_json, say

if TYPE_CHECKING:
    from gpt2cli.training.grid import GridRun


def grid(
    recipe: RecipeArgument,
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Values to compare, with commas, such as optim.lr=3e-4,1e-3; or one value for all runs. A"
            " comma inside [ ], { } or quotes is a part of its value.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each combination.")] = 3,
    loss: Annotated[
        float | None,
        typer.Option(
            "--loss", help="Measure steps and time to this loss; by default one that all runs reach."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.md", help="Write the table as Markdown.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name or path of the grid; by default the recipe's name and -grid."),
    ] = None,
    as_json: JsonOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs, without training.")] = False,
    offline: OfflineOption = False,
) -> None:
    """Train every combination of values with several seeds, and compare them.

    Started again, the same command goes on where it was stopped.
    """
    from gpt2cli import files, locks, paths
    from gpt2cli.recipe.loader import load_recipe
    from gpt2cli.training.grid import plan_grid, record_grid

    chosen = name or f"{Path(recipe).stem}-grid"
    folder = paths.expand(chosen) if os.sep in chosen else paths.runs() / chosen
    if paths.is_run(folder):
        raise UsageError(
            f"{folder}: is a run", "a grid is a folder of runs", f"--name {Path(chosen).name}-grid"
        )
    given = list(values or [])
    runs = plan_grid(recipe, given, seeds, folder)
    if dry_run:
        from gpt2cli.ui.grid import plan_lines

        for line in plan_lines(runs):
            out().print(line)
        return
    task = load_recipe(recipe, runs[0].overrides).recipe.task
    if report is not None:  # before hours of training
        if report.is_dir():
            raise UsageError(f"--report {report}: is a folder", fix=f"--report {report / 'grid.md'}")
        files.require_writable(report.absolute().parent)
    files.require_writable(folder)
    with locks.lock(folder):
        record_grid(folder, runs)
        for number, run in enumerate(runs, 1):
            _wait_for_another(run.folder)
            say(f"run {number} of {len(runs)}: {run.folder} ({run.status})", "strong")
            if run.status in ("new", "unfinished"):
                _train(task, recipe, run, offline)
        _show(runs, folder, loss, report, as_json)


def _train(task: str, recipe: str, run: "GridRun", offline: bool) -> None:
    """Start the run, or continue it. Exits as the run does, unless it finishes or diverges."""
    from gpt2cli import paths

    words = [task, recipe, *run.overrides, "--name", str(run.folder)]
    words += ["--resume"] if paths.checkpoints(run.folder) else []
    words += ["--offline"] if offline else []
    # A group of its own: Ctrl-C at the terminal reaches it through this process alone.
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        process_group=0,
    )
    heard = 0

    def forward(number: int, frame: object) -> None:
        nonlocal heard
        heard = number
        process.send_signal(number)

    undo = install(forward)
    try:
        code = process.wait()
    finally:
        undo()
        if process.poll() is None:
            process.kill()
            process.wait()
    if code in (0, DivergedError.exit_code) and not heard:
        return
    say(f"{run.folder} ended with code {code}; the same command continues the grid, from there")
    raise typer.Exit(128 + heard if heard else code if code > 0 else 128 - code)


def _wait_for_another(folder: Path) -> None:
    """Wait until no process trains in the folder; a killed grid may have left one."""
    from gpt2cli import locks

    is_told = False
    while folder.is_dir():
        try:
            with locks.lock(folder):
                return
        except ResourceError as error:
            if not is_told:
                say(f"waiting: {error.what}")
            is_told = True
            time.sleep(1)


def _show(
    runs: "Sequence[GridRun]", folder: Path, loss: float | None, report: Path | None, as_json: bool
) -> None:
    from gpt2cli import files
    from gpt2cli.training.grid import read_result, summarize
    from gpt2cli.ui.grid import NOTE, grid_facts, grid_lines, grid_markdown, plot_grid

    found = summarize([read_result(run) for run in runs], loss)
    picture = folder / "grid.png"
    plot_grid(found, picture, folder.name)
    if report is not None:
        place = os.path.relpath(picture, report.absolute().parent)
        files.write_file(report, grid_markdown(found, ["gpt2", *sys.argv[1:]], place))
        say(f"report: {report}")
    if as_json:
        print_json(grid_facts(found, folder, picture))
        return
    console = out()
    for line in grid_lines(found, console.width if is_terminal(console) else None):
        console.print(line)
    say(NOTE, "faint")
    say(f"picture: {shlex.quote(str(picture))}")
