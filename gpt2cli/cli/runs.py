"""`gpt2 runs`: the runs and models that are here, and what to do with them."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from gpt2cli.cli.help import HelpCommand, HelpGroup
from gpt2cli.cli.options import JsonOption
from gpt2cli.errors import InputError, UsageError
from gpt2cli.paths import expand
from gpt2cli.ui.console import amount, err, out, print_json, printable, say

app = typer.Typer(
    cls=HelpGroup, help="List, show, compare, prune and remove runs and models.", no_args_is_help=False
)

NameArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A run or a model: its name or folder.")]
DirOption = Annotated[
    Path | None,
    typer.Option(
        "--dir", parser=expand, metavar="PATH", help="The folder of runs.", show_default="GPT2_RUNS, or runs"
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    directory: DirOption = None,
    cache: Annotated[
        bool,
        typer.Option("--cache", help="List downloads, corpora, prepared texts and compiled steps instead."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the runs here and the models under GPT2_HOME: what they are, how far, how large.

    With a command, show, plot, prune or remove them.
    """
    if context.invoked_subcommand is not None:
        return
    if cache:
        _list_cache(as_json)
        return
    from gpt2cli import paths
    from gpt2cli.training.runs_on_disk import find_entries
    from gpt2cli.ui import runs as ui

    folder = directory or paths.runs()
    entries = find_entries(folder, *([paths.models()] if paths.has_home() else []))
    if as_json:
        print_json([ui.as_json(entry) for entry in entries])
    else:
        ui.print_runs(entries, folder, out())


