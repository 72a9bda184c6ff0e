"""Removing runs and models, and the optimizer state of finished runs; refused where something needs them."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2cli import files, locks, paths
from gpt2cli.errors import UsageError
from gpt2cli.paths import TENSORS
from gpt2cli.training.retention import runs_that_need
from gpt2cli.training.runs_on_disk import OF_A_START, RunEntry, find_entries

_OF_A_RUN = {
    *OF_A_START,
    *paths.POINTERS,
    *(paths.RESPONSES, "report.json", "scores.json", "confusion.png"),
}


@dataclass(frozen=True)
class Need:
    """A run or model, `path`, that needs something about to be removed, and why."""

    path: Path
    why: str
    is_vital: bool  # `path` cannot be used without


def require_removable(entries: Sequence[RunEntry], force: bool = False) -> None:
    """Raise UsageError for what gpt2 did not write, is in use, or is needed by something that stays.

    With `force`, a whole model may lose the run that it started from; an adapter never loses its base.
    """
    going = {entry.folder.resolve() for entry in entries}
    others = [*find_entries(*_roots(entries))]
    for entry in entries:
        if not entry.is_ours:
            raise UsageError(
                f"{entry.folder}: gpt2 did not write it",
                entry.problem or "it has no manifest.json",
                f"if it is yours: rm -r {shlex.quote(str(entry.folder))}",
            )
        if locks.is_locked(entry.folder):
            with locks.lock(entry.folder):  # raises: it is in use
                pass
        for need in _needs(entry, others):
            if need.path.resolve() in going or (force and not need.is_vital):
                continue
            words = ["gpt2", "runs", "rm", *(str(one.folder) for one in entries)]
            needing = paths.shown_path(need.path)
            raise UsageError(
                f"{entry.folder}: {needing} needs it",
                need.why,
                shlex.join([*words, needing])
                + ("" if need.is_vital else f", or: {shlex.join([*words, '--force'])}"),
            )


def remove(entry: RunEntry) -> None:
    """Delete the folder, and the link that names it. The caller has asked `require_removable`."""
    folder = entry.folder.resolve()
    with locks.lock(folder):
        files.discard(folder)
    if entry.folder.is_symlink():
        entry.folder.unlink()


def prunable(entry: RunEntry) -> list[tuple[Path, int]]:
    """The files of a finished run's optimizer state, with their bytes. Raises UsageError for another run."""
    if entry.kind != "run" or entry.state != "finished":
        is_begun = entry.state in ("running", "stopped", "diverged")
        recipe = shlex.quote(str(entry.folder / paths.RECIPE))
        raise UsageError(
            f"{entry.folder}: is not a finished run",
            "it is a model, which has no optimizer state"
            if entry.kind == "model"
            else f"it is {entry.state}",
            f"gpt2 {entry.task} {recipe} --resume" if is_begun and entry.task else "gpt2 runs",
        )
    found = [checkpoint.path / TENSORS for checkpoint in entry.checkpoints if checkpoint.is_resumable]
    return [(path, path.stat().st_size) for path in found]


def prune(entry: RunEntry) -> Iterator[tuple[Path, int]]:
    """Delete what `prunable` lists, file by file; the checkpoints stay loadable.

    Raises ResourceError while another process writes in the run.
    """
    from gpt2cli.checkpoints.folder import drop_from_manifest

    with locks.lock(entry.folder):
        for path, n_bytes in prunable(entry):
            drop_from_manifest(path.parent, path.name)  # first: cut short, no manifest names a missing file
            path.unlink()
            yield path, n_bytes


def foreign_files(entry: RunEntry) -> list[str]:
    """Names at the top of a run's folder of files that gpt2 does not write there."""
    if entry.kind != "run":
        return []
    names = sorted(path.name for path in entry.folder.iterdir())
    return [name for name in names if name not in _OF_A_RUN and name[0] != "." and "judgements" not in name]


def _roots(entries: Sequence[RunEntry]) -> list[Path]:
    """The folders whose runs and models may need one of the entries: beside each, in ./runs and under
    GPT2_HOME.
    """
    roots = [entry.folder.resolve().parent for entry in entries]
    roots += [paths.runs(), *([paths.models()] if paths.has_home() else [])]
    return list(dict.fromkeys(root.resolve() for root in roots))


def _needs(entry: RunEntry, others: Sequence[RunEntry]) -> Iterator[Need]:
    folder = entry.folder.resolve()
    for checkpoint in entry.checkpoints:
        for run in runs_that_need(checkpoint.path):
            yield Need(run, f"its adapters belong to the weights of {checkpoint.path.name}", is_vital=True)
    for other in others:
        if other.folder.resolve() == folder:
            continue
        if any(base.resolve() == folder or folder in base.resolve().parents for base in other.bases):
            yield Need(other.folder, "its adapters belong to these weights", is_vital=True)
        elif any(start == folder or folder in start.parents for start in other.starts):
            yield Need(other.folder, f"it began with these weights: init is {other.base}", is_vital=False)
