"""Aggregates of many judgements: mean grade, win rate, intervals, coverage, extremes.

Only scored answers are averaged. The others are counted, so that a mean over half of the answers
is not mistaken for one over all.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

import numpy as np

from gpt2cli.judge.grade import CANARY_LIMIT, Grade, GradeJudgement
from gpt2cli.judge.pairwise import Comparison, Pair
from gpt2cli.judge.prompt import CRITERIA
from gpt2cli.judge.results import Status

RESAMPLES = 10_000
LEVEL = 0.95  # of the interval
N_BINS = 10  # of the histogram: 0 to 9, 10 to 19, ..., 90 to 100
N_EXTREMES = 3
FEWEST = 5  # values for an interval: resampling fewer says little
Outcome = Literal["win", "tie", "loss"]  # of A


@dataclass(frozen=True)
class GradeSummary:
    """Counts are of items, canaries aside; the others are over the scored ones, None where there are none."""

    n_items: int
    n_scored: int
    n_unscored: int
    n_truncated: int
    n_empty: int
    n_missing: int  # not judged yet
    n_flagged: int
    mean: float | None
    median: float | None
    interval: tuple[float, float] | None  # of the mean; None below FEWEST scores
    criteria: dict[str, float]  # the mean of each; empty where nothing is scored
    histogram: tuple[int, ...]
    best: tuple[GradeJudgement, ...]  # best first
    worst: tuple[GradeJudgement, ...]  # worst first; none of `best`
    lost: tuple[GradeJudgement, ...]  # the first that were sent and not scored
    canaries: tuple[GradeJudgement, ...]  # trivial answers, judged along with the others

    @property
    def fooled(self) -> tuple[GradeJudgement, ...]:
        """The canaries that the judge took for good answers: do not trust its scores."""
        return tuple(one for one in self.canaries if one.score and one.score.score > CANARY_LIMIT)

    @property
    def is_no_better(self) -> bool:
        """Whether the canaries' mean is as high as that of the responses."""
        worthless = [one.score.score for one in self.canaries if one.score]
        return self.mean is not None and bool(worthless) and fmean(worthless) >= self.mean


@dataclass(frozen=True)
class PairSummary:
    """Counts of pairs. The rate counts a tie as half a win; None where nothing was compared."""

    n_pairs: int
    n_compared: int
    n_unscored: int
    n_truncated: int
    n_empty: int
    n_missing: int  # not asked yet, or in one order only
    wins: int
    ties: int
    losses: int
    n_same: int  # ties of equal texts
    n_for_first: int  # ties because the judge preferred the first place both times
    n_for_second: int
    win_rate: float | None
    interval: tuple[float, float] | None
    p_value: float | None  # of the exact two-sided sign test, ties left out
    outcomes: dict[int, Outcome]  # by the pair's index


def summarize_grades(judgements: Iterable[GradeJudgement], n_items: int, seed: int = 0) -> GradeSummary:
    """`seed` is for the interval's resamples."""
    judgements = list(judgements)
    own = [one for one in judgements if not one.is_canary]
    scored = [(one, one.score) for one in own if one.score is not None]
    values = [score.score for _, score in scored]
    best, worst = _extremes(scored)
    return GradeSummary(
        n_items=n_items,
        n_scored=len(scored),
        n_unscored=sum(one.status == "unscored" for one in own),
        n_truncated=sum(one.status == "truncated" for one in own),
        n_empty=sum(one.status == "empty" for one in own),
        n_missing=n_items - len(own),
        n_flagged=sum(one.flagged for one in own),
        mean=fmean(values) if values else None,
        median=float(median(values)) if values else None,
        interval=bootstrap(values, seed),
        criteria={name: fmean(getattr(score, name) for _, score in scored) for name in CRITERIA if scored},
        histogram=tuple(np.histogram(values, bins=N_BINS, range=(0, 100))[0].tolist()),
        best=best,
        worst=worst,
        lost=tuple(one for one in own if one.status in ("unscored", "truncated"))[:N_EXTREMES],
        canaries=tuple(one for one in judgements if one.is_canary),
    )


def summarize_pairs(pairs: Sequence[Pair], comparisons: Iterable[Comparison], seed: int = 0) -> PairSummary:
    """`seed` is for the interval's resamples."""
    said: dict[int, dict[bool, Comparison]] = defaultdict(dict)
    for comparison in comparisons:
        said[comparison.index][comparison.a_is_first] = comparison
    outcomes: dict[int, Outcome] = {}
    kinds: dict[str, Outcome] = {"aa": "win", "bb": "loss"}
    n_same = n_empty = 0
    orders: list[str] = []  # "ab": A where it came first, B where B did; so the first place both times
    lost: list[Status] = []
    for pair in pairs:
        both = said[pair.index]
        failed = [each.status for each in both.values() if each.status != "scored"]
        if pair.is_empty:
            n_empty += 1
        elif pair.is_same:
            n_same += 1
            outcomes[pair.index] = "tie"
        elif failed:
            lost.append(failed[0])
        elif len(both) == 2:
            one, swapped = both[True].better, both[False].better
            outcomes[pair.index] = kinds.get(one + swapped, "tie")
            orders.append(one + swapped)
    found = list(outcomes.values())
    wins, ties, losses = (found.count(kind) for kind in ("win", "tie", "loss"))
    worth = [{"win": 1.0, "tie": 0.5, "loss": 0.0}[outcome] for outcome in found]
    return PairSummary(
        n_pairs=len(pairs),
        n_compared=len(found),
        n_unscored=lost.count("unscored"),
        n_truncated=lost.count("truncated"),
        n_empty=n_empty,
        n_missing=len(pairs) - len(found) - len(lost) - n_empty,
        wins=wins,
        ties=ties,
        losses=losses,
        n_same=n_same,
        n_for_first=orders.count("ab"),
        n_for_second=orders.count("ba"),
        win_rate=math.fsum(worth) / len(worth) if worth else None,
        interval=bootstrap(worth, seed),
        p_value=sign_test(wins, losses) if found else None,
        outcomes=outcomes,
    )


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided probability of a result at least this uneven, were both equally good."""
    n, term, total = wins + losses, 1, 0
    for k in range(min(wins, losses) + 1):
        total += term  # n over k
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * total / (1 << n))


def bootstrap(values: Sequence[float], seed: int) -> tuple[float, float] | None:
    """The percentile interval of the mean (Efron 1979); None below FEWEST values.

    How often each distinct value is drawn is multinomial, so that a resample costs as much as there
    are distinct values, however many items there are.
    """
    if len(values) < FEWEST:
        return None
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=RESAMPLES)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws @ distinct / len(values), [tail, 100 - tail])
    return float(low), float(high)


def _extremes(
    scored: Sequence[tuple[GradeJudgement, Grade]],
) -> tuple[tuple[GradeJudgement, ...], tuple[GradeJudgement, ...]]:
    """The best and the worst, ties by their place in the file; none is both."""
    ranked = sorted(scored, key=lambda pair: (-pair[1].score, pair[0].index))
    n = min(N_EXTREMES, (len(ranked) + 1) // 2)
    rest = sorted(ranked[n:], key=lambda pair: (pair[1].score, pair[0].index))
    return tuple(one for one, _ in ranked[:n]), tuple(one for one, _ in rest[:N_EXTREMES])
