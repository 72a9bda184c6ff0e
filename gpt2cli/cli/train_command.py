"""The part that the three training commands share: their options, and a run from its recipe to its end.

`pretrain.py`, `finetune_classify.py` and `finetune_instruct.py` declare a command each and add their
task as a `TrainCommand`.
"""

import contextlib
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gpt2cli import __version__, paths
from gpt2cli.cli import launcher
from gpt2cli.cli.signals import on_sigusr1, stop_on_signal
from gpt2cli.errors import DivergedError, Gpt2Error, UsageError
from gpt2cli.ui.console import err, let_stdout_fail, out, printable, say

if TYPE_CHECKING:
    from gpt2cli.recipe.loader import LoadedRecipe
    from gpt2cli.recipe.schema import Recipe
    from gpt2cli.training.run_dir import RunDir
    from gpt2cli.training.setup import TrainingSetup
    from gpt2cli.training.task import TrainingTask
    from gpt2cli.ui.training import TrainingView

# Of a recipe, whether the network is forbidden, and the checkpoint to resume from, if any.
OpenTask = Callable[
    [Any, bool, Path | None], contextlib.AbstractContextManager[tuple["TrainingTask", dict[str, object]]]
]


@dataclass(frozen=True)
class TrainCommand:
    """The part of a training command that differs. `open_task` yields the task and its data's origin."""

    task: str  # in recipes, and the command's name
    open_task: "OpenTask"
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
    from_: str | None,
    processes: int,
) -> None:
    """Run a training command: check its arguments, train or show the plan, and exit."""
    from gpt2cli.training import run_dir as runs
    from gpt2cli.training.moved_paths import absolute_paths, moved_paths
    from gpt2cli.training.ranks import join
    from gpt2cli.training.retention import settle_best
    from gpt2cli.training.setup import set_up_training

    given = list(overrides or [])
    if from_ and not resume:
        raise UsageError(
            "--from needs --resume", "it goes back to a checkpoint of a run", f"--resume --from {from_}"
        )
    if dry_run:
        _show_plan(command, _load(command, recipe, given), offline)
        return
    if processes > 1 and not launcher.is_one_of_several():
        raise typer.Exit(launcher.launch(processes))
    ranks = join()
    if not ranks.is_first:
        launcher.train_along(
            ranks, lambda words: _load(command, recipe, words).recipe, command.open_task, offline
        )
        return
    let_stdout_fail()
    run = runs.find_run(name or _name_of(recipe), resume=resume)
    moved: list[str] = []
    if resume:  # init=newest is in the record as a path; now the newest would be this run
        typed = absolute_paths([word for word in given if word != "init=newest"])
        given = runs.recorded_overrides(run) + typed
        words = ["gpt2", command.task, recipe, "--resume", *(["--name", name] if name else [])]
        moved = moved_paths(run, _load(command, recipe, given).recipe, shlex.join(words))
    loaded = _load(command, recipe, given + moved)
    if newest := _newest(loaded.recipe):
        given.append(f"init={newest}")
        loaded = _load(command, recipe, given)
    given += launcher.split_micro_batches(loaded.recipe, ranks.world)
    loaded = _load(command, recipe, given + moved)
    with runs.start_run(run, command.task):
        runs.sweep(run)
        checkpoint = _resume_point(run, from_, f"gpt2 {command.task} {recipe}") if resume else None
        if checkpoint and not from_ and _nothing_to_do(command, checkpoint, loaded.recipe, run):
            ranks.tell(None)
            return
        stopping = "finishing this step and saving; again to leave at once"
        with (
            command.open_task(loaded.recipe, offline, checkpoint) as (task, origin),
            stop_on_signal(stopping) as stop,
        ):
            ranks.tell(launcher.ToldRun(run.folder, given + moved, checkpoint))
            setup = set_up_training(task, task.recipe, checkpoint, ranks)
            runs.require_room_to_train(run, setup)
            for notice in setup.notices:
                say(f"note: {notice}")

            def record() -> None:
                if from_ and checkpoint:
                    for path in runs.go_back_to(run, checkpoint):
                        say(f"note: put aside: {path}")
                settle_best(run.folder, setup.state, loaded.recipe.eval.best)
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

    if recipe.init != paths.NEWEST:
        return ""
    folder = newest_base()
    say(f"init: the newest model is {folder}")
    return json.dumps(str(folder.absolute()))


