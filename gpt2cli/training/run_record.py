"""The start of a training run and what its folder tells: its name, its recipe and where it resumes,
run.json and recipe.yaml, a divergence.

Notices are sentences for the user.
"""

import contextlib
import json
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2cli import __version__, files, paths
from gpt2cli.checkpoints.folder import read_manifest
from gpt2cli.errors import DivergedError, Gpt2Error, InputError, UsageError
from gpt2cli.paths import TENSORS, shown_path
from gpt2cli.recipe.loader import LoadedRecipe, dump_recipe, load_recipe
from gpt2cli.recipe.schema import Recipe
from gpt2cli.runtime import describe_machine
from gpt2cli.training.base_model import newest_base
from gpt2cli.training.moved_paths import absolute_paths, moved_paths
from gpt2cli.training.open_task import Notice
from gpt2cli.training.optimizer_step import learning_rate
from gpt2cli.training.retention import pin, settle_best
from gpt2cli.training.run_dir import (
    RunDir,
    diverged_at,
    named_checkpoint,
    newest_valid_checkpoint,
    record_divergence,
    recorded_overrides,
    truncate_records,
    write_record,
)
from gpt2cli.training.setup import TrainingSetup


def run_name_of(recipe: str) -> str:
    """verdict for recipes/verdict.yaml; the run's path for the recipe.yaml of a run."""
    path = paths.expand(recipe)
    if path.name == paths.RECIPE and paths.is_run(path.parent):
        return str(path.parent.resolve())
    return path.stem


@dataclass(frozen=True)
class RunRecipe:
    """A run's recipe, the overrides that its record keeps, and those that say where its files are now."""

    loaded: LoadedRecipe
    given: list[str]
    moved: list[str]


def recipe_of_run(
    run: RunDir,
    given: Sequence[str],
    load: Callable[[list[str]], LoadedRecipe],
    resume_command: str,
    notice: Notice,
) -> RunRecipe:
    """The recipe with the overrides `given`; on a resume they follow the recorded ones. `load` reads it with
    overrides; `resume_command` is the command line, and empty for a new run.

    Raises as `load`, and InputError for a file of the recipe that is gone.
    """
    given, moved = list(given), list[str]()
    if resume_command:  # init=newest is in the record as a path; now the newest would be this run
        typed = absolute_paths([word for word in given if word not in _INIT_NEWEST])
        given = recorded_overrides(run) + typed
        moved = moved_paths(run, load(given).recipe, resume_command)
    loaded = load(given + moved)
    if newest := _newest_init(loaded.recipe, notice):
        given.append(f"init={newest}")
        loaded = load(given)
    return RunRecipe(loaded, given, moved)


_INIT_NEWEST = (f"init={paths.NEWEST}", f'init="{paths.NEWEST}"')


def _newest_init(recipe: Recipe, notice: Notice) -> str:
    """The path that `init: newest` means now, as YAML; "" for another init."""
    if recipe.init != paths.NEWEST:
        return ""
    folder = newest_base()
    notice(f"init: the newest model is {folder}")
    return json.dumps(str(folder.absolute()))


def resume_point(run: RunDir, from_: str | None, command: str, notice: Notice) -> Path | None:
    """The checkpoint that was asked for, or the newest intact one; says which newer ones are damaged.

    Raises UsageError for a run that diverged, whose newest checkpoint may be wrecked already.
    """
    if from_:
        return named_checkpoint(run, from_)
    if (step := diverged_at(run)) is not None and paths.checkpoints(run.folder):
        raise UsageError(
            f"{run.folder}: the run diverged at step {step}",
            "its newest checkpoint may be close to that; --from says where to go back to",
            f"{command} --resume --from {best_or_last(run)} optim.lr=VALUE",
        )
    checkpoint, problems = newest_valid_checkpoint(run)
    for problem in problems:
        notice(f"warning: {problem.what}; going back to {checkpoint.name if checkpoint else 'the start'}")
    return checkpoint


def require_optimizer_state(checkpoint: Path, recipe: Recipe) -> None:
    """Raise InputError if `gpt2 runs prune` has dropped what a resume needs."""
    if is_pruned(checkpoint):
        raise InputError(
            f"{checkpoint}: its optimizer state is gone",
            "gpt2 runs prune dropped it, and a run does not continue without; the model is whole",
            begin_anew(checkpoint, recipe),
        )


