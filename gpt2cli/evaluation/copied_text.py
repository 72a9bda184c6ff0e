"""The longest run of a sample's tokens that the training tokens hold: memorising shows there.

A model that continues text in its own words copies a few tokens in a row; one that was fine-tuned too
long on too little text copies sentences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2cli.data.token_dataset import TokenSplit

MOST_TOKENS = 20_000_000  # a few seconds
BLOCK_TOKENS = 1 << 20

Int32s = np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(frozen=True)
class CopiedRun:
    """`length` tokens of the sample from `start` on; `n_searched` training tokens were compared."""

    start: int
    length: int
    n_searched: int


def longest_copied_run(
    sample_ids: Sequence[int], split: TokenSplit, *, most: int = MOST_TOKENS, block: int = BLOCK_TOKENS
) -> CopiedRun:
    """The longest run of `sample_ids` that stands token for token in the split's first `most` tokens.

    Of several longest runs, one. Reads `block` tokens at a time, and as many more as a run may need.
    """
    sample = np.asarray(sample_ids, np.int32)  # (m,)
    n_searched = min(split.n_tokens, most)
    start = length = 0
    for first in range(0, n_searched, block):
        n = min(block + len(sample) - 1, n_searched - first)  # a run may end in the next block
        tokens = split.read(first, n).astype(np.int32)
        start, length = _longer_run(sample, tokens, start, length)
    return CopiedRun(start, length, n_searched)


def _longer_run(sample: Int32s, tokens: Int32s, start: int, length: int) -> tuple[int, int]:
    """The start and length of the longest run in `tokens` if it is longer than `length`, else those given."""
    for i in range(len(sample)):
        if i + length >= len(sample) or length >= len(tokens):
            break  # no room for a longer run
        # Places where a longer run could stand: its first token fits, and the one after `length` others.
        n = len(tokens) - length
        places = np.flatnonzero((tokens[:n] == sample[i]) & (tokens[length:] == sample[i + length]))
        n_equal = 1
        while len(places):
            if n_equal > length:
                start, length = i, n_equal
            if i + n_equal == len(sample):
                break
            places = places[places + n_equal < len(tokens)]
            places = places[tokens[places + n_equal] == sample[i + n_equal]]
            n_equal += 1
    return start, length
