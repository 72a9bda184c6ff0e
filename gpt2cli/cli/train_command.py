"""The part that the three training commands share: their options, and a run from its recipe to its end.

`pretrain.py`, `finetune_classify.py` and `finetune_instruct.py` declare a command each and add their
task as a `TrainCommand`.
"""

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli import __version__, paths
from gpt2cli.cli.signals import stop_on_signal
from gpt2cli.errors import UsageError
from gpt2cli.ui.console import err, out, printable, say

if TYPE_CHECKING:
    from gpt2cli.recipe.loader import LoadedRecipe
    from gpt2cli.recipe.schema import Recipe
    from gpt2cli.training.run_dir import RunDir
    from gpt2cli.training.setup import TrainingSetup
    from gpt2cli.training.task import TrainingTask
    from gpt2cli.ui.training import TrainingView

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name from 'gpt2 recipes list'.")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to override, such as optim.lr=3e-4.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name or path of the run; by default the recipe's name.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show the resolved recipe, memory and time, without training.")
]


@dataclass(frozen=True)
class TrainCommand:
    """The part of a training command that differs. `open_task` yields the task and its data's origin."""

    task: str  # in recipes, and the command's name
    open_task: Callable[
        [Any, bool], contextlib.AbstractContextManager[tuple["TrainingTask", dict[str, object]]]
    ]
    after_evaluation: Callable[["TrainingSetup", "RunDir", "TrainingView", Callable[[], int]], None]
    # Called once training has finished; returns the number of a signal that stopped it, or 0.
    at_end: Callable[["TrainingSetup", "RunDir", Callable[[], int]], int]
    is_complete: Callable[["RunDir", Any], bool]  # whether the results of at_end are there, for this recipe
    hint: Callable[["TrainingSetup", "RunDir"], str]  # the command to try next


def train(
    command: TrainCommand,
    recipe: str,
    overrides: list[str] | None,
    name: str | None,
    resume: bool,
    dry_run: bool,
    offline: bool,
) -> None:
    """Run a training command: check its arguments, train or show the plan, and exit."""
    from gpt2cli.training import run_dir as runs
    from gpt2cli.training.setup import set_up_training

    given = list(overrides or [])
    if dry_run:
        _show_plan(command, _load(command, recipe, given), offline)
        return
    run = runs.find_run(name or _name_of(recipe), resume=resume)
    if resume:  # init=newest is in the record as a path; now the newest would be this run
        given = runs.recorded_overrides(run) + [word for word in given if word != "init=newest"]
    loaded = _load(command, recipe, given)
    if newest := _newest(loaded.recipe):
        given.append(f"init={newest}")
        loaded = _load(command, recipe, given)
    with runs.start_run(run):
        runs.sweep(run)
        checkpoint = _resume_point(run) if resume else None
        if (
            checkpoint
            and command.is_complete(run, loaded.recipe)
            and _nothing_to_do(checkpoint, loaded.recipe, run)
        ):
            return
        stopping = "finishing this step and saving; again to leave at once"
        with command.open_task(loaded.recipe, offline) as (task, origin), stop_on_signal(stopping) as stop:
            setup = set_up_training(task, loaded.recipe, checkpoint)
            for notice in setup.notices:
                say(f"note: {notice}")

            def record() -> None:
                _record(run, setup, checkpoint, given, origin)

            _train(command, setup, run, stop, record)


def _load(command: TrainCommand, recipe: str, overrides: list[str]) -> "LoadedRecipe":
    from gpt2cli.recipe.loader import display_path, load_recipe

    loaded = load_recipe(recipe, overrides)
    if loaded.recipe.task != command.task:
        raise UsageError(
            f"{display_path(loaded.path)}: is a recipe for {loaded.recipe.task}",
            f"this is gpt2 {command.task}",
            f"gpt2 {loaded.recipe.task} {recipe}",
        )
    return loaded


def _newest(recipe: "Recipe") -> str:
    """The path that `init: newest` means now, as YAML; on a resume the newest model is this run."""
    from gpt2cli.training.base_model import newest_base

    if getattr(recipe, "init", None) != paths.NEWEST:
        return ""
    folder = newest_base()
    say(f"init: the newest model is {folder}")
    return json.dumps(str(folder.absolute()))


def _name_of(recipe: str) -> str:
    """verdict for recipes/verdict.yaml; the run's path for the recipe.yaml of a run."""
    path = Path(recipe)
    if path.name == "recipe.yaml" and paths.is_run(path.parent):
        return str(path.parent.resolve())
    return path.stem


def _show_plan(command: TrainCommand, loaded: "LoadedRecipe", offline: bool) -> None:
    from gpt2cli.training.setup import set_up_training
    from gpt2cli.ui.dry_run import show_dry_run

    with command.open_task(loaded.recipe, offline) as (task, _):
        setup = set_up_training(task, loaded.recipe, None)
        for notice in setup.notices:
            say(f"note: {notice}")
        show_dry_run(setup, loaded.origins, out())


