"""Owns conversations as tokens: which are read, which are learnt, and how they share a batch.

Batches are a pure function of (seed, number): records of about one length go together, so that
little is padded, and no epoch repeats the order of another. Padding is known by length, never by
an id: the end-of-text that teaches the model to stop is an id like any other.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gpt2cli.data.instructions import Record
from gpt2cli.errors import InputError, UsageError
from gpt2cli.templates import Template, encode_parts
from gpt2cli.tokenizer.base import Tokenizer

POOL = 16  # batches whose records are sorted by length together; more pad less and mix less
OPEN = 64  # packed rows that may still get a record
PAD = 0  # any id: nothing looks at it
_ORDER, _PACK = 2, 3  # what random numbers are for, so that no two uses share them


@dataclass(frozen=True)
class Row:
    """One conversation. The model reads ids[:-1]; `learnt` marks the ids whose guess is scored."""

    ids: NDArray[np.int64]  # (n + 1,)
    learnt: NDArray[np.bool_]  # (n + 1,), the first one False: nothing comes before it
    was_cut: bool

    @property
    def n_read(self) -> int:
        return len(self.ids) - 1


@dataclass(frozen=True)
class Sheet:
    """A batch as arrays. `targets` are the N learnt tokens, `places` where in B * T their guess is."""

    input_ids: NDArray[np.int64]  # (B, T)
    places: NDArray[np.int64]  # (N,), rising
    targets: NDArray[np.int64]  # (N,)
    positions: NDArray[np.int64]  # (B, T), each record's from 0
    segments: NDArray[np.int64]  # (B, T), which record of its row a token belongs to; padding -1


def row_of(
    record: Record, template: Template, tokenizer: Tokenizer, limit: int, mask_prompt: bool
) -> Row | None:
    """The record as tokens, of which at most `limit` are read; None where no token of an answer is left.

    Answers are learnt with the end-of-text behind them, unless a cut takes it; without
    `mask_prompt` the rest is learnt too.
    """
    try:
        parts = encode_parts(template.parts(record.turns), tokenizer.encode, tokenizer.end_of_text)
    except InputError as error:  # a vocabulary of characters does not know every one
        raise InputError(f"{record.where}: {error.what}", error.why, error.fix) from None
    ids = np.array([token for part, _ in parts for token in part], dtype=np.int64)
    answered = np.array([is_answer for part, is_answer in parts for _ in part])
    answered[0] = False  # a part may be empty, and then an answer begins the row
    end = min(len(ids), limit + 1)
    if not answered[:end].any():
        return None
    end = int(np.flatnonzero(answered[:end])[-1]) + 1  # a question without its answer is no use
    learnt = answered if mask_prompt else np.arange(len(ids)) > 0
    return Row(ids[:end], learnt[:end].copy(), was_cut=end < len(ids))


def packed(lengths: Sequence[int], limit: int, seed: int) -> list[tuple[int, ...]]:
    """Records (by number) that share rows of at most `limit` tokens: each into the first row with room."""
    bits = np.random.Philox(np.random.SeedSequence([seed, _PACK]))
    closed: list[tuple[int, ...]] = []
    rows: list[list[int]] = []
    room: list[int] = []
    for number in np.random.Generator(bits).permutation(len(lengths)).tolist():
        place = next((i for i, left in enumerate(room) if left >= lengths[number]), None)
        if place is None:
            if len(rows) == OPEN:
                fullest = room.index(min(room))
                closed.append(tuple(rows.pop(fullest)))
                del room[fullest]
            place = len(rows)
            rows.append([])
            room.append(limit)
        rows[place].append(number)
        room[place] -= lengths[number]
    return closed + [tuple(row) for row in rows]


@dataclass(frozen=True, eq=False)
class Order:
    """Which items make which batch, epoch after epoch. The last batch of an epoch may be smaller."""

    lengths: Sequence[int]
    n_rows: int
    seed: int

    @property
    def n_batches(self) -> int:
        """An epoch's."""
        return math.ceil(len(self.lengths) / self.n_rows)

    def batch(self, number: int) -> tuple[int, ...]:
        """The items of batch `number` of the endless sequence."""
        epoch, place = divmod(number, self.n_batches)
        return _epoch(self, epoch)[place]


def by_length(lengths: Sequence[int], n_rows: int) -> list[tuple[int, ...]]:
    """All items once, in batches of like length: for evaluation, where order means nothing."""
    return _cut(np.argsort(lengths, kind="stable"), n_rows)


def sheet_of(groups: Iterable[Sequence[Row]]) -> Sheet:
    """A batch: each group is one row, its records one behind the other, padded on the right."""
    groups = list(groups)
    B, T = len(groups), max(sum(row.n_read for row in group) for group in groups)
    input_ids = np.full((B, T), PAD, np.int64)
    positions = np.zeros((B, T), np.int64)
    segments = np.full((B, T), -1, np.int64)
    places, targets = [], []
    for b, group in enumerate(groups):
        start = 0
        for number, row in enumerate(group):
            here = slice(start, start + row.n_read)
            input_ids[b, here] = row.ids[:-1]
            positions[b, here] = np.arange(row.n_read)
            segments[b, here] = number
            places.append(b * T + start + np.flatnonzero(row.learnt[1:]))
            targets.append(row.ids[1:][row.learnt[1:]])
            start = here.stop
    return Sheet(input_ids, np.concatenate(places), np.concatenate(targets), positions, segments)


@lru_cache(maxsize=2)  # a step may touch two epochs
def _epoch(order: Order, epoch: int) -> list[tuple[int, ...]]:
    """Shuffle, sort by length within pools, cut into batches, shuffle those."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([order.seed, epoch, _ORDER])))
    items, lengths = generator.permutation(len(order.lengths)), np.asarray(order.lengths)
    pool = POOL * order.n_rows
    batches: list[tuple[int, ...]] = []
    for start in range(0, len(items), pool):
        some = items[start : start + pool]
        batches += _cut(some[np.argsort(lengths[some], kind="stable")], order.n_rows)
    return [batches[i] for i in generator.permutation(len(batches))]


def _cut(items: NDArray[np.int64], n_rows: int) -> list[tuple[int, ...]]:
    return [tuple(items[start : start + n_rows].tolist()) for start in range(0, len(items), n_rows)]


def most_tokens(wanted: int, context: int) -> int:
    """Tokens that a row may have: `wanted`, or with 0 as many as the model sees.

    Raises UsageError for more than that.
    """
    if wanted > context:
        raise UsageError(
            f"data.max_tokens is {wanted}, the model sees {context}",
            "learned positions end there",
            f"data.max_tokens={context}, or 0 for as many as it sees",
        )
    return wanted or context
