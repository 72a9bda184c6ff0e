"""Owns what many judgements say together: mean, median, interval, coverage, extremes.

Only what was scored is averaged. Everything else is counted beside it, so that a mean over half
of the answers cannot pass for one over all. Nothing is asked and nothing is shown here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from gpt2cli.judge.rubric import CRITERIA, Score
from gpt2cli.judge.runner import CANARY_LIMIT, Judgement

RESAMPLES = 10_000
LEVEL = 0.95  # of the interval
N_BINS = 10  # of the histogram: 0 to 9, 10 to 19, ..., 90 to 100
N_EXTREMES = 3
FEWEST = 5  # values that an interval is made of; resampling fewer shows hardly anything but their gaps


@dataclass(frozen=True)
class Summary:
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
    best: tuple[Judgement, ...]  # best first
    worst: tuple[Judgement, ...]  # worst first; none of `best`
    lost: tuple[Judgement, ...]  # the first ones that were sent and not scored, with why
    canaries: tuple[Judgement, ...]  # worthless answers that were judged along with the others

    @property
    def fooled(self) -> tuple[Judgement, ...]:
        """The canaries that the judge took for good answers: its scores cannot be trusted."""
        return tuple(one for one in self.canaries if one.score and one.score.score > CANARY_LIMIT)

    @property
    def is_no_better(self) -> bool:
        """Whether the canaries' mean is as high as that of the responses."""
        worthless = [one.score.score for one in self.canaries if one.score]
        return self.mean is not None and bool(worthless) and fmean(worthless) >= self.mean


def summarize(judgements: Iterable[Judgement], n_items: int, seed: int = 0) -> Summary:
    """`seed` is that of the interval's resamples."""
    judgements = list(judgements)
    own = [one for one in judgements if not one.is_canary]
    scored = [(one, one.score) for one in own if one.score is not None]
    values = [score.score for _, score in scored]
    best, worst = _extremes(scored)
    return Summary(
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
    scored: Sequence[tuple[Judgement, Score]],
) -> tuple[tuple[Judgement, ...], tuple[Judgement, ...]]:
    """The best and the worst, ties by their place in the file; nobody is both."""
    ranked = sorted(scored, key=lambda pair: (-pair[1].score, pair[0].index))
    n = min(N_EXTREMES, (len(ranked) + 1) // 2)
    rest = sorted(ranked[n:], key=lambda pair: (pair[1].score, pair[0].index))
    return tuple(one for one, _ in ranked[:n]), tuple(one for one, _ in rest[:N_EXTREMES])
