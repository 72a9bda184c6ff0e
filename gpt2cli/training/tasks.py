"""Owns what a task is to the loop: where a step's batches come from and what their loss is.

The loop knows nothing of windows, labels or records; it asks a task for a batch, the number of
targets in it and the sum of their losses. One class a task.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gpt2cli.data.batches import Windows, evaluation_starts, first_sample
from gpt2cli.data.stored import Tokens
from gpt2cli.errors import InputError
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.training.cross_entropy import cross_entropy_sum


@dataclass(frozen=True)
class Batch:
    input_ids: Tensor  # (B, T)
    targets: Tensor  # (B, T), the token after each position


class Task(Protocol):
    """What the loop asks for."""

    @property
    def rank(self) -> int: ...

    def batch(self, step: int, micro: int) -> Batch: ...

    def evaluation_batches(self) -> Iterator[Batch]: ...

    def n_targets(self, batch: Batch) -> int: ...

    def loss_sum(self, model: GPT2LMHead, batch: Batch, dtype: torch.dtype) -> Tensor: ...


@dataclass(frozen=True)
class LanguageModeling:
    """Predict each next token of a text. Sizes count sequences; `context` counts tokens."""

    train: Windows
    validation: Tokens
    micro_batch: int
    accumulation: int
    n_evaluation_batches: int
    device: torch.device
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.validation.n_tokens < 2:
            raise InputError(
                f"the validation split has {self.validation.n_tokens} tokens, a loss needs 2",
                "the text is short, or data.validation is small",
                "data.validation=0.2",
            )

    def batch(self, step: int, micro: int) -> Batch:
        """Micro batch `micro` of the step after `step` finished ones, for this rank."""
        first = first_sample(
            step,
            micro,
            rank=self.rank,
            world=self.world,
            micro_batch=self.micro_batch,
            accumulation=self.accumulation,
        )
        return self._to_device(self.train.rows(first, self.micro_batch))

    def evaluation_batches(self) -> Iterator[Batch]:
        """The same windows of the validation split each time, in batches of at most micro_batch."""
        context, n_tokens = self.train.context, self.validation.n_tokens
        length = min(context + 1, n_tokens)
        starts = evaluation_starts(n_tokens, context, self.n_evaluation_batches * self.micro_batch)
        for i in range(0, len(starts), self.micro_batch):
            rows = [self.validation.read(start, length) for start in starts[i : i + self.micro_batch]]
            yield self._to_device(np.stack(rows))

    def n_targets(self, batch: Batch) -> int:
        return batch.targets.numel()

    def loss_sum(self, model: GPT2LMHead, batch: Batch, dtype: torch.dtype) -> Tensor:
        """Sum of the targets' losses in nats. The products of the output layer use `dtype`."""
        hidden = model.transformer(batch.input_ids)  # (B, T, C)
        return cross_entropy_sum(hidden.flatten(0, 1), model.lm_head.weight, batch.targets.flatten(), dtype)

    def _to_device(self, rows: np.ndarray) -> Batch:
        ids = torch.from_numpy(rows)  # (B, T + 1)
        return Batch(ids[:, :-1].to(self.device), ids[:, 1:].to(self.device))
