"""Batches for supervised fine-tuning: conversations as token ids with a loss mask, and their order.

Batches are a pure function of (seed, number). Records of similar length go together, so that there
is little padding, and every epoch has its own order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gpt2cli.data.instructions import InstructionRecord
from gpt2cli.errors import InputError, UsageError
from gpt2cli.templates import Template, encode_parts
from gpt2cli.tokenizer.base import Tokenizer

POOL_BATCHES = 16  # sorted by length together; more means less padding and less shuffling
OPEN_ROWS = 64  # packed rows that may still receive a record
_ORDER, _PACK = 2, 3  # random streams: no two uses may share one


# For a base with a character vocabulary, which lacks some of the data's.
ANY_TEXT = "a model of byte pairs takes any text, and init=runs/gpt2-mini then starts from it"
OWN_BASE = "gpt2 pretrain gpt2-mini"


@dataclass(frozen=True)
class SftExample:
    """One conversation. The model reads ids[:-1] and predicts the ids where `loss_mask` is True."""

    ids: NDArray[np.int64]  # (n + 1,)
    loss_mask: NDArray[np.bool_]  # (n + 1,), the first one False: nothing precedes it
    was_cut: bool

    @property
    def n_read(self) -> int:
        return len(self.ids) - 1


def encode_record(
    record: InstructionRecord, template: Template, tokenizer: Tokenizer, limit: int, mask_prompt: bool
) -> SftExample | None:
    """The record as token ids, cut so that the model reads at most `limit`; None if no answer is left.

    The loss mask covers the answers with their end-of-text, if the cut leaves it; without
    `mask_prompt`, all tokens but those of answers that are kept out of the loss.
    Raises InputError for a text that the vocabulary cannot encode.
    """
    stated = template.parts(record.turns)
    try:
        parts = encode_parts(stated, tokenizer)
    except InputError as error:  # a character vocabulary lacks some
        raise InputError(f"{record.where}: {error.what}", f"{error.why}; {ANY_TEXT}", OWN_BASE) from None
    ids = np.array([token for part, _ in parts for token in part], dtype=np.int64)
    answered = np.array([is_answer for part, is_answer in parts for _ in part])
    answered[0] = False  # a part may be empty, and then an answer begins the row
    end = min(len(ids), limit + 1)
    if not answered[:end].any():
        return None
    end = int(np.flatnonzero(answered[:end])[-1]) + 1  # drops a question that lost its answer
    loss_mask = answered
    if not mask_prompt:
        wanted = [part.in_loss or not part.is_answer for part in stated]
        loss_mask = np.repeat(wanted, [len(part) for part, _ in parts])
        loss_mask[0] = False
    return SftExample(ids[:end], loss_mask[:end].copy(), was_cut=end < len(ids))


def pack_records(lengths: Sequence[int], limit: int, seed: int) -> list[tuple[int, ...]]:
    """Pack records (by number) into rows of at most `limit` tokens: first fit, in random order."""
    bits = np.random.Philox(np.random.SeedSequence([seed, _PACK]))
    closed: list[tuple[int, ...]] = []
    rows: list[list[int]] = []
    room: list[int] = []
    for number in np.random.Generator(bits).permutation(len(lengths)).tolist():
        place = next((i for i, left in enumerate(room) if left >= lengths[number]), None)
        if place is None:
            if len(rows) == OPEN_ROWS:
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
class BatchOrder:
    """The batches of an endless sequence of epochs. The last batch of an epoch may be smaller."""

    lengths: Sequence[int]
    n_rows: int
    seed: int

    @property
    def n_batches(self) -> int:
        """Per epoch."""
        return math.ceil(len(self.lengths) / self.n_rows)

    def batch(self, number: int) -> tuple[int, ...]:
        """Indices of the records in batch `number`."""
        epoch, place = divmod(number, self.n_batches)
        return _epoch(self, epoch)[place]


def batches_by_length(
    lengths: Sequence[int], n_rows: int, max_tokens: int | None = None
) -> list[tuple[int, ...]]:
    """Every item once, shortest first, in batches of at most `n_rows`: for evaluation.

    `max_tokens` bounds a batch, padding included; an item longer than that has a batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        n = len(batches[-1]) + 1 if batches else 0
        if not batches or n > n_rows or (max_tokens is not None and n * lengths[i] > max_tokens):
            batches.append([])
        batches[-1].append(i)
    return [tuple(batch) for batch in batches]


@lru_cache(maxsize=2)  # a step may span two epochs
def _epoch(order: BatchOrder, epoch: int) -> list[tuple[int, ...]]:
    """Shuffle, sort by length within pools, split into batches, shuffle the batches."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([order.seed, epoch, _ORDER])))
    items, lengths = generator.permutation(len(order.lengths)), np.asarray(order.lengths)
    pool = POOL_BATCHES * order.n_rows
    batches: list[tuple[int, ...]] = []
    for start in range(0, len(items), pool):
        some = items[start : start + pool]
        some = some[np.argsort(lengths[some], kind="stable")]
        batches += [tuple(some[i : i + order.n_rows].tolist()) for i in range(0, len(some), order.n_rows)]
    return [batches[i] for i in generator.permutation(len(batches))]


def token_limit(wanted: int, context: int) -> int:
    """`wanted` tokens per row, or with 0 the model's context. Raises UsageError beyond the context."""
    if wanted > context:
        raise UsageError(
            f"data.max_tokens={wanted} is more than the context of the model, {context}",
            "it has no positions beyond that",
            f"data.max_tokens={context}, or data.max_tokens=0 for the whole context",
        )
    return wanted or context
