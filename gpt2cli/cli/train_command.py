"""The part that the three training commands share: their options, and a run from its recipe to its end.

`pretrain.py`, `finetune_classify.py` and `finetune_instruct.py` each make their command from a
`TrainCommand`.
"""

import contextlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gpt2cli.cli.choose_recipe import require_recipe, wrong_task
from gpt2cli.cli.options import (
    DryRunOption,
    FindLrOption,
    FromOption,
    NameOption,
    OfflineOption,
    OverridesArgument,
    ProcessesOption,
    RecipeArgument,
    ResumeOption,
)
from gpt2cli.cli.signals import on_sigusr1, stop_on_signal
from gpt2cli.errors import UsageError, counted
from gpt2cli.ui.console import err, let_stdout_fail, out, printable, say
from gpt2cli.ui.spinner import load_torch, waiting

if TYPE_CHECKING:
    from gpt2cli.recipe.loader import LoadedRecipe
    from gpt2cli.recipe.schema import Recipe
    from gpt2cli.training.run_dir import RunDir
    from gpt2cli.training.setup import TrainingSetup
    from gpt2cli.training.task import TrainingTask
    from gpt2cli.ui.training import TrainingView

SETTING_UP = "setting up the model, and compiling it where that pays"
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


def train_function(command: TrainCommand, summary: str) -> Callable[..., None]:
    """The function that Typer makes the command of; its help begins with `summary`."""

    def run(
        recipe: RecipeArgument,
        overrides: OverridesArgument = None,
        name: NameOption = None,
        resume: ResumeOption = False,
        from_: FromOption = None,
        processes: ProcessesOption = 1,
        dry_run: DryRunOption = False,
        find_lr: FindLrOption = False,
        offline: OfflineOption = False,
    ) -> None:
        if find_lr:
            has_more = resume or dry_run or processes > 1
            find_learning_rate(command, recipe, overrides, offline, has_more)
        else:
            train(command, recipe, overrides, name, resume, dry_run, offline, from_, processes)

    run.__doc__ = (
        f"{summary}\n\nA recipe describes the run; `gpt2 recipes` lists them, KEY=VALUE changes them.\n"
    )
    return run


def train(
    command: TrainCommand,
    recipe: str,
    overrides: list[str] | None,
    name: str | None,
    resume: bool,
    dry_run: bool,
    offline: bool,
    from_: str | None,
    processes: int = 1,
) -> None:
    """Run a training command: check its arguments, train or show the plan, and exit."""
    from gpt2cli.cli import launch_ranks

    load_torch()
    from gpt2cli.training import run_dir as runs
    from gpt2cli.training.ranks import join
    from gpt2cli.training.run_record import (
        recipe_of_run,
        record_session,
        require_optimizer_state,
        resume_point,
        run_name_of,
    )
    from gpt2cli.training.setup import set_up_training

    given = list(overrides or [])
    recipe = require_recipe(recipe, command.task, given)
    if from_ and not resume:
        raise UsageError(
            "--from needs --resume", "it goes back to a checkpoint of a run", f"--resume --from {from_}"
        )
    if dry_run:
        _show_plan(command, _load(command, recipe, given), offline)
        return
    if processes > 1 and not launch_ranks.is_one_of_several():
        raise typer.Exit(launch_ranks.launch(processes))
    launch_ranks.end_with_launcher()
    ranks = join()
    if not ranks.is_first:
        launch_ranks.train_along(
            ranks, lambda words: _load(command, recipe, words).recipe, command.open_task, offline
        )
        return
    let_stdout_fail()
    run = runs.find_run(name or run_name_of(recipe), resume=resume)
    words = ["gpt2", command.task, recipe, "--resume", *(["--name", name] if name else [])]
    found = recipe_of_run(
        run, given, partial(_load, command, recipe), shlex.join(words) if resume else "", say
    )
    loaded, given, moved = found.loaded, found.given, found.moved
    if split := launch_ranks.split_micro_batches(loaded.recipe, ranks.world, resume):
        given += split
        loaded = _load(command, recipe, given + moved)
    with runs.start_run(run, command.task):
        runs.sweep(run)
        checkpoint = resume_point(run, from_, f"gpt2 {command.task} {recipe}", say) if resume else None
        if checkpoint and not from_ and _nothing_to_do(command, checkpoint, loaded.recipe, run):
            ranks.tell(None)
            return
        if checkpoint:
            require_optimizer_state(checkpoint, loaded.recipe)
        stopping = "finishing this step and saving; again to leave at once"
        with (
            command.open_task(loaded.recipe, offline, checkpoint) as (task, origin),
            stop_on_signal(stopping) as stop,
        ):
            ranks.tell(launch_ranks.ToldRun(run.folder, given + moved, checkpoint))
            with waiting(err(), SETTING_UP):
                setup = set_up_training(task, task.recipe, checkpoint, ranks)
            runs.require_room_to_train(run, setup)
            for notice in setup.notices:
                say(f"note: {notice}")

            def record(say: Callable[[str], None]) -> None:
                if from_ and checkpoint:
                    for path in runs.go_back_to(run, checkpoint):
                        say(f"note: put aside: {path}")
                record_session(run, setup, checkpoint, given, origin, sys.argv, say)

            _train(command, setup, run, stop, record, offline)


