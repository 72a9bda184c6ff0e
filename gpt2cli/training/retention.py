"""Retention: which checkpoint of a run is the best, and which ones stay when new ones are saved."""

from pathlib import Path

from gpt2cli import files, paths
from gpt2cli.training import metrics_log
from gpt2cli.training.events import EvalDone
from gpt2cli.training.train_state import TrainState

POINTERS = ("best", "last")


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


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and those that `best` or `last` name."""
    pointed = {(run / name).resolve() for name in POINTERS}
    for path in paths.checkpoints(run)[:-keep]:
        if path.resolve() not in pointed:
            # Renames first: an interrupted deletion must leave no partial checkpoint under this name.
            files.discard(path)