def _resume_point(run: "RunDir") -> "Path | None":
    """The newest intact checkpoint; says which newer ones are damaged."""
    from gpt2cli.training.run_dir import newest_valid_checkpoint

    checkpoint, problems = newest_valid_checkpoint(run)
    for problem in problems:
        say(f"warning: {problem.what}; going back to {checkpoint.name if checkpoint else 'the start'}")
    return checkpoint


def _nothing_to_do(checkpoint: Path, recipe: "Recipe", run: "RunDir") -> bool:
    """Whether the run has finished its steps or stopped early; if so, say so."""
    from gpt2cli.training.train_state import read_state

    progress, steps, patience = read_state(checkpoint)[0], recipe.optim.steps, recipe.eval.patience
    if progress.step >= steps and progress.evaluated == progress.step:
        say(f"nothing to do: {run.folder} has finished its {steps} steps")
        return True
    if patience and progress.without_gain >= patience:
        say(f"nothing to do: {run.folder} stopped early; eval.patience={2 * patience} continues it")
        return True
    return False


def _train(
    command: TrainCommand,
    setup: "TrainingSetup",
    run: "RunDir",
    stop: Callable[[], int],
    record: Callable[[], None],
) -> None:
    """Train, with display and log. `record` is called once all options have been validated."""
    from gpt2cli.training import loop
    from gpt2cli.training import run_dir as runs
    from gpt2cli.training.events import EvalDone, Stopped
    from gpt2cli.ui.plots import plot_losses
    from gpt2cli.ui.tensorboard import tensorboard_log
    from gpt2cli.ui.training import TrainingView

    recipe, first = setup.recipe, setup.state.step
    signal_number = 0
    with (
        tensorboard_log(run.folder / "tensorboard", recipe.log.tensorboard, first) as log,
        TrainingView(recipe.optim.steps, err(), log_every=recipe.log.every, first_step=first) as view,
    ):
        record()
        view.note(_headline(setup, run))
        if first:
            view.note(f"resuming after step {first}")
        for event in loop.train(setup, save=lambda: runs.save_checkpoint(run, setup), stop=stop):
            runs.append_event(run, event)
            log(event)
            view.show(event)
            if isinstance(event, EvalDone):
                command.after_evaluation(setup, run, view, stop)
            if isinstance(event, EvalDone | Stopped):
                plot_losses(run.metrics, run.plot, title=run.name)
            if isinstance(event, Stopped):
                signal_number = event.signal
    if not signal_number and setup.state.best_step == 0:
        say("warning: no evaluation beat the one at the start; the last checkpoint is taken")
    signal_number = signal_number or command.at_end(setup, run, stop)
    out().print(printable(str(run.folder)))
    if signal_number:
        say(f"to continue: gpt2 {command.task} {shlex.quote(str(run.recipe))} --resume")
        raise typer.Exit(128 + signal_number)
    say(f"try it: {command.hint(setup, run)}")


def _headline(setup: "TrainingSetup", run: "RunDir") -> str:
    runtime, parameters = setup.runtime, list(setup.model.parameters())
    n_parameters = sum(p.numel() for p in parameters)
    n_trainable = sum(p.numel() for p in parameters if p.requires_grad)
    trainable = "" if n_trainable == n_parameters else f" ({n_trainable:,} trainable)"
    return (
        f"{run.name}: {n_parameters:,} parameters{trainable}, {setup.task.size},"
        f" {runtime.device.type} {runtime.precision}, {runtime.threads} threads"
        + (", compiled" if runtime.compile else "")
    )


def _record(
    run: "RunDir",
    setup: "TrainingSetup",
    checkpoint: "Path | None",
    given: list[str],
    origin: dict[str, object],
) -> None:
    """Write recipe.yaml and run.json; on a resume, say what changed and cut the log after the checkpoint."""
    from gpt2cli import files
    from gpt2cli.recipe.loader import dump_recipe
    from gpt2cli.runtime import describe_machine
    from gpt2cli.training.run_dir import truncate_records, write_record

    text, step = dump_recipe(setup.recipe), setup.state.step
    if checkpoint and run.recipe.exists():
        before = run.recipe.read_text(encoding="utf-8").splitlines()
        for line in text.splitlines():
            if line not in before:
                say(f"note: changed since the run began: {line.strip()}")
    run.checkpoints.mkdir(exist_ok=True)
    files.write_file(run.recipe, text)
    truncate_records(run, step if checkpoint else -1)
    write_record(
        run,
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "overrides": given,
            "from_step": step,
            "gpt2cli": __version__,
            "machine": describe_machine(setup.runtime),
            "data": origin,
        },
        resumed=checkpoint is not None,
    )