def is_pruned(checkpoint: Path) -> bool:
    return TENSORS not in read_manifest(checkpoint)


def begin_anew(checkpoint: Path, recipe: Recipe) -> str:
    """The commands for a new run that begins with the weights of a pruned one; a classifier, at its base."""
    run = checkpoint.parent.parent
    folder, again = shlex.quote(shown_path(run.absolute())), f"{run.name}-2"
    start = f"gpt2 {recipe.task} {folder}/recipe.yaml --name {shlex.quote(again)}"
    if recipe.task == "finetune-classify":
        return start
    if recipe.train == "lora":
        merged = shlex.quote(f"{shown_path(run.absolute())}-merged")
        return f"gpt2 convert {folder} --merge --out {merged} && {start} init={merged}"
    return f"{start} init={folder}"


def best_or_last(run: RunDir) -> str:
    return "best" if (run.folder / "best").is_dir() else "last"


def record_session(
    run: RunDir,
    setup: TrainingSetup,
    checkpoint: Path | None,
    given: list[str],
    origin: dict[str, object],
    command: Sequence[str],
    notice: Notice,
) -> None:
    """Settle which checkpoint is the best, and write recipe.yaml and run.json; on a resume, say what changed
    and cut the log after the checkpoint.
    """
    settle_best(run.folder, setup.state, setup.recipe.eval.best)
    text, step = dump_recipe(setup.recipe), setup.state.step
    if checkpoint and run.recipe.exists():
        before = run.recipe.read_text(encoding="utf-8").splitlines()
        for line in text.splitlines():
            if line not in before:
                notice(f"note: changed since the run began: {line.strip()}")
        _note_changes(run, setup, notice)
    run.checkpoints.mkdir(exist_ok=True)
    files.write_file(run.recipe, text)
    truncate_records(run, step if checkpoint else -1)
    write_record(
        run,
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": list(command),
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
    _pin_base(run, setup, notice)


def _note_changes(run: RunDir, setup: TrainingSetup, notice: Notice) -> None:
    """Note the effects of a changed recipe on a resumed run that its values do not show."""
    try:
        before = load_recipe(str(run.recipe)).recipe
    except Gpt2Error:  # an older version's
        return
    now, step = setup.recipe, setup.state.step
    old, new = learning_rate(before.optim, step), learning_rate(now.optim, step)
    if step < now.optim.steps and not math.isclose(old, new):
        notice(f"note: the learning rate goes on at {new:.1e}; with the recipe before it would be {old:.1e}")
    if before.batch != now.batch and setup.model.config.dropout:
        notice("note: another micro_batch draws other dropout masks: the same samples, not the same bits")


def _pin_base(run: RunDir, setup: TrainingSetup, notice: Notice) -> None:
    """Pin the base of adapters, useless without it, where it is a checkpoint of another run."""
    named = setup.task.base.folder
    if setup.recipe.train != "lora" or named is None:
        return
    base = named.resolve()  # it may be a pointer: runs/base/best
    if not paths.is_checkpoint(base):
        return
    owner, step = shown_path(base.parent.parent), int(base.name.removeprefix("step-"))
    try:
        pin(base, run.folder)
        notice(f"note: {owner} keeps step {step}: it is the base of these adapters")
    except OSError as error:
        notice(f"warning: {base} cannot be pinned ({error.strerror}); the adapters are lost if it goes")


@contextlib.contextmanager
def explain_divergence(run: RunDir, setup: TrainingSetup) -> Iterator[None]:
    """Record a divergence, and propose the command that goes back to before it."""
    try:
        yield
    except DivergedError as error:
        record_divergence(run, setup.state.step)
        start = f"gpt2 {setup.recipe.task} {shlex.quote(str(run.recipe))}"
        optim = setup.recipe.optim
        lr = f"optim.lr={optim.lr / 3:.2g}"
        lr += f" optim.min_lr={optim.lr / 30:.2g}" if optim.min_lr > optim.lr / 3 else ""
        if paths.checkpoints(run.folder):
            fix = f"{start} --resume --from {best_or_last(run)} {lr}"
        else:
            fix = f"{start} {lr}"  # nothing is saved yet: from the start
        raise DivergedError(error.what, f"{error.why}; a smaller learning rate may help", fix) from None