@app.command(cls=HelpCommand)
def show(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show one run or model: where it comes from, its checkpoints, its last metrics, what to do next."""
    from gpt2cli.training.runs_on_disk import find_entry
    from gpt2cli.ui import runs as ui

    entry = find_entry(name)
    if as_json:
        print_json(ui.as_json(entry) | {"next": ui.next_commands(entry)})
    else:
        ui.print_run(entry, out())


@app.command(cls=HelpCommand)
def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Runs or models; or names that --cache lists.")
    ],
    yes: YesOption = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also what another model began with; never the base of adapters."),
    ] = False,
) -> None:
    """Remove runs, models, or what is in the cache.

    Refused for what is in use, what adapters need, and what gpt2 did not write. Prints what was removed.
    """
    from gpt2cli.hub.cache import find_in_cache, is_cache_name, remove_cached
    from gpt2cli.training.removal import foreign_files, remove, require_removable
    from gpt2cli.training.runs_on_disk import find_entry

    cached = list(dict.fromkeys(find_in_cache(name) for name in names if is_cache_name(name)))
    named = [find_entry(name) for name in names if not is_cache_name(name)]
    entries = list({entry.folder.resolve(): entry for entry in named}.values())
    require_removable(entries, force)
    _require_unused([one.path for one in cached])
    for entry in entries:
        own = foreign_files(entry)
        more = f", with {', '.join(own[:4])}, which gpt2 did not write" if own else ""
        say(f"{entry.folder}: {entry.state}, {amount(entry.n_bytes)}{more}")
    for one in cached:
        say(f"{one.path}: {amount(one.n_bytes)}")
    _ask(yes, "remove", len(entries) + len(cached), ["rm", *names, *(["--force"] if force else [])])
    for entry in entries:
        remove(entry)
        out().print(printable(str(entry.folder)))
    for one in cached:
        remove_cached(one)
        out().print(printable(str(one.path)))
    freed = sum(one.n_bytes for one in entries) + sum(one.n_bytes for one in cached)
    say(f"{amount(freed)} freed")


@app.command(cls=HelpCommand)
def prune(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Finished runs.", show_default="all finished runs"),
    ] = None,
    directory: DirOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be freed.")] = False,
    yes: YesOption = False,
) -> None:
    """Drop the optimizer state of finished runs: two thirds of a checkpoint.

    The models stay as they are. Such a run cannot be continued; a new one can begin with its weights.
    """
    from gpt2cli import paths
    from gpt2cli.training.removal import prunable
    from gpt2cli.training.removal import prune as prune_run
    from gpt2cli.training.runs_on_disk import find_entries, find_entry

    if names:
        entries = [find_entry(name) for name in names]
    else:
        found = find_entries(directory or paths.runs())
        entries = [entry for entry in found if entry.kind == "run" and entry.state == "finished"]
    plan = [(entry, sum(n_bytes for _, n_bytes in prunable(entry))) for entry in entries]
    plan = [(entry, n_bytes) for entry, n_bytes in plan if n_bytes]
    for entry, n_bytes in plan:
        say(f"{entry.folder}: {amount(n_bytes)} of optimizer state, {amount(entry.n_bytes - n_bytes)} stay")
    total = sum(n_bytes for _, n_bytes in plan)
    if dry_run or not plan:
        say(f"{amount(total)} would be freed" if plan else "nothing to prune")
        return
    _ask(yes, "prune", len(plan), ["prune", *(names or [])])
    freed = 0
    for entry, _ in plan:
        freed += sum(n_bytes for _, n_bytes in prune_run(entry))
        out().print(printable(str(entry.folder)))
    say(f"{amount(freed)} freed")


@app.command(cls=HelpCommand)
def plot(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="Runs to draw, one colour each.")],
    x: Annotated[
        Literal["steps", "tokens", "time"], typer.Option("--x", help="What the losses are drawn over.")
    ] = "steps",
    picture: Annotated[
        Path, typer.Option("--out", parser=expand, metavar="FILE.png", help="The picture.")
    ] = Path("losses.png"),
) -> None:
    """Draw the losses of several runs into one picture, whose path it prints."""
    from gpt2cli.paths import METRICS
    from gpt2cli.training.runs_on_disk import find_entry
    from gpt2cli.ui.plots import plot_runs

    if picture.suffix.lower() != ".png":
        raise UsageError(f"--out {picture}: the picture is a PNG", "", f"--out {picture.with_suffix('.png')}")
    entries = [find_entry(name) for name in dict.fromkeys(names)]
    for entry in entries:
        if not (entry.folder / METRICS).exists():
            raise InputError(f"{entry.folder}: has no losses", f"there is no {METRICS}", "gpt2 runs")
    labels = [entry.name for entry in entries]
    if len(set(labels)) < len(labels):
        labels = [str(entry.folder) for entry in entries]
    without = plot_runs(
        [(label, entry.folder / METRICS) for label, entry in zip(labels, entries, strict=True)], picture, x
    )
    for label in without:
        say(f"{label}: has no loss yet", "warn")
    if len(without) == len(entries):
        raise InputError("there is nothing to draw", "no run has a loss yet", "gpt2 runs")
    out().print(printable(str(picture)))


def _list_cache(as_json: bool) -> None:
    from gpt2cli.hub.cache import find_cached
    from gpt2cli.ui import runs as ui

    entries = find_cached()
    if as_json:
        print_json(
            [
                {"name": one.name, "path": str(one.path), "bytes": one.n_bytes, "made_of": one.note}
                for one in entries
            ]
        )
    elif entries:
        ui.print_cache(entries, out())
    else:
        say("the cache is empty")


def _require_unused(cached: list[Path]) -> None:
    """Raise UsageError for the prepared text of a run that trains on it now."""
    from gpt2cli import paths
    from gpt2cli.training.runs_on_disk import find_entries

    for entry in find_entries(paths.runs()) if cached else ():
        if entry.state == "running" and entry.tokens in cached:
            raise UsageError(
                f"{entry.tokens}: {entry.folder} trains on it now",
                "",
                f"wait for it: gpt2 runs show {entry.folder}",
            )


def _ask(yes: bool, verb: str, n: int, words: list[str]) -> None:
    """Ask at a terminal; elsewhere --yes is needed."""
    if yes:
        return
    command = shlex.join(["gpt2", "runs", *words, "--yes"])
    if sys.stdin is None or not sys.stdin.isatty() or not err().is_terminal:
        raise UsageError(f"nothing was done: {verb} needs a yes", "there is no terminal to ask at", command)
    say(f"{verb} {'it' if n == 1 else f'all {n}'}? [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was done", "the answer was not yes", command)
