"""Retention: which checkpoint of a run is the best, and which ones stay when new ones are saved.

One that the adapters of another run need stays: `pins.py`.
"""

from collections.abc import Callable
from pathlib import Path

from gpt2cli import files, paths
from gpt2cli.paths import shown_path
from gpt2cli.training import metrics_log
from gpt2cli.training.events import EvalDone
from gpt2cli.training.pins import NEEDED_BY, runs_that_need
from gpt2cli.training.train_state import TrainState


def settle_best(run: Path, state: TrainState, best_by: str) -> None:
    """Make `state`, that of the newest checkpoint, and the pointer `best` agree with the disk.

    The best checkpoint may be gone: put aside because the run went back, damaged, or pruned when the
    run was further. `best_by`, the recipe's `eval.best`, may have changed. Both are decided again by
    the evaluations in metrics.jsonl.
    """
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
