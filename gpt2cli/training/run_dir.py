"""Owns a run's folder: recipe, records, checkpoints with their pointers, and who may write there.

    runs/<name>/ recipe.yaml  run.json  metrics.jsonl  loss.png  samples.txt
                 checkpoints/step-000500/   best -> ...   last -> ...

Nothing here trains. What is in a checkpoint belongs to `weights/folder.py` and `training/state.py`.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli import files, paths
from gpt2cli.checkpoints.folder import verify
from gpt2cli.errors import Gpt2Error, InputError, UsageError
from gpt2cli.training.events import Event, as_record

RECORD_FORMAT = 1
SAMPLE_HEAD = re.compile(r"^--- step (\d+) ---\n", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """Paths of one run."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def record(self) -> Path:
        return self.folder / "run.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.folder / "samples.txt"

    @property
    def plot(self) -> Path:
        return self.folder / "loss.png"

    @property
    def checkpoints(self) -> Path:
        return self.folder / paths.CHECKPOINTS

    @property
    def has_checkpoint(self) -> bool:
        return bool(paths.checkpoints(self.folder))


def find_run(name: str, *, resume: bool) -> Run:
    """The run called `name`, or kept in the folder `name`; new unless `resume`.

    Raises UsageError where a new run would write over an old one, InputError where there is
    nothing to resume.
    """
    run = Run(Path(name) if os.sep in name else paths.runs() / name)
    if resume and not run.record.exists():
        raise InputError(
            f"{run.folder}: there is no run to resume", fix="leave --resume out, or name the run with --name"
        )
    if run.has_checkpoint and not resume:
        raise UsageError(
            f"{run.folder}: holds a run already",
            "a new run never writes over an old one",
            f"add --resume to continue it, or --name {_free_name(run.folder)} for a new one",
        )
    return run


@contextlib.contextmanager
def starting(run: Run) -> Iterator[Callable[[], None]]:
    """Make and lock the run's folder. Gives a function to call once the run has begun.

    A start that fails before that takes back what it made: files, the folder, those above it.
    Raises ResourceError where nothing can be written, or another process has the folder.
    """
    folders = [run.folder, *run.folder.parents]
    made = [folder for folder in folders if not folder.exists()]  # the innermost first
    has_begun = False

    def begin() -> None:
        nonlocal has_begun
        has_begun = True

    try:
        files.require_writable(run.folder)
        before = set(os.listdir(run.folder))
        with files.lock(run.folder):
            try:
                yield begin
            except BaseException:
                if not has_begun:
                    _take_back(run.folder, before)
                raise
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # it may hold the run of another process by now
                folder.rmdir()
        raise


def sweep(run: Run) -> list[Path]:
    """Delete what killed saves left behind. The caller holds the run's lock."""
    return files.sweep(run.folder) + (files.sweep(run.checkpoints) if run.checkpoints.is_dir() else [])


def save_checkpoint(run: Run, step: int, best_step: int, keep: int, write: Callable[[Path], None]) -> Path:
    """Write checkpoint `step` through `write`, then move the pointers, then prune. Returns its path.

    In that order: whenever this is cut short, `last` and `best` name whole checkpoints.
    """
    path = run.checkpoints / f"step-{step:06d}"
    run.checkpoints.mkdir(exist_ok=True)
    with files.new_folder(path) as folder:
        write(folder)
    files.point(run.folder / "last", path)
    if best_step == step:
        files.point(run.folder / "best", path)
    _prune(run, keep)
    return path


def newest_valid_checkpoint(run: Run) -> tuple[Path | None, list[Gpt2Error]]:
    """The newest checkpoint whose every byte is as written, and what is wrong with newer ones.

    Newer, damaged ones are put aside as damaged-step-..., and the pointers leave them.
    Raises InputError where there are checkpoints and none is whole.
    """
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
            f"{run.folder}: none of its {len(problems)} checkpoints is whole",
            problems[0].what,
            "restore one from a copy, or start a new run with --name",
        )
    return None, []


def append(run: Run, event: Event) -> None:
    """Add one event to metrics.jsonl."""
    line = json.dumps(as_record(event), allow_nan=False) + "\n"
    with open(run.metrics, "a", encoding="utf-8") as file:
        file.write(line)


def add_sample(run: Run, step: int, text: str) -> None:
    """Add what the model wrote at `step` to samples.txt."""
    with open(run.samples, "a", encoding="utf-8") as file:
        file.write(_sample(step, f"{text}\n\n"))


def cut_records(run: Run, step: int) -> None:
    """Make metrics.jsonl and samples.txt end where `step` was saved; what came later never happened.

    A step of -1 empties them.
    """
    kept = [line for line, record in _records(run) if record["step"] <= step]
    files.write_file(run.metrics, "".join(kept))
    if run.samples.exists():
        _, *parts = SAMPLE_HEAD.split(run.samples.read_text(encoding="utf-8", errors="replace"))
        early = zip(parts[::2], parts[1::2], strict=True)  # step, text
        files.write_file(
            run.samples, "".join(_sample(int(at), text) for at, text in early if int(at) <= step)
        )


def write_record(run: Run, session: dict[str, Any], *, resumed: bool) -> None:
    """Write a session (a start, or another resume) into run.json."""
    sessions = _sessions(run) if resumed else []
    files.write_json(run.record, {"format": RECORD_FORMAT, "sessions": [*sessions, session]})


def recorded_overrides(run: Run) -> list[str]:
    """The overrides of the newest session; a resume repeats them."""
    sessions = _sessions(run)
    return [str(item) for item in sessions[-1].get("overrides", [])] if sessions else []


def _sample(step: int, text: str) -> str:
    """One entry of samples.txt; SAMPLE_HEAD finds its first line again."""
    return f"--- step {step} ---\n{text}"


def _records(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line, record) of metrics.jsonl; a torn last line, from a kill in mid-write, is left out."""
    if not run.metrics.exists():
        return
    for line in run.metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int) and line.endswith("\n"):
            yield line, record


def _sessions(run: Run) -> list[dict[str, Any]]:
    if not run.record.exists():
        return []
    try:
        sessions = json.loads(run.record.read_text(encoding="utf-8"))["sessions"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{run.record}: is not the record of a run", fix=f"rm {run.record}") from None
    return list(sessions)


def _prune(run: Run, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and those that a pointer names."""
    pointed = {(run.folder / name).resolve() for name in ("best", "last")}
    for path in paths.checkpoints(run.folder)[:-keep]:
        if path.resolve() not in pointed:
            # Renamed first: a deletion cut short must leave no half checkpoint under its name.
            files.discard(path)


def _put_aside(run: Run, whole: Path) -> None:
    """Rename the damaged checkpoints newer than `whole`, and let no pointer name one of them."""
    found = paths.checkpoints(run.folder)
    for path in found[found.index(whole) + 1 :]:
        aside = path.with_name(f"damaged-{path.name}")
        if aside.exists():
            files.discard(aside)
        path.rename(aside)
    for name in ("last", "best"):
        if not (run.folder / name).exists():
            files.point(run.folder / name, whole)


def _take_back(folder: Path, before: set[str]) -> None:
    """Delete what is in `folder` now and was not `before`: the lock's file too, which the caller holds."""
    for name in set(os.listdir(folder)) - before:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _free_name(folder: Path) -> str:
    number = 2
    while (folder.parent / f"{folder.name}-{number}").exists():
        number += 1
    return f"{folder.name}-{number}"
