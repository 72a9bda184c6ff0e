"""The folder of a run: its recipe and logs, its checkpoints and their pointers.

    runs/<name>/ recipe.yaml  run.json  metrics.jsonl  loss.png  samples.txt
                 checkpoints/step-000500/   best -> ...   last -> ...

A checkpoint is a model folder (`checkpoints/folder.py`) plus the two files of `train_state.py`;
`retention.py` says which ones stay.
"""

import contextlib
import itertools
import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli import files, locks, paths
from gpt2cli.checkpoints.finite import require_finite
from gpt2cli.checkpoints.folder import read_manifest, verify, write_manifest
from gpt2cli.disk_space import FULL, full_disk, require_room
from gpt2cli.errors import DivergedError, Gpt2Error, InputError, UsageError
from gpt2cli.recipe.loader import dump_recipe
from gpt2cli.recipe.schema import SCRATCH
from gpt2cli.training import metrics_log, retention
from gpt2cli.training.estimate import checkpoint_bytes
from gpt2cli.training.events import EvalDone, Event, to_json
from gpt2cli.training.retention import runs_that_need
from gpt2cli.training.run_json import RECORD_FORMAT, read_sessions
from gpt2cli.training.train_state import Computing, moments_of, write_state

if TYPE_CHECKING:
    from gpt2cli.training.setup import TrainingSetup

# An entry of samples.txt, up to the header of the next one, and its step.
SAMPLE = re.compile(r"(^--- step (\d+) ---\n.*?)(?=^--- step \d+ ---\n|\Z)", re.MULTILINE | re.DOTALL)


class RunDir:
    """The paths of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.recipe = folder / paths.RECIPE
        self.record = folder / paths.RUN_RECORD
        self.metrics = folder / paths.METRICS
        self.samples = folder / paths.SAMPLES
        self.plot = folder / paths.PLOT
        self.checkpoints = folder / paths.CHECKPOINTS


def find_run(name: str, *, resume: bool) -> RunDir:
    """The run called `name`, or in the folder `name`; a new one unless `resume`.

    Raises UsageError if a new run would overwrite an old one or its name means something else, InputError
    if there is nothing to resume, NewerFormatError for the run of a later version.
    """
    run = RunDir(paths.expand(name) if os.sep in name else paths.runs() / name)
    if resume and not run.record.exists():
        raise InputError(
            f"{run.folder}: there is no run to resume", "--name says which run", "leave out --resume"
        )
    if paths.checkpoints(run.folder) and not resume:
        others = (run.folder.with_name(f"{run.name}-{number}") for number in itertools.count(2))
        free = next(other.name for other in others if not other.exists())
        raise UsageError(
            f"{run.folder}: already holds a run",
            f"a new run never overwrites an old one; --name {free} makes another",
            "--resume",
        )
    if not resume:
        _require_name(name.rstrip(os.sep).rpartition(os.sep)[2])
        with contextlib.suppress(InputError):  # a damaged record of a run without a checkpoint: replaced
            read_sessions(run.folder)
    return run


def _require_name(name: str) -> None:
    """Raise UsageError for a name that means something else to the commands that take a model."""
    why, other = "", f"my-{name}"
    if not name.lstrip("."):
        why, other = "it is a folder that is there, not the name of a run", "my-run"
    elif name.startswith("."):
        why, other = "a hidden folder is not found as a run", name.lstrip(".")
    elif size := paths.canonical_size(name):
        why = f"it means OpenAI's model {size}"
    elif name in (paths.NEWEST, SCRATCH):
        why = f"init={name} means something else"
    elif name == paths.CHECKPOINTS:
        why = "it is the folder of a run's checkpoints"
    if why:
        raise UsageError(f"{name}: cannot be the name of a run", why, f"--name {shlex.quote(other)}")


@contextlib.contextmanager
def start_run(run: RunDir, task: str) -> Iterator[None]:
    """Make and lock the run's folder. `task` is the recipe's: the command that would continue it.

    A start that fails before run.json exists removes what it made: files, the folder, its parents.
    Raises ResourceError if the folder is not writable, or locked by another process, or if the disk is
    full by now.
    """
    folders = [run.folder, *run.folder.parents]
    made = [folder for folder in folders if not folder.exists()]  # innermost first
    try:
        files.require_writable(run.folder)
        before = set(os.listdir(run.folder))
        with locks.lock(run.folder):
            try:
                yield
            except BaseException as error:
                if not run.record.exists():
                    _remove_new(run.folder, before)
                if isinstance(error, OSError) and error.errno in FULL:
                    path = Path(str(error.filename or ""))
                    if run.folder in path.parents:  # and not, say, where stdout goes
                        raise full_disk(path, _room_fix(run, task)) from error
                raise
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # it may hold the run of another process by now
                folder.rmdir()
        raise


def sweep(run: RunDir) -> None:
    """Delete the leftovers of killed saves. The caller holds the run's lock."""
    files.sweep(run.folder)
    if run.checkpoints.is_dir():
        files.sweep(run.checkpoints)


