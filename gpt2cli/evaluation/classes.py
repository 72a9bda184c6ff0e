"""Owns how good a classifier is: verdicts -> confusion matrix, accuracy, precision, recall and F1.

Where a quotient has nothing to divide by (a class that was never said, or never there) it is 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# (what is so, what the model said) of one item.
Verdict = tuple[int, int]


@dataclass(frozen=True)
class ClassScore:
    """Of one class: of the texts said to be it, the share that was; of those that are, the share found."""

    precision: float
    recall: float
    f1: float  # harmonic mean of the two
    support: int  # texts of this class


@dataclass(frozen=True)
class Scores:
    confusion: tuple[tuple[int, ...], ...]  # [what is so][what was said]
    accuracy: float
    macro_f1: float  # mean over classes, each with the same weight
    classes: tuple[ClassScore, ...]


def score(verdicts: Iterable[Verdict], n_classes: int) -> Scores:
    confusion = [[0] * n_classes for _ in range(n_classes)]
    for truth, said in verdicts:
        confusion[truth][said] += 1
    classes = tuple(_of_class(confusion, kind) for kind in range(n_classes))
    right = sum(confusion[kind][kind] for kind in range(n_classes))
    return Scores(
        confusion=tuple(map(tuple, confusion)),
        accuracy=_ratio(right, sum(map(sum, confusion))),
        macro_f1=sum(one.f1 for one in classes) / n_classes,
        classes=classes,
    )


def _of_class(confusion: list[list[int]], kind: int) -> ClassScore:
    right = confusion[kind][kind]
    said, support = sum(row[kind] for row in confusion), sum(confusion[kind])
    return ClassScore(_ratio(right, said), _ratio(right, support), _ratio(2 * right, said + support), support)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
