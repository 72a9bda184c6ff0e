"""What judgements say together: by cases made by hand, and the interval against resampling itself."""

import random
import statistics
from dataclasses import replace

import numpy as np
import pytest

from gpt2cli.judge.aggregate import bootstrap, summarize_grades
from gpt2cli.judge.grade import CANARY_LIMIT, Grade, GradeJudgement
from gpt2cli.judge.results import Status, Terms

TERMS = Terms("m", "ollama", "p", "s", 0.0, 1)


def judgement(
    index: int, score: int | None, status: Status = "scored", flagged: bool = False
) -> GradeJudgement:
    given = None if score is None else Grade(score // 2, score, 100 - score, score, f"because {score}")
    return GradeJudgement(
        index=index,
        status=status,
        score=given,
        why="" if given else status,
        flagged=flagged,
        attempts=1,
        seconds=0.1,
        prompt_tokens=9,
        asked="",
        terms=TERMS,
    )


def test_only_what_is_scored_is_averaged_and_all_is_counted() -> None:
    lost: tuple[Status, ...] = ("unscored", "truncated", "empty", "empty")
    judgements = [judgement(i, score) for i, score in enumerate((10, 100, 70, 0))]
    judgements += [judgement(4 + i, None, status) for i, status in enumerate(lost)]
    judgements[1] = replace(judgements[1], flagged=True)
    summary = summarize_grades(judgements, 11)
    assert (summary.n_scored, summary.n_unscored, summary.n_truncated, summary.n_empty) == (4, 1, 1, 2)
    assert (summary.n_items, summary.n_missing, summary.n_flagged) == (11, 3, 1)
    assert [one.index for one in summary.lost] == [4, 5]
    assert (summary.mean, summary.median) == (45, 40)
    assert summary.criteria == {"relevance": 22.5, "correctness": 45, "clarity": 55}
    assert summary.histogram == (1, 1, 0, 0, 0, 0, 0, 1, 0, 1)


def test_every_score_is_in_one_bin_and_100_is_in_the_last() -> None:
    summary = summarize_grades([judgement(score, score) for score in range(101)], 101)
    assert summary.histogram == (*[10] * 9, 11)


@pytest.mark.parametrize("judgements", [[], [judgement(0, None, "unscored")], [judgement(-1, 90)]])
def test_nothing_scored_is_no_number_rather_than_zero(judgements: list[GradeJudgement]) -> None:
    summary = summarize_grades(judgements, 2)
    assert (summary.mean, summary.median, summary.interval, summary.criteria) == (None, None, None, {})
    assert (summary.n_scored, summary.best, summary.worst, sum(summary.histogram)) == (0, (), (), 0)


def test_canaries_are_apart_and_one_above_the_limit_is_told() -> None:
    canaries = [judgement(-1, CANARY_LIMIT), judgement(-2, CANARY_LIMIT + 1), judgement(-3, None, "unscored")]
    summary = summarize_grades([*canaries, judgement(0, 7)], 1)
    assert (summary.mean, summary.n_scored, summary.n_unscored, summary.n_missing) == (7, 1, 0, 0)
    assert [one.index for one in summary.canaries] == [-1, -2, -3]
    assert [one.index for one in summary.fooled] == [-2]


@pytest.mark.parametrize(
    ("scores", "best", "worst"),
    [
        ([5], [0], []),
        ([5, 5], [0], [1]),
        ([1, 9, 5, 5], [1, 2], [0, 3]),
        ([1, 9, 5, 5, 0, 9, 9, 2], [1, 5, 6], [4, 0, 7]),
    ],
)
def test_best_and_worst_do_not_overlap_and_ties_keep_their_order(
    scores: list[int], best: list[int], worst: list[int]
) -> None:
    judgements = [judgement(index, score) for index, score in enumerate(scores)]
    random.Random(1).shuffle(judgements)
    summary = summarize_grades(judgements, len(scores))
    assert [one.index for one in summary.best] == best
    assert [one.index for one in summary.worst] == worst


def test_the_interval_is_that_of_resampling_itself() -> None:
    draw = random.Random(3)
    values = [draw.choice((0, 15, 60, 85, 90, 100)) for _ in range(40)]
    rng = np.random.default_rng(11)
    means = rng.choice(np.array(values), size=(10_000, len(values))).mean(axis=1)  # one by one
    low, high = np.percentile(means, [2.5, 97.5])
    found = bootstrap(values, 0)
    assert found is not None
    error = statistics.stdev(values) / len(values) ** 0.5
    assert found == pytest.approx((low, high), abs=0.1 * error)
    assert found[0] < statistics.fmean(values) < found[1]


def test_the_interval_is_of_the_seed_alone_and_none_below_five_values() -> None:
    values = [float(value**2 % 101) for value in range(40)]
    assert bootstrap(values, 4) == bootstrap(values[::-1], 4) != bootstrap(values, 5)
    assert bootstrap([50.0, 60.0, 70.0, 80.0], 4) is None and bootstrap([], 4) is None
    assert bootstrap([50.0, 60.0, 70.0, 80.0, 90.0], 4) is not None
    assert bootstrap([50.0] * 9, 4) == (50, 50)
    assert bootstrap([0.0, 100.0] * 500_000, 4) == pytest.approx(
        (50, 50), abs=0.2
    )  # soon, and in little memory
