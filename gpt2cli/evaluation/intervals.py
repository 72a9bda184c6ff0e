"""95 % confidence intervals of a mean over items: of a share, and of any quantity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959963984540054  # 97.5 % of a normal distribution lie below


@dataclass(frozen=True)
class Estimate:
    """A value, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson_interval(n_right: float, n: int) -> Estimate:
    """A share of n items, with Wilson's score interval (1927), which holds near 0 and 1, too."""
    share, z2 = n_right / n, Z * Z / n
    center = (share + z2 / 2) / (1 + z2)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n)) / (1 + z2)
    return Estimate(share, max(center - half, 0.0), min(center + half, 1.0))


def mean_interval(values: Sequence[float]) -> Estimate:
    """A mean, with 1.96 standard errors to each side; of one value, no interval but itself."""
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / max(n - 1, 1)
    half = Z * math.sqrt(variance / n)
    return Estimate(mean, mean - half, mean + half)
