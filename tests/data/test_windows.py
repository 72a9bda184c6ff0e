"""The order of the corpus: each window once an epoch, whatever the batch, the rank or the restart."""

import itertools
from collections import Counter

import numpy as np
import pytest

from gpt2cli.data.windows import TrainingWindows, first_sample, validation_windows
from gpt2cli.errors import InputError
from gpt2cli.training.ranks import Ranks


class Counting:
    """Tokens 0, 1, 2, ...: each window says where it was cut."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def read(self, start: int, n: int) -> np.ndarray:
        assert start >= 0 and start + n <= self.n_tokens
        return np.arange(start, start + n)


def windows(n_tokens: int = 107, context: int = 10, seed: int = 3) -> TrainingWindows:
    return TrainingWindows(Counting(n_tokens), context, seed)  # type: ignore[arg-type]


def test_an_epoch_visits_each_window_once_and_the_next_cuts_elsewhere() -> None:
    cut = windows()
    n = cut.n_windows
    assert n == 9
    phases = []
    for epoch in range(20):
        rows = cut.rows(epoch * n, n)
        assert rows.shape == (n, 11)
        targets = Counter(rows[:, 1:].ravel().tolist())
        assert len(targets) == n * 10 and set(targets.values()) == {1}, "a token is a target at most once"
        phases.append(rows[:, 0].min())
    assert len(set(phases)) > 5
    orders = {tuple((cut.rows(epoch * n, n)[:, 0] - phases[epoch]).tolist()) for epoch in range(20)}
    assert len(orders) == 20


def test_the_order_is_a_function_of_seed_and_sample() -> None:
    whole = windows().rows(0, 40)
    assert np.array_equal(whole, np.concatenate([windows().rows(i, 1) for i in range(40)]))
    assert not np.array_equal(whole, windows(seed=4).rows(0, 40))


@pytest.mark.parametrize(
    ("world", "micro_batch", "accumulation"), [(1, 4, 3), (2, 2, 6), (3, 4, 3), (4, 1, 12)]
)
def test_ranks_and_micro_batches_share_a_step_without_overlap(
    world: int, micro_batch: int, accumulation: int
) -> None:
    """Twelve samples a step, however they are dealt."""
    for step in range(5):
        seen = []
        for rank in range(world):
            for micro in Ranks(rank, world).share(accumulation):
                first = first_sample(step, micro, micro_batch, accumulation)
                seen += range(first, first + micro_batch)
        assert sorted(seen) == list(range(step * 12, step * 12 + 12))


@pytest.mark.parametrize("n_tokens", [11, 12, 20, 21, 30])
def test_short_texts_have_at_least_one_window_inside_the_text(n_tokens: int) -> None:
    assert windows(n_tokens).rows(0, 50).shape == (50, 11)


def test_a_text_shorter_than_a_window_is_refused_with_the_counts() -> None:
    with pytest.raises(InputError, match="10 tokens, one window needs 11") as caught:
        windows(10)
    assert caught.value.fix.endswith("model.context=9")


def test_evaluation_windows_are_spread_and_do_not_overlap() -> None:
    windows = validation_windows(1001, 10, 70)
    starts = [start for start, _ in windows]
    assert len(starts) == 7 and starts[0] == 0 and {length for _, length in windows} == {10}
    assert all(b - a >= 10 for a, b in itertools.pairwise(starts)) and starts[-1] > 800


def test_all_of_a_text_is_each_target_once() -> None:
    for n_tokens in (2, 10, 11, 12, 31, 35):
        for wanted in (None, n_tokens - 1, 10_000):
            targets = [
                t for start, n in validation_windows(n_tokens, 10, wanted) for t in range(start, start + n)
            ]
            assert targets == list(range(n_tokens - 1))
