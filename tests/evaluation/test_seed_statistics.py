"""Means over seeds and paired differences, against the printed table of t and sums by hand."""

import math

import pytest

from gpt2cli.evaluation.seed_statistics import mean_over_seeds, paired_difference, t_quantile

# The 97.5 % points of Student's t, as statistical tables print them.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 29: 2.045, 120: 1.980}


@pytest.mark.parametrize("degrees", TABLE)
def test_the_quantile_is_that_of_the_tables(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(TABLE[degrees], abs=5e-4)


def test_the_mean_and_the_deviation_of_a_sample() -> None:
    found = mean_over_seeds([1.0, 2.0, 6.0])
    assert found and (found.mean, found.n) == (3.0, 3) and found.std == pytest.approx(math.sqrt(7))
    single = mean_over_seeds([4.0])
    assert single and (single.mean, single.std) == (4.0, None)
    assert mean_over_seeds([]) is None


def test_differences_are_paired_by_seed() -> None:
    """A seed's own effect, here up to 20, cancels; what is left is 1 with a small spread."""
    one, other = {1: 11.0, 2: 21.1, 3: 0.9, 4: 7.0}, {3: 0.0, 2: 20.0, 1: 10.0}
    found = paired_difference(one, other)
    assert found and found.n == 3 and found.mean == pytest.approx(1.0)
    # Differences 1.0, 1.1 and 0.9: a deviation of 0.1, over the root of 3, times 4.303.
    assert found.half_width == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert found.is_noise is False
    wild = paired_difference({1: 1.0, 2: -1.0, 3: 0.5}, {1: 0.0, 2: 0.0, 3: 0.0})
    assert wild and wild.is_noise is True
    alone = paired_difference({1: 2.0}, {1: 1.0})
    assert alone and (alone.mean, alone.half_width, alone.is_noise) == (1.0, None, None)
    assert paired_difference({1: 2.0}, {2: 1.0}) is None
