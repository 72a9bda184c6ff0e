"""Random splits into training, validation and test, plain or stratified by class.

A split is a function of the number of items (or their classes), the shares and a seed.
"""

from collections.abc import Sequence

import numpy as np

from gpt2cli.errors import InputError

_SPLIT, _CHOICE = 1, 2  # random streams: no two uses may share one


def split(n: int, shares: Sequence[float], seed: int) -> list[list[int]]:
    """Split the items 0 .. n-1 at random: first the remainder, then one part per share.

    `split(100, (0.05, 0.1), seed)` gives lists of 85, 5 and 10 numbers, each ascending. A share gets
    its rounded part and at least one item. Raises InputError if that leaves no remainder.
    """
    return _divide(list(range(n)), shares, np.random.Philox(np.random.SeedSequence([seed, _SPLIT])))


def stratified_split(classes: Sequence[int], shares: Sequence[float], seed: int) -> list[list[int]]:
    """`split` within each class, so that every part has the classes in the same proportion.

    `classes` holds the class of each item. Raises InputError for a class with too few items.
    """
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    for kind in sorted(set(classes)):
        members = [i for i, other in enumerate(classes) if other == kind]
        bits = np.random.Philox(np.random.SeedSequence([seed, _SPLIT, kind]))
        for part, chosen in zip(parts, _divide(members, shares, bits), strict=True):
            part += chosen
    return [sorted(part) for part in parts]


def undersampled(classes: Sequence[int], seed: int) -> list[int]:
    """A random choice of items, ascending, with as many of every class as the smallest class has."""
    members = {kind: [i for i, other in enumerate(classes) if other == kind] for kind in sorted(set(classes))}
    fewest = min(map(len, members.values()))
    kept: list[int] = []
    for kind, items in members.items():
        bits = np.random.Philox(np.random.SeedSequence([seed, _CHOICE, kind]))
        kept += [items[i] for i in np.random.Generator(bits).permutation(len(items))[:fewest]]
    return sorted(kept)


def _divide(items: list[int], shares: Sequence[float], bits: np.random.BitGenerator) -> list[list[int]]:
    # Round half up: Python's round() sends 2.5 and 3.5 in different directions.
    counts = [max(1, int(len(items) * share + 0.5)) for share in shares]
    left = len(items) - sum(counts)
    if left < 1:
        raise InputError(
            f"{len(items)} items are too few to split",
            f"{' and '.join(map(str, counts))} are held out, which leaves none to train on",
            "add more data, or hold out smaller shares: data.validation, data.test",
        )
    order = [items[i] for i in np.random.Generator(bits).permutation(len(items))]
    ends = np.cumsum([left, *counts]).tolist()
    return [sorted(order[end - count : end]) for end, count in zip(ends, [left, *counts], strict=True)]
