"""`gpt2 finetune-classify`: fine-tunes a classifier, and reports its scores on the test split."""

import contextlib
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.train_command import TrainCommand, train_function
from gpt2cli.errors import InputError, counted
from gpt2cli.paths import best_checkpoint
from gpt2cli.ui.console import err, say

if TYPE_CHECKING:
    from pathlib import Path

    from gpt2cli.recipe.schema import ClassifyRecipe
    from gpt2cli.training.classify_task import ClassifyTask
    from gpt2cli.training.run_dir import RunDir
    from gpt2cli.training.setup import TrainingSetup

REPORT, PICTURE = "report.json", "confusion.png"
AT_ONCE = 512  # test texts per batch; a signal is noticed between two


def _open_task(
    recipe: "ClassifyRecipe", offline: bool, checkpoint: Path | None
) -> "contextlib.AbstractContextManager[tuple[ClassifyTask, dict[str, object]]]":
    from gpt2cli.training.open_task import open_classification

    return open_classification(recipe, offline, checkpoint, say)


def _hint(setup: "TrainingSetup", run: "RunDir") -> str:
    return f"gpt2 classify {shlex.quote(str(run.folder))} 'a text'"


def _report(setup: "TrainingSetup", run: "RunDir", stop: Callable[[], int]) -> int:
    """Evaluate the best checkpoint on the test split, or without one on the validation split: a table,
    report.json and confusion.png.
    """
    from gpt2cli import files
    from gpt2cli.checkpoints.classifier import load_classifier
    from gpt2cli.evaluation.class_metrics import classification_metrics
    from gpt2cli.generation.cpu.swap_linears import swap_for_many_rows
    from gpt2cli.generation.label_texts import label_probabilities
    from gpt2cli.training.classify_task import ClassifyTask
    from gpt2cli.ui.plots import plot_confusion
    from gpt2cli.ui.tables import print_classes

    assert isinstance(setup.task, ClassifyTask)
    data = setup.task.data
    split, test = ("test", data.test) if len(data.test) else ("validation", data.validation)
    seen = set(data.train.ids)
    folder = best_checkpoint(run.folder)
    loaded = load_classifier(folder)
    loaded.model.to(setup.runtime.device)
    swap_for_many_rows(loaded.model.transformer, "fp32")
    predictions: list[tuple[int, int]] = []
    for first in range(0, len(test), AT_ONCE):
        if signal := stop():
            return signal
        for found in label_probabilities(loaded, list(test.ids[first : first + AT_ONCE])):
            predictions.append((test.classes[len(predictions)], found.index(max(found))))
    scores = classification_metrics(predictions, len(loaded.labels))
    new = [one for one, ids in zip(predictions, test.ids, strict=True) if ids not in seen]
    plot_confusion(scores, loaded.labels, run.folder / PICTURE, title=run.name)
    report: dict[str, Any] = {
        "split": split,
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "labels": list(loaded.labels),
        "classes": {label: asdict(one) for label, one in zip(loaded.labels, scores.classes, strict=True)},
        "confusion": scores.confusion,
        "checkpoint": folder.name,
        "weights": _weights_of(folder),
        "not_in_training": {
            "texts": len(new),
            "accuracy": classification_metrics(new, len(loaded.labels)).accuracy,
        },
    }
    files.write_json(run.folder / REPORT, report)  # last: it marks the rest as complete
    chosen = "" if split == "test" else "; it chose the checkpoint, so that its scores flatter"
    say(f"{split} split, {counted(len(test), 'text')}, with {folder.name}{chosen}:")
    print_classes(scores, loaded.labels, err())
    if len(new) < len(test):
        say(
            f"{len(test) - len(new)} of these texts are in the training split too;"
            f" accuracy on the other {len(new)}: {report['not_in_training']['accuracy']:.4f}"
        )
    return 0


def _is_reported(run: "RunDir") -> bool:
    """Whether there is a report, and of the checkpoint that is now the best."""
    from gpt2cli.json_files import read_json_object

    try:
        report = read_json_object(run.folder / REPORT)
    except InputError:
        return False
    is_of_best = report.get("weights") == _weights_of(best_checkpoint(run.folder))
    return is_of_best and (run.folder / PICTURE).exists()


def _weights_of(folder: "Path") -> str | None:
    from gpt2cli.checkpoints.folder import WEIGHTS, read_manifest

    return read_manifest(folder).get(WEIGHTS)


finetune_classify = train_function(
    TrainCommand(
        task="finetune-classify",
        open_task=_open_task,
        after_evaluation=lambda setup, run, view, stop: None,
        at_end=_report,
        is_complete=lambda run, recipe: _is_reported(run),
        hint=_hint,
    ),
    "Fine-tune a GPT-2 to classify texts.",
)
