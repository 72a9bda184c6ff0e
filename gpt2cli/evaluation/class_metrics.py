"""Classification metrics: confusion matrix, accuracy, precision, recall, F1 and calibration.

A ratio without a denominator (a class that is never predicted, or never true) is 0.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

N_BINS = 15  # of probability, as Guo et al. 2017 used
# (true class, predicted class) of one item.
Prediction = tuple[int, int]


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of one class."""

    precision: float
    recall: float
    f1: float  # harmonic mean of precision and recall
    support: int  # items of this class


@dataclass(frozen=True)
class ClassificationMetrics:
    confusion: tuple[tuple[int, ...], ...]  # [true class][predicted class]
    accuracy: float
    macro_f1: float  # mean over classes, equally weighted
    classes: tuple[ClassMetrics, ...]


def classification_metrics(predictions: Iterable[Prediction], n_classes: int) -> ClassificationMetrics:
    confusion = [[0] * n_classes for _ in range(n_classes)]
    for true, predicted in predictions:
        confusion[true][predicted] += 1
    classes = tuple(_class_metrics(confusion, kind) for kind in range(n_classes))
    correct = sum(confusion[kind][kind] for kind in range(n_classes))
    return ClassificationMetrics(
        confusion=tuple(map(tuple, confusion)),
        accuracy=_ratio(correct, sum(map(sum, confusion))),
        macro_f1=sum(one.f1 for one in classes) / n_classes,
        classes=classes,
    )


def calibration_error(predictions: Iterable[tuple[float, bool]]) -> float:
    """Expected calibration error of (probability of the predicted class, whether it is right).

    The mean over n = N_BINS equal bins of probability, (0, 1/n], (1/n, 2/n] and so on, of the gap between the
    accuracy and the mean probability of a bin, weighted by its items (Guo et al. 2017, equation 3).
    """
    sums = [[0.0, 0.0] for _ in range(N_BINS)]  # of probabilities, and of right answers
    n = 0
    for probability, is_right in predictions:
        place = min(max(math.ceil(probability * N_BINS) - 1, 0), N_BINS - 1)
        sums[place][0] += probability
        sums[place][1] += is_right
        n += 1
    return sum(abs(right - probability) for probability, right in sums) / n if n else 0.0


def _class_metrics(confusion: list[list[int]], kind: int) -> ClassMetrics:
    correct = confusion[kind][kind]
    predicted, support = sum(row[kind] for row in confusion), sum(confusion[kind])
    return ClassMetrics(
        precision=_ratio(correct, predicted),
        recall=_ratio(correct, support),
        f1=_ratio(2 * correct, predicted + support),
        support=support,
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
