"""Owns the course of every training command: find the run, assemble, train, show, record.

What is particular to a task comes as a `Lesson`; `pretrain.py`, `finetune_classify.py` and
`finetune_instruct.py` supply one each and declare the options.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gpt2cli.recipe.loader import Loaded
    from gpt2cli.recipe.schema import Recipe
    from gpt2cli.training.run_dir import Run
    from gpt2cli.training.setup import Session
    from gpt2cli.training.task import Task
    from gpt2cli.ui.training import TrainingView

RecipeArgument = Annotated[
    str, typer.Argument(help="A YAML file, or the name of a shipped recipe (see: gpt2 recipes).")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it, like optim.lr=3e-4.")
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--name", help="Name of the run, or a path; otherwise the recipe's name.", show_default=False
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue the run where its newest checkpoint is.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be trained, in what memory and time.")
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Never use the network.")]


@dataclass(frozen=True)
class Lesson:
    """What a command adds to the course. `opened` yields the task and where its data came from."""

    task: str  # as recipes spell it, which is the command's name too
    opened: Callable[[Any, bool], AbstractContextManager[tuple["Task", dict[str, object]]]]
    # Called with the view open: after each evaluation, and once training has ended by itself.
    after_evaluation: Callable[["Session", "Run", "TrainingView", Callable[[], int]], None]
    at_end: Callable[["Session", "Run", Callable[[], int]], int]  # returns a signal's number, or 0
    is_complete: Callable[["Run", Any], bool]  # whether what at_end makes of that recipe is there
    hint: Callable[["Session", "Run"], str]  # what to try next


def train(
    lesson: Lesson,
    recipe: str,
    overrides: list[str] | None,
    name: str | None,
    resume: bool,
    dry_run: bool,
    offline: bool,
) -> None:
    """One training command from its arguments to its exit."""
    from gpt2cli.cli.signals import polite_stop
    from gpt2cli.training import run_dir as runs
    from gpt2cli.training.setup import open_session

    given = list(overrides or [])
    if dry_run:
        _show_plan(lesson, _load(lesson, recipe, given), offline)
        return
    run = runs.find_run(name or _name_of(recipe), resume=resume)
    if resume:  # what was the newest model then is in the record; now it would be the run itself
        given = runs.recorded_overrides(run) + [word for word in given if word != "init=newest"]
    loaded = _load(lesson, recipe, given)
    if newest := _newest(loaded.recipe):
        given.append(f"init={newest}")
        loaded = _load(lesson, recipe, given)
    with runs.starting(run) as begin:
        runs.sweep(run)
        checkpoint = _resume_point(run) if resume else None
        if (
            checkpoint
            and lesson.is_complete(run, loaded.recipe)
            and _nothing_to_do(checkpoint, loaded.recipe, run)
        ):
            return
        stopping = "finishing this step and saving; once more to leave at once"
        with lesson.opened(loaded.recipe, offline) as (task, origin), polite_stop(stopping) as stop:
            session = open_session(task, loaded.recipe, checkpoint)
            for notice in session.notices:
                say(f"note: {notice}")

            def record() -> None:
                _record(run, session, checkpoint, given, origin)
                begin()

            _train(lesson, session, run, stop, record)


def say(text: str) -> None:
    """A line on stderr, safe for a terminal whatever is in it."""
    from gpt2cli.ui.console import err, printable

    err().print(printable(text))


def _load(lesson: Lesson, recipe: str, overrides: list[str]) -> "Loaded":
    from gpt2cli.errors import UsageError
    from gpt2cli.recipe.loader import load_recipe, shown

    loaded = load_recipe(recipe, overrides)
    if loaded.recipe.task != lesson.task:
        raise UsageError(
            f"{shown(loaded.path)}: is a recipe for {loaded.recipe.task}",
            f"this command is {lesson.task}",
            f"gpt2 {loaded.recipe.task} {recipe}",
        )
    return loaded


def _newest(recipe: "Recipe") -> str:
    """What `init: newest` means now, as YAML; the run itself will be the newest when it is resumed."""
    import json

    from gpt2cli import paths
    from gpt2cli.training.base_model import newest_start

    if getattr(recipe, "init", None) != paths.NEWEST:
        return ""
    folder = newest_start()
    say(f"init: the newest model is {folder}")
    return json.dumps(str(folder.absolute()))


def _name_of(recipe: str) -> str:
    """verdict for recipes/verdict.yaml; the run itself for a recipe.yaml that lies in a run."""
    from gpt2cli import paths

    path = Path(recipe)
    if path.name == "recipe.yaml" and paths.is_run(path.parent):
        return str(path.parent.resolve())
    return path.stem


def _show_plan(lesson: Lesson, loaded: "Loaded", offline: bool) -> None:
    from gpt2cli.training.setup import open_session
    from gpt2cli.ui.dry_run import show_plan

    with lesson.opened(loaded.recipe, offline) as (task, _):
        session = open_session(task, loaded.recipe, None)
        for notice in session.notices:
            say(f"note: {notice}")
        show_plan(session, loaded.origins)


def _resume_point(run: "Run") -> "Path | None":
    """The newest whole checkpoint; says which newer ones are damaged."""
    from gpt2cli.training.run_dir import newest_valid_checkpoint

    checkpoint, problems = newest_valid_checkpoint(run)
    for problem in problems:
        say(f"warning: {problem.what}; going back to {checkpoint.name if checkpoint else 'the start'}")
    return checkpoint


def _nothing_to_do(checkpoint: Path, recipe: "Recipe", run: "Run") -> bool:
    """Whether the run has come to its end, by its steps or by its patience; if so, say it."""
    from gpt2cli.training.train_state import read_facts

    progress, steps, patience = read_facts(checkpoint)[0], recipe.optim.steps, recipe.eval.patience
    if progress.step >= steps and progress.evaluated == progress.step:
        say(f"nothing to do: {run.folder} has finished its {steps} steps")
        return True
    if patience and progress.without_gain >= patience:
        say(f"nothing to do: {run.folder} stopped early; eval.patience={2 * patience} would go on")
        return True
    return False


def _train(
    lesson: Lesson, session: "Session", run: "Run", stop: Callable[[], int], record: Callable[[], None]
) -> None:
    """Train and show it. `record` is called once nothing can be wrong with the command any more."""
    import shlex

    from gpt2cli.training import run_dir as runs
    from gpt2cli.training.events import EvalDone, Stopped
    from gpt2cli.ui.console import err, out, printable
    from gpt2cli.ui.plots import plot_losses
    from gpt2cli.ui.tensorboard import Board
    from gpt2cli.ui.training import TrainingView

    recipe, first = session.recipe, session.progress.step
    signal = 0
    with (
        Board(run.folder / "tensorboard", recipe.log.tensorboard, first) as board,
        TrainingView(recipe.optim.steps, err(), log_every=recipe.log.every, first_step=first) as view,
    ):
        record()
        view.note(_headline(session, run))
        if first:
            view.note(f"resuming after step {first}")
        for event in session.events(run, stop):
            runs.append(run, event)
            board.write(event)
            view.show(event)
            if isinstance(event, EvalDone):
                lesson.after_evaluation(session, run, view, stop)
            if isinstance(event, EvalDone | Stopped):
                plot_losses(run.metrics, run.plot, title=run.name)
            if isinstance(event, Stopped):
                signal = event.signal
    if not signal and session.progress.best_step == 0:
        say("warning: no evaluation was better than the one at the start; the last checkpoint is taken")
    signal = signal or lesson.at_end(session, run, stop)
    out().print(printable(str(run.folder)))
    if signal:
        say(f"to go on: gpt2 {lesson.task} {shlex.quote(str(run.recipe))} --resume")
        raise typer.Exit(128 + signal)
    say(f"try it: {lesson.hint(session, run)}")


def _headline(session: "Session", run: "Run") -> str:
    runtime, parameters = session.runtime, list(session.model.parameters())
    n_parameters = sum(p.numel() for p in parameters)
    n_learning = sum(p.numel() for p in parameters if p.requires_grad)
    learning = "" if n_learning == n_parameters else f" ({n_learning:,} of them learn)"
    return (
        f"{run.name}: {n_parameters:,} parameters{learning}, {session.task.size},"
        f" {runtime.device.type} {runtime.precision}, {runtime.threads} threads"
        + (", compiled" if runtime.compile else "")
    )


def _record(
    run: "Run", session: "Session", checkpoint: "Path | None", given: list[str], origin: dict[str, object]
) -> None:
    """Write recipe.yaml and run.json; on a resume, say what changed and cut what was never saved."""
    import sys
    import time

    from gpt2cli import __version__, files
    from gpt2cli.recipe.loader import dump_recipe
    from gpt2cli.runtime import describe_machine
    from gpt2cli.training.run_dir import cut_records, write_record

    text, step = dump_recipe(session.recipe), session.progress.step
    if checkpoint and run.recipe.exists():
        before = run.recipe.read_text(encoding="utf-8").splitlines()
        for line in text.splitlines():
            if line not in before:
                say(f"note: changed since the run began: {line.strip()}")
    run.checkpoints.mkdir(exist_ok=True)
    files.write_file(run.recipe, text)
    cut_records(run, step if checkpoint else -1)
    write_record(
        run,
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "overrides": given,
            "from_step": step,
            "gpt2cli": __version__,
            "machine": describe_machine(session.runtime),
            "data": origin,
        },
        resumed=checkpoint is not None,
    )