def require_room_to_train(run: RunDir, setup: "TrainingSetup") -> None:
    """Raise ResourceError, before the first step, unless the disk takes all checkpoints that the rest of
    the run will hold at once: the newest ones, the best one, and one more while it is written.
    """
    n_held, n_bytes = disk_need(setup)
    passing = [path for path in paths.checkpoints(run.folder) if not runs_that_need(path)]
    n_more = max(1, min(n_held, setup.recipe.checkpoint.keep + 2 - len(passing)))
    require_room(run.checkpoints, n_more * n_bytes, _room_fix(run, setup.recipe.task))


def disk_need(setup: "TrainingSetup") -> tuple[int, int]:
    """The most checkpoints that the rest of a run holds at once, in an empty folder, and the bytes of one."""
    recipe, n_left = setup.recipe, setup.recipe.optim.steps - setup.state.step
    n_saves = math.ceil(n_left / recipe.eval.every)
    if recipe.checkpoint.every:
        n_saves += math.ceil(n_left / recipe.checkpoint.every)
    return max(1, min(n_saves, recipe.checkpoint.keep + 2)), _checkpoint_bytes(setup)


def save_checkpoint(
    run: RunDir, setup: "TrainingSetup", notice: Callable[[str], None] = lambda sentence: None
) -> Path:
    """Write the checkpoint of the current step, then move the pointers, then prune. Returns its path.

    In that order, so that `last` and `best` name complete checkpoints whenever this is cut short.
    Raises DivergedError for non-finite weights, so that pruning never deletes a good checkpoint for a
    bad one.
    """
    state, recipe = setup.state, setup.recipe
    diverged = DivergedError(
        f"training diverged: the weights at step {state.step} are not finite",
        "the learning rate is far too high",
        "a smaller learning rate",
    )
    for parameter in setup.model.parameters():
        require_finite(parameter, diverged)
    path = run.checkpoints / f"step-{state.step:06d}"
    run.checkpoints.mkdir(exist_ok=True)
    require_room(path, _checkpoint_bytes(setup), _room_fix(run, recipe.task))
    with files.new_folder(path) as folder:
        hashes = setup.task.write_model(folder, setup.model, dump_recipe(recipe))
        step, computing = setup.optimizer_step, Computing(setup.runtime.threads, setup.ranks.world)
        moments, scaler = step.whole(moments_of(step.optimizer, step.names)), step.scaler.state_dict()
        hashes |= write_state(folder, moments, state, setup.identity, scaler, computing)
        write_manifest(folder, hashes)
    files.point(run.folder / "last", path)
    if state.kept_step == state.step:
        files.point(run.folder / "best", path)
    retention.prune(run.folder, recipe.checkpoint.keep, notice)
    return path


def newest_valid_checkpoint(run: RunDir) -> tuple[Path | None, list[Gpt2Error]]:
    """The newest checkpoint that matches its hashes, and the errors of the newer, damaged ones.

    Damaged ones are renamed damaged-step-..., and no pointer names them any more.
    Raises InputError if there are checkpoints and all are damaged, NewerFormatError if a later version
    of gpt2cli wrote one of them: nothing is renamed then.
    """
    _refuse_newer(run)
    problems: list[Gpt2Error] = []
    for path in reversed(paths.checkpoints(run.folder)):
        try:
            verify(path)
        except InputError as problem:
            problems.append(problem)
        else:
            if problems:
                _put_aside(run, path)
            return path, problems
    if problems:
        raise InputError(
            f"{run.folder}: all of its {len(problems)} checkpoints are damaged",
            problems[0].what,
            "restore one from a backup, or start a new run: --name NAME",
        )
    return None, []


def named_checkpoint(run: RunDir, name: str) -> Path:
    """The checkpoint called `name`: best, last or step-N, verified.

    Raises UsageError with the names that there are, InputError if it is damaged, NewerFormatError as
    `newest_valid_checkpoint`: the later ones would be renamed.
    """
    _refuse_newer(run)
    number = name.removeprefix("step-")
    path = run.checkpoints / f"step-{int(number):06d}" if number.isdecimal() else run.folder / name
    if not path.is_dir() or not (number.isdecimal() or name in paths.POINTERS):
        names = [*(pointer for pointer in paths.POINTERS if (run.folder / pointer).is_dir())]
        names += [checkpoint.name for checkpoint in paths.checkpoints(run.folder)]
        raise UsageError(
            f"--from {name}: {run.folder} has no such checkpoint",
            f"there are {', '.join(names)}" if names else "there is none",
            f"--from {names[0]}" if names else "leave out --resume",
        )
    verify(path)
    return run.checkpoints / path.resolve().name


def go_back_to(run: RunDir, checkpoint: Path) -> list[Path]:
    """Make `checkpoint` the newest: rename the later ones abandoned-step-..., which are returned.

    `retention.settle_best` follows, with the training state of the checkpoint.
    """
    found = paths.checkpoints(run.folder)
    aside = _rename_all(found[found.index(checkpoint) + 1 :], "abandoned")
    files.point(run.folder / "last", checkpoint)
    return aside


