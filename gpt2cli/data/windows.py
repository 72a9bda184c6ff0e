"""The training windows of a corpus, in an order that is a pure function of (seed, sample number).

An epoch cuts the tokens into windows of T and visits each once, in random order; the next epoch
cuts at another offset. There is no state between calls, so that a resumed run, or another number of
ranks, continues with exactly the next samples.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gpt2cli.data.token_dataset import TokenSplit
from gpt2cli.errors import InputError


@dataclass(frozen=True)
class TrainingWindows:
    """The training windows of a corpus: inputs and targets of `context` tokens each."""

    tokens: TokenSplit
    context: int  # T
    seed: int

    def __post_init__(self) -> None:
        n_tokens = self.tokens.n_tokens
        if n_tokens < self.context + 1:
            raise InputError(
                f"the text has {n_tokens} tokens, one window needs {self.context + 1}",
                "a window is the context and one token after it",
                "use more text" + (f", or model.context={n_tokens - 1}" if n_tokens > 2 else ""),
            )

    @property
    def n_windows(self) -> int:
        """Windows per epoch, one fewer than fit: the offset can move over a whole window."""
        whole = (self.tokens.n_tokens - 1) // self.context
        return max(1, whole - 1)

    def rows(self, first: int, n: int) -> NDArray[np.int64]:
        """Samples `first` to `first + n - 1` of the endless sequence: token ids (n, T + 1)."""
        return np.stack(
            [self.tokens.read(self._start(sample), self.context + 1) for sample in range(first, first + n)]
        )

    def _start(self, sample: int) -> int:
        epoch, position = divmod(sample, self.n_windows)
        slack = self.tokens.n_tokens - 1 - self.n_windows * self.context
        offset, order = _epoch(self.seed, epoch, self.n_windows, slack)
        return offset + int(order[position]) * self.context


def first_sample(step: int, micro: int, micro_batch: int, accumulation: int) -> int:
    """The number of the first sample of micro-batch `micro`; a step has `accumulation` of them."""
    return (step * accumulation + micro) * micro_batch


def validation_windows(n_tokens: int, context: int, n_wanted: int | None) -> list[tuple[int, int]]:
    """(start, targets) of windows that hold about `n_wanted` targets, spread evenly over the text: the same
    ones each time. None, or more than there are, is every target once; the last window may be shorter.
    """
    n_targets = n_tokens - 1  # the first token has nothing before it
    whole = -(-n_targets // context)
    n = whole if n_wanted is None else min(whole, -(-n_wanted // context))
    starts = [i * whole // n * context for i in range(n)]
    return [(start, min(context, n_targets - start)) for start in starts]


@lru_cache(maxsize=2)  # a batch may span two epochs
def _epoch(seed: int, epoch: int, n_windows: int, slack: int) -> tuple[int, NDArray[np.int64]]:
    """The offset (0 to slack) and the order of the windows of one epoch."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return int(generator.integers(slack + 1)), generator.permutation(n_windows)
