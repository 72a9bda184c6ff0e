"""Divisions: a partition, by the shares, the same for the same seed, each class in its proportion."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.data.splits import split, stratified_split, undersampled
from gpt2cli.errors import InputError


@given(
    n=st.integers(3, 300),
    shares=st.sampled_from([(0.1, 0.2), (0.05, 0.1), (0.3,)]),
    seed=st.integers(0, 2**63),
)
def test_every_item_is_in_one_part_of_the_right_size(n: int, shares: tuple[float, ...], seed: int) -> None:
    parts = split(n, shares, seed)
    assert sorted(i for part in parts for i in part) == list(range(n))
    for part, share in zip(parts[1:], shares, strict=True):
        assert part == sorted(part) and len(part) == max(1, int(n * share + 0.5))


def test_the_seed_decides() -> None:
    assert split(100, (0.1, 0.2), 1) == split(100, (0.1, 0.2), 1) != split(100, (0.1, 0.2), 2)
    assert [len(part) for part in split(1100, (0.05, 0.1), 123)] == [935, 55, 110]
    assert split(100, (0.1,), 1)[1] != list(range(10)), "not in the order of the file"


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_items(n: int) -> None:
    with pytest.raises(InputError, match=f"{n} items are too few to split"):
        split(n, (0.1, 0.2), 1)


@given(st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=1, max_size=200), st.integers(0, 99))
def test_each_class_is_divided_alike(some: list[int], seed: int) -> None:
    classes = some + [0, 1, 2] * 3
    parts = stratified_split(classes, (0.1, 0.2), seed)
    assert sorted(i for part in parts for i in part) == list(range(len(classes)))
    for part, share in zip(parts[1:], (0.1, 0.2), strict=True):
        for kind, count in Counter(classes).items():
            assert sum(classes[i] == kind for i in part) == max(1, int(count * share + 0.5))


def test_undersampling_keeps_as_many_of_each_by_chance() -> None:
    classes = [0] * 50 + [1] * 7 + [2] * 9
    kept = undersampled(classes, 1)
    assert Counter(classes[i] for i in kept) == {0: 7, 1: 7, 2: 7} and kept == sorted(kept)
    assert kept == undersampled(classes, 1) != undersampled(classes, 2)
    assert kept[:7] != list(range(7)), "not the first ones"
