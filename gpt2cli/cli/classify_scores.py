"""The scores of `gpt2 classify --label`: a classifier's predictions beside a file's own labels."""

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gpt2cli.errors import InputError
from gpt2cli.ui.console import out, print_json

if TYPE_CHECKING:
    from gpt2cli.data.tables import Table
    from gpt2cli.generation.label_texts import LabelPrediction


def true_classes(table: "Table", column: str, labels: Sequence[str]) -> list[int]:
    """The class of each row. Raises InputError naming the row for a label that the classifier lacks."""
    place = table.column(column, "")
    numbers = {label: number for number, label in enumerate(labels)}
    found = []
    for row in table.rows:
        name = (row.values[place] or "").strip()
        if name not in numbers:
            near = difflib.get_close_matches(name, labels, n=1)
            raise InputError(
                f"{table.where(row.line)}: {name!r} is not one of the classifier's labels",
                f"they are {', '.join(map(repr, labels[:12]))}",
                f"write {near[0]!r} there" if near else "correct the label, or delete the row",
            )
        found.append(numbers[name])
    return found


def print_scores(
    labels: Sequence[str],
    truth: Sequence[int],
    predictions: "Iterable[LabelPrediction]",
    model: str,
    file: str,
    as_json: bool,
) -> None:
    """A table on stdout, or one JSON object."""
    from dataclasses import asdict

    from gpt2cli.evaluation.class_metrics import N_BINS, calibration_error, classification_metrics
    from gpt2cli.ui.tables import print_classes

    found = list(predictions)
    pairs = list(zip(truth, [one.best for one in found], strict=True))
    scores = classification_metrics(pairs, len(labels))
    error = calibration_error(
        (one.probabilities[best], best == true) for one, (true, best) in zip(found, pairs, strict=True)
    )
    if not as_json:
        print_classes(scores, labels, out())
        out().print(f"expected calibration error {error:.4f} ({N_BINS} bins)")
        return
    print_json(
        {
            "model": model,
            "file": file,
            "texts": len(found),
            "accuracy": scores.accuracy,
            "macro_f1": scores.macro_f1,
            "expected_calibration_error": error,
            "calibration_bins": N_BINS,
            "labels": list(labels),
            "classes": {label: asdict(one) for label, one in zip(labels, scores.classes, strict=True)},
            "confusion": scores.confusion,
            "cut": sum(one.was_cut for one in found),
        }
    )