def _name_of(recipe: str) -> str:
    """verdict for recipes/verdict.yaml; the run's path for the recipe.yaml of a run."""
    path = paths.expand(recipe)
    if path.name == "recipe.yaml" and paths.is_run(path.parent):
        return str(path.parent.resolve())
    return path.stem


def _show_plan(command: TrainCommand, loaded: "LoadedRecipe", offline: bool) -> None:
    from gpt2cli.training.setup import set_up_training
    from gpt2cli.ui.dry_run import show_dry_run

    with command.open_task(loaded.recipe, offline, None) as (task, _):
        setup = set_up_training(task, task.recipe, None)
        for notice in setup.notices:
            say(f"note: {notice}")
        show_dry_run(setup, loaded.origins, out())


def _resume_point(run: "RunDir", from_: str | None, command: str) -> "Path | None":
    """The checkpoint that was asked for, or the newest intact one; says which newer ones are damaged.

    Raises UsageError for a run that diverged, whose newest checkpoint may be wrecked already.
    """
    from gpt2cli.training.run_dir import diverged_at, named_checkpoint, newest_valid_checkpoint

    if from_:
        return named_checkpoint(run, from_)
    if (step := diverged_at(run)) is not None and paths.checkpoints(run.folder):
        raise UsageError(
            f"{run.folder}: the run diverged at step {step}",
            "its newest checkpoint may be close to that; --from says where to go back to",
            f"{command} --resume --from {_best_or_last(run)} optim.lr=VALUE",
        )
    checkpoint, problems = newest_valid_checkpoint(run)
    for problem in problems:
        say(f"warning: {problem.what}; going back to {checkpoint.name if checkpoint else 'the start'}")
    return checkpoint


def _nothing_to_do(command: TrainCommand, checkpoint: Path, recipe: "Recipe", run: "RunDir") -> bool:
    """Whether the run has finished its steps or stopped early, with all results; if so, say so."""
    from gpt2cli.training.retention import settle_best
    from gpt2cli.training.train_state import read_state

    progress, steps, patience = read_state(checkpoint)[0], recipe.optim.steps, recipe.eval.patience
    settle_best(run.folder, progress, recipe.eval.best)
    if not command.is_complete(run, recipe):
        return False
    if progress.step >= steps and progress.evaluated == progress.step:
        more = f"optim.steps={2 * progress.step} continues it"
        done = f"has finished its {steps} steps"
        if progress.step > steps:
            done = f"is at step {progress.step}, beyond optim.steps={steps}; --from goes back to a checkpoint"
        say(f"nothing to do: {run.folder} {done}; {more}")
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
    from gpt2cli.recipe.schema import SCRATCH
    from gpt2cli.training import loop
    from gpt2cli.training import run_dir as runs
    from gpt2cli.training.events import EvalDone, Stopped
    from gpt2cli.ui.plots import plot_losses
    from gpt2cli.ui.tensorboard import tensorboard_log
    from gpt2cli.ui.training import TrainingView

    recipe, first = setup.recipe, setup.state.step
    stopped = Stopped(first, "")
    start = "the model with random weights" if recipe.init == SCRATCH else "the base"
    with (
        tensorboard_log(run.folder / "tensorboard", recipe.log.tensorboard, first) as log,
        TrainingView(
            recipe.optim.steps, err(), log_every=recipe.log.every, first_step=first, start=start
        ) as view,
        on_sigusr1() as save_now,
        _explain_divergence(command, run, setup),
    ):
        record()
        view.note(_headline(setup, run))
        if first:
            view.note(f"resuming after step {first}")
        said = set[str]()

        def notice(sentence: str) -> None:
            if sentence not in said:  # of each save alike
                view.note(f"note: {sentence}")
            said.add(sentence)

        save = partial(runs.save_checkpoint, run, setup, notice)
        for event in loop.train(setup, save=save, stop=stop, save_now=save_now):
            runs.append_event(run, event)
            log(event)
            view.show(event)
            if isinstance(event, EvalDone):
                command.after_evaluation(setup, run, view, stop)
            if isinstance(event, EvalDone | Stopped):
                plot_losses(run.metrics, run.plot, title=run.name)
            if isinstance(event, Stopped):
                stopped = event
    setup.ranks.close()
    signal_number, is_over = stopped.signal, stopped.reason in ("finished", "patience")
    if is_over:
        setup.optimizer_step.free()  # the report may load a second model beside this one
        signal_number = command.at_end(setup, run, stop)
    out().print(printable(str(run.folder)))
    if signal_number or not is_over:
        together = f" --processes {setup.ranks.world}" if setup.ranks.world > 1 else ""
        say(f"to continue: gpt2 {command.task} {shlex.quote(str(run.recipe))} --resume{together}")
    if signal_number:
        raise typer.Exit(128 + signal_number)
    if not is_over:
        return
    say(f"try it: {command.hint(setup, run)}")


