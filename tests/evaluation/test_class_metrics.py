"""Scores, against what one works out by hand."""

import pytest

from gpt2cli.evaluation.class_metrics import classification_metrics

# is 0: said 0 0 0 1; is 1: said 1 0; is 2: never said, said 0
VERDICTS = [(0, 0), (0, 0), (0, 0), (0, 1), (1, 1), (1, 0), (2, 0)]


def test_by_hand() -> None:
    scores = classification_metrics(VERDICTS, 3)
    assert scores.confusion == ((3, 1, 0), (1, 1, 0), (1, 0, 0))
    assert scores.accuracy == pytest.approx(4 / 7)
    first, second, third = scores.classes
    assert (first.precision, first.recall, first.support) == pytest.approx((3 / 5, 3 / 4, 4))
    assert first.f1 == pytest.approx(2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4))
    assert (second.precision, second.recall, second.f1, second.support) == pytest.approx((0.5, 0.5, 0.5, 2))
    assert (third.precision, third.recall, third.f1, third.support) == (0.0, 0.0, 0.0, 1)
    assert scores.macro_f1 == pytest.approx((first.f1 + 0.5 + 0) / 3)


def test_nothing_at_all_is_no_division_by_zero() -> None:
    assert classification_metrics([], 2).accuracy == 0.0 and classification_metrics([], 2).macro_f1 == 0.0
    assert classification_metrics([(0, 0), (1, 1)], 2).macro_f1 == 1.0
