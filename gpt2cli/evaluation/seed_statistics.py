"""Statistics over seeds: mean and standard deviation, and differences that are paired by seed.

Runs of one seed see the same batches, so that much of what a seed does to the loss cancels in a difference.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STEPS = 2000  # of Simpson's rule; the quantiles are right to eight digits


@dataclass(frozen=True)
class MeanOverSeeds:
    """`std` divides by n - 1; None for a single value."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """The mean of n differences and half the width of its 95 % interval; None for fewer than two."""

    mean: float
    half_width: float | None
    n: int

    @property
    def is_noise(self) -> bool | None:
        """Whether the interval holds 0; None without one."""
        return None if self.half_width is None else abs(self.mean) <= self.half_width


def mean_over_seeds(values: Sequence[float]) -> MeanOverSeeds | None:
    """None of no values."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return MeanOverSeeds(statistics.fmean(values), std, len(values))


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> PairedDifference | None:
    """`one` minus `other` over the seeds that both have, with Student's interval; None without any."""
    found = mean_over_seeds([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])
    if found is None:
        return None
    if found.std is None:
        return PairedDifference(found.mean, None, 1)
    half_width = t_quantile(found.n - 1) * found.std / math.sqrt(found.n)
    return PairedDifference(found.mean, half_width, found.n)


def t_quantile(degrees: int, share: float = 0.95) -> float:
    """The t within whose distance from 0 lies `share` of Student's distribution.

    With t = sqrt(degrees) tan(a) its density is cos(a)^(degrees - 1), up to a factor, which the integral to
    a right angle is.
    """
    low, high, whole = 0.0, math.pi / 2, _integral(degrees, math.pi / 2)
    for _ in range(60):
        middle = (low + high) / 2
        is_less = _integral(degrees, middle) < share * whole
        low, high = (middle, high) if is_less else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _integral(degrees: int, end: float) -> float:
    """Of cos(a)^(degrees - 1) from 0 to `end`, by Simpson's rule."""
    heights = [math.cos(i * end / STEPS) ** (degrees - 1) for i in range(STEPS + 1)]
    odd, even = sum(heights[1::2]), sum(heights[2:-1:2])
    return (heights[0] + 4 * odd + 2 * even + heights[-1]) * end / STEPS / 3
