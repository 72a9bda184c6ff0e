"""Retention: which checkpoint of a run is the best, and which ones stay when new ones are saved.

One that is the base of another run's adapters is pinned: it stays for as long as one of them is there.
`needed_by.json` in its folder names those runs. Imports no torch.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2cli import files, paths
from gpt2cli.errors import Gpt2Error, InputError
from gpt2cli.json_files import read_json_object
from gpt2cli.paths import ADAPTER, BASE, shown_path
from gpt2cli.training import metrics_log
from gpt2cli.training.events import EvalDone

if TYPE_CHECKING:
    from gpt2cli.training.train_state import TrainState

NEEDED_BY = "needed_by.json"
NEEDED_BY_FORMAT = 1


def settle_best(run: Path, state: "TrainState", best_by: str) -> None:
    """Make `state`, that of the newest checkpoint, and the pointer `best` agree with the disk.

    The best checkpoint may be gone: put aside because the run went back, damaged, or pruned when the
    run was further. `best_by`, the recipe's `eval.best`, may have changed. Both are decided again by
    the evaluations in metrics.jsonl.
    """
    from gpt2cli.training.train_state import TrainState  # loads torch

    found = {int(path.name.removeprefix("step-")): path for path in paths.checkpoints(run)}
    if state.best_by != best_by or state.kept_step not in found:
        evaluations = metrics_log.records_of(run / "metrics.jsonl", EvalDone.__name__)
        measured = [one for one in evaluations if one["step"] <= state.step]
        if state.best_by != best_by:
            state.best_by, state.best_step, state.best_value, state.without_gain = best_by, -1, None, 0
            for one in measured:
                state.add_evaluation(one["step"], one["loss"], one["metrics"])
        kept = TrainState(best_by=best_by)
        for one in measured:
            if one["step"] in found:
                kept.add_evaluation(one["step"], one["loss"], one["metrics"])
        state.keep(kept.best_step, kept.best_value)
    if state.kept_step in found:
        files.point(run / "best", found[state.kept_step])
    elif found and (run / "best").is_symlink() and not (run / "best").exists():
        files.point(run / "best", found[max(found)])


def prune(run: Path, keep: int, notice: Callable[[str], None]) -> None:
    """Delete all but the newest `keep` checkpoints, those that `best` or `last` name, and pinned ones.

    `notice` receives a sentence about each pinned one that this concerns.
    """
    pointed = {(run / name).resolve() for name in paths.POINTERS}
    for path in paths.checkpoints(run)[:-keep]:
        if path.resolve() in pointed:
            continue
        step = f"step {int(path.name.removeprefix('step-'))}"
        if needing := runs_that_need(path):
            notice(f"{step} is kept: it is the base of {', '.join(map(shown_path, needing))}")
            continue
        if (path / NEEDED_BY).exists():
            notice(f"{step} goes: no adapter that needs it is there any more")
        # Renames first: an interrupted deletion must leave no partial checkpoint under this name.
        files.discard(path)


def pin(checkpoint: Path, run: Path) -> None:
    """Note in a checkpoint that the adapters of `run` need its weights.

    Raises InputError if the checkpoint has been pruned meanwhile; OSError if it cannot be written.
    """
    if not checkpoint.is_dir():
        raise InputError(
            f"{checkpoint}: is gone", "its run has pruned it meanwhile", "start again: init takes another one"
        )
    there, place = runs_that_need(checkpoint), Path(os.path.abspath(run))
    noted = [
        {"path": str(path), "relative": os.path.relpath(path, checkpoint.resolve())}
        for path in dict.fromkeys([*there, place])
    ]
    files.write_json(checkpoint / NEEDED_BY, {"format": NEEDED_BY_FORMAT, "runs": noted})


def runs_that_need(checkpoint: Path) -> list[Path]:
    """The runs whose adapters need a checkpoint and which are still there, wherever the two have moved
    together. A note that cannot be read is one of them itself: its checkpoint stays.
    """
    note = checkpoint / NEEDED_BY
    if not note.exists():
        return []
    try:
        noted = [
            (Path(one["path"]), checkpoint.resolve() / one["relative"])
            for one in read_json_object(note)["runs"]
        ]
    except (Gpt2Error, KeyError, TypeError):
        return [note]
    found = []
    for path, relative in noted:
        there = [place for place in (path, Path(os.path.normpath(relative))) if paths.is_run(place)]
        found += there[:1] or _renamed(path.parent, checkpoint)
    return list(dict.fromkeys(found))


def _renamed(folder: Path, checkpoint: Path) -> list[Path]:
    """The runs in `folder` whose newest adapter has `checkpoint` as its base."""
    found = []
    for run in sorted(folder.iterdir()) if folder.is_dir() else []:
        for newest in paths.checkpoints(run)[-1:]:
            for record in (newest / BASE, newest / ADAPTER / BASE):
                with contextlib.suppress(InputError):  # no adapter
                    if read_json_object(record).get("path") == str(checkpoint.resolve()):
                        found.append(run)
    return found