def find_learning_rate(
    command: TrainCommand, recipe: str, overrides: list[str] | None, offline: bool, has_more: bool
) -> None:
    """Try rising learning rates on a fresh model, save nothing, and print the one to take.

    Raises UsageError if `has_more`: other options were given, which it cannot obey.
    """
    from gpt2cli.training.find_lr import SAFETY, suggested_rate, try_rates
    from gpt2cli.training.setup import set_up_training
    from gpt2cli.ui.progress import track
    from gpt2cli.ui.training import rate_lines, trying

    if has_more:
        raise UsageError(
            "--find-lr stands alone",
            "it trains a fresh model in one process, and saves nothing",
            shlex.join(["gpt2", command.task, recipe, *(overrides or []), "--find-lr"]),
        )
    loaded = _load(command, recipe, list(overrides or []))
    with command.open_task(loaded.recipe, offline, None) as (task, _):
        with waiting(err(), SETTING_UP):
            setup = set_up_training(task, task.recipe, None)
        for notice in setup.notices:
            say(f"note: {notice}")
        tried = list(track(try_rates(setup), err(), trying))
    rate = suggested_rate(tried)
    for line in rate_lines(tried):
        say(line)
    say(
        f"the smoothed loss is lowest at {rate * SAFETY:.1e}; a tenth of that is for a whole training"
        " (Smith 2017; fastai)"
    )
    # What it was found with, and an end of the decay that is not above it.
    words = [word for word in overrides or [] if not word.startswith("optim.lr=")]
    words += [f"optim.min_lr={rate / 10:.1e}"] * (loaded.recipe.optim.min_lr > rate)
    say(f"try it: {shlex.join(['gpt2', command.task, recipe, *words, f'optim.lr={rate:.1e}'])}")
    out().print(f"{rate:.1e}")


def _load(command: TrainCommand, recipe: str, overrides: list[str]) -> "LoadedRecipe":
    from gpt2cli.recipe.loader import load_recipe

    loaded = load_recipe(recipe, overrides)
    if loaded.recipe.task != command.task:
        raise wrong_task(recipe, loaded.recipe.task, command.task)
    return loaded


def _show_plan(command: TrainCommand, loaded: "LoadedRecipe", offline: bool) -> None:
    from gpt2cli.training.setup import set_up_training
    from gpt2cli.ui.dry_run import show_dry_run

    with command.open_task(loaded.recipe, offline, None) as (task, _):
        with waiting(err(), SETTING_UP):
            setup = set_up_training(task, task.recipe, None)
        for notice in setup.notices:
            say(f"note: {notice}")
        show_dry_run(setup, loaded.origins, out())


def _nothing_to_do(command: TrainCommand, checkpoint: Path, recipe: "Recipe", run: "RunDir") -> bool:
    """Whether the run has finished its steps or stopped early, with all results; if so, say so."""
    from gpt2cli.training.retention import settle_best
    from gpt2cli.training.run_record import begin_anew, is_pruned
    from gpt2cli.training.train_state import read_state

    progress, steps, patience = read_state(checkpoint)[0], recipe.optim.steps, recipe.eval.patience
    settle_best(run.folder, progress, recipe.eval.best)
    if not command.is_complete(run, recipe):
        return False
    if progress.step >= steps and progress.evaluated == progress.step:
        more = f"optim.steps={2 * progress.step} continues it"
        if is_pruned(checkpoint):
            more = f"its optimizer state was pruned; a new run: {begin_anew(checkpoint, recipe)}"
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
    record: Callable[[Callable[[str], None]], None],
    offline: bool,
) -> None:
    """Train, with display and log. `record` is called once all options have been validated."""
    from gpt2cli.recipe.schema import SCRATCH
    from gpt2cli.training import loop
    from gpt2cli.training import run_dir as runs
    from gpt2cli.training.events import EvalDone, Stopped
    from gpt2cli.training.run_record import explain_divergence
    from gpt2cli.ui.log_sinks import LoggedRun, log_sinks
    from gpt2cli.ui.plots import plot_losses
    from gpt2cli.ui.training import TrainingView

    recipe, first = setup.recipe, setup.state.step
    stopped = Stopped(first, "")
    start = "the model with random weights" if recipe.init == SCRATCH else "the base"
    with (
        log_sinks(LoggedRun(run.folder, recipe, first, offline)) as log,
        TrainingView(
            recipe.optim.steps, err(), log_every=recipe.log.every, first_step=first, start=start
        ) as view,
        on_sigusr1() as save_now,
        explain_divergence(run, setup),
    ):
        record(view.note)
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
            if isinstance(event, EvalDone) and not setup.optimizer_step.is_sharded:
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
        f" {runtime.device.type} {runtime.precision}, {counted(runtime.threads, 'thread')}"
        + (", compiled" if runtime.compile else "")
    )