@contextlib.contextmanager
def _explain_divergence(command: TrainCommand, run: "RunDir", setup: "TrainingSetup") -> Iterator[None]:
    """Record a divergence, and propose the command that goes back to before it."""
    from gpt2cli.training.run_dir import record_divergence

    try:
        yield
    except DivergedError as error:
        record_divergence(run, setup.state.step)
        start = f"gpt2 {command.task} {shlex.quote(str(run.recipe))}"
        optim = setup.recipe.optim
        lr = f"optim.lr={optim.lr / 3:.2g}"
        lr += f" optim.min_lr={optim.lr / 30:.2g}" if optim.min_lr > optim.lr / 3 else ""
        if paths.checkpoints(run.folder):
            fix = f"{start} --resume --from {_best_or_last(run)} {lr}"
        else:
            fix = f"{start} {lr}"  # nothing is saved yet: from the start
        raise DivergedError(error.what, f"{error.why}; a smaller learning rate may help", fix) from None


def _best_or_last(run: "RunDir") -> str:
    return "best" if (run.folder / "best").is_dir() else "last"


def _headline(setup: "TrainingSetup", run: "RunDir") -> str:
    from gpt2cli.recipe.schema import SCRATCH

    runtime, parameters = setup.runtime, list(setup.model.parameters())
    n_parameters = sum(p.numel() for p in parameters)
    n_trainable = sum(p.numel() for p in parameters if p.requires_grad)
    trainable = "" if n_trainable == n_parameters else f" ({n_trainable:,} trainable)"
    init = setup.recipe.init
    start = "" if init == SCRATCH else f"from {init}, "
    return (
        f"{run.name}: {start}{n_parameters:,} parameters{trainable}, {setup.task.size},"
        f" {runtime.device.type} {runtime.precision}, {runtime.threads} threads"
        + (", compiled" if runtime.compile else "")
    )


def _note_changes(run: "RunDir", setup: "TrainingSetup") -> None:
    """What a changed recipe does to a resumed run that its values do not show."""
    from gpt2cli.recipe.loader import load_recipe
    from gpt2cli.training.optimizer_step import learning_rate

    try:
        before = load_recipe(str(run.recipe)).recipe
    except Gpt2Error:  # an older version's
        return
    now, step = setup.recipe, setup.state.step
    old, new = learning_rate(before.optim, step), learning_rate(now.optim, step)
    if step < now.optim.steps and not math.isclose(old, new):
        say(f"note: the learning rate goes on at {new:.1e}; with the recipe before it would be {old:.1e}")
    if before.batch != now.batch and setup.model.config.dropout:
        say("note: another micro_batch draws other dropout masks: the same samples, not the same bits")


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
        _note_changes(run, setup)
    run.checkpoints.mkdir(exist_ok=True)
    files.write_file(run.recipe, text)
    truncate_records(run, step if checkpoint else -1)
    write_record(
        run,
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "folder": str(Path.cwd()),
            "run": str(run.folder.resolve()),
            "overrides": given,
            "from_step": step,
            "gpt2cli": __version__,
            "machine": describe_machine(setup.runtime),
            "data": origin,
        },
        resumed=checkpoint is not None,
    )
    _pin_base(run, setup)


def _pin_base(run: "RunDir", setup: "TrainingSetup") -> None:
    """Adapters are nothing without their base: where that is a checkpoint of another run, it stays."""
    from gpt2cli.recipe.loader import display_path
    from gpt2cli.training.retention import pin

    named = setup.task.base.folder
    if setup.recipe.train != "lora" or named is None:
        return
    base = named.resolve()  # it may be a pointer: runs/base/best
    if not paths.is_checkpoint(base):
        return
    owner, step = display_path(base.parent.parent), int(base.name.removeprefix("step-"))
    try:
        pin(base, run.folder)
        say(f"note: {owner} keeps step {step}: it is the base of these adapters")
    except OSError as error:
        say(f"warning: {base} cannot be pinned ({error.strerror}); the adapters are lost if it goes")