def append_event(run: RunDir, event: Event) -> None:
    """Append one event to metrics.jsonl."""
    line = json.dumps(to_json(event), allow_nan=False) + "\n"
    with files.naming(run.metrics), open(run.metrics, "a", encoding="utf-8") as file:
        file.write(line)


def add_sample(run: RunDir, step: int, text: str) -> None:
    """Append the text that the model generated at `step` to samples.txt."""
    with files.naming(run.samples), open(run.samples, "a", encoding="utf-8") as file:
        file.write(f"--- step {step} ---\n{text}\n\n")


def last_sample(run: RunDir) -> str:
    """The newest text in samples.txt, its prompt included; "" without one."""
    if not run.samples.exists():
        return ""
    samples = SAMPLE.findall(run.samples.read_text(encoding="utf-8", errors="replace"))
    return samples[-1][0].partition("\n")[2].removesuffix("\n\n") if samples else ""


def truncate_records(run: RunDir, step: int) -> None:
    """Cut metrics.jsonl and samples.txt off after `step`, the step that was saved; -1 empties them."""
    metrics_log.cut_after(run.metrics, step)
    if run.samples.exists():
        samples = SAMPLE.findall(run.samples.read_text(encoding="utf-8", errors="replace"))
        files.write_file(run.samples, "".join(text for text, at in samples if int(at) <= step))


def write_record(run: RunDir, session: dict[str, Any], *, resumed: bool) -> None:
    """Record a session, the start or a resume, in run.json."""
    sessions = read_sessions(run.folder) if resumed else []
    files.write_json(run.record, {"format": RECORD_FORMAT, "sessions": [*sessions, session]})


def record_divergence(run: RunDir, step: int) -> None:
    """Note in run.json that the newest session diverged: no resume begins at its weights by itself."""
    *before, newest = read_sessions(run.folder)
    files.write_json(
        run.record, {"format": RECORD_FORMAT, "sessions": [*before, newest | {"diverged_at": step}]}
    )


def diverged_at(run: RunDir) -> int | None:
    """The step at which the newest session diverged, if it did."""
    sessions = read_sessions(run.folder)
    step = sessions[-1].get("diverged_at") if sessions else None
    return step if isinstance(step, int) else None


def recorded_overrides(run: RunDir) -> list[str]:
    """The overrides of the newest session; a resume applies them again."""
    sessions = read_sessions(run.folder)
    return list(sessions[-1].get("overrides", [])) if sessions else []


def started_in(run: RunDir) -> list[tuple[str, str]]:
    """The working directory and the run's folder of each session that recorded them, both absolute, oldest
    first.
    """
    found = [(session.get("folder"), session.get("run")) for session in read_sessions(run.folder)]
    return [(str(folder), str(run_was)) for folder, run_was in found if folder and run_was]


def evaluations(run: RunDir) -> list[dict[str, Any]]:
    """The records of all evaluations in metrics.jsonl."""
    return metrics_log.records_of(run.metrics, EvalDone.__name__)


def _refuse_newer(run: RunDir) -> None:
    """Raise NewerFormatError if a later version wrote a checkpoint: intact, it must not count as damaged."""
    for path in reversed(paths.checkpoints(run.folder)):
        with contextlib.suppress(InputError):  # damaged: `verify` says so
            read_manifest(path)


def _checkpoint_bytes(setup: "TrainingSetup") -> int:
    return checkpoint_bytes(setup.model, setup.recipe, setup.task.tokenizer.n_vocab)


def _room_fix(run: RunDir, task: str) -> str:
    if run.record.exists():
        return f"free some space, then: gpt2 {task} {shlex.quote(str(run.recipe))} --resume"
    return "free some space, or add checkpoint.keep=1, or another disk: --name /PATH/NAME"


def _put_aside(run: RunDir, whole: Path) -> None:
    """Rename the damaged checkpoints newer than `whole`, and point `last` and `best` elsewhere."""
    found = paths.checkpoints(run.folder)
    _rename_all(found[found.index(whole) + 1 :], "damaged")
    for name in paths.POINTERS:
        if not (run.folder / name).exists():
            files.point(run.folder / name, whole)


def _rename_all(found: list[Path], prefix: str) -> list[Path]:
    """The new paths. An older checkpoint of such a name goes, unless adapters need it."""
    renamed = []
    for path in found:
        aside = path.with_name(f"{prefix}-{path.name}")
        while runs_that_need(aside):
            aside = aside.with_name(f"{aside.name}-older")
        if aside.exists():
            files.discard(aside)
        renamed.append(path.rename(aside))
    return renamed


def _remove_new(folder: Path, before: set[str]) -> None:
    """Delete what is in `folder` now and was not `before`: the lock's file too, which the caller holds."""
    for name in set(os.listdir(folder)) - before:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
