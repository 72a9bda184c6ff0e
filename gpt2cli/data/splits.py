"""Owns how a set is divided into what is learnt from, what chooses, and what is reported on.

A division is a function of the items' number (or their classes), the shares and a seed alone.
What the items are is not known here.
"""

from collections.abc import Sequence

import numpy as np

from gpt2cli.errors import InputError

_SPLIT, _CHOICE = 1, 2  # what random numbers are for, so that no two uses share them


def split(n: int, shares: Sequence[float], seed: int) -> list[list[int]]:
    """Divide the items 0 .. n-1 by chance: first what the shares leave over, then a part a share.

    `split(100, (0.05, 0.1), seed)` gives 85, 5 and 10 numbers, each list rising. A share gets its
    rounded part and at least one item. Raises InputError where that leaves nothing over.
    """
    return _divide(list(range(n)), shares, np.random.Philox(np.random.SeedSequence([seed, _SPLIT])))


def stratified_split(classes: Sequence[int], shares: Sequence[float], seed: int) -> list[list[int]]:
    """`split` within each class, so that every part has each class in the same proportion.

    `classes` holds each item's class. Raises InputError for a class with too few items.
    """
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    for kind in sorted(set(classes)):
        members = [i for i, other in enumerate(classes) if other == kind]
        bits = np.random.Philox(np.random.SeedSequence([seed, _SPLIT, kind]))
        for part, chosen in zip(parts, _divide(members, shares, bits), strict=True):
            part += chosen
    return [sorted(part) for part in parts]


def undersampled(classes: Sequence[int], seed: int) -> list[int]:
    """Items, rising, of which every class has as many as the smallest one; which is left to chance."""
    members = {kind: [i for i, other in enumerate(classes) if other == kind] for kind in sorted(set(classes))}
    fewest = min(map(len, members.values()))
    kept: list[int] = []
    for kind, items in members.items():
        bits = np.random.Philox(np.random.SeedSequence([seed, _CHOICE, kind]))
        kept += [items[i] for i in np.random.Generator(bits).permutation(len(items))[:fewest]]
    return sorted(kept)


def _divide(items: list[int], shares: Sequence[float], bits: np.random.BitGenerator) -> list[list[int]]:
    # Half up: Python's own rounding would send 2.5 and 3.5 different ways.
    counts = [max(1, int(len(items) * share + 0.5)) for share in shares]
    left = len(items) - sum(counts)
    if left < 1:
        raise InputError(
            f"{len(items)} items are too few to split",
            f"{' and '.join(map(str, counts))} are kept apart, which leaves none to train on",
            "add more data, or keep smaller shares apart",
        )
    order = [items[i] for i in np.random.Generator(bits).permutation(len(items))]
    ends = np.cumsum([left, *counts]).tolist()
    return [sorted(order[end - count : end]) for end, count in zip(ends, [left, *counts], strict=True)]
