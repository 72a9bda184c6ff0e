"""Owns what a task is: everything by which pretraining and the two ways of finetuning differ.

The loop and the session know nothing of windows, labels or records. They ask a task for a model,
for batches, for the sum of a batch's losses, and for a way to write the model down. One file a
task: `pretraining.py`, `classification.py`, `instruction.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from gpt2cli.evaluation.classes import Verdict
from gpt2cli.model.config import GPT2Config
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.training.train_state import Identity

WORLD = 1  # ranks that train together
RANK = 0  # this process among them


@dataclass(frozen=True)
class Batch:
    """Rows of token ids and what is to be learnt from them; a task may add to it."""

    input_ids: Tensor  # (B, T)
    targets: Tensor  # (B, T), the token after each position; or what the task says

    def to(self, device: torch.device) -> Self:
        """The same batch in another place."""
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{name: t.to(device) if isinstance(t, Tensor) else t for name, t in moved.items()})


class Task(Protocol):
    """One kind of training on one set of data."""

    @property
    def config(self) -> GPT2Config:
        """Of the model that is trained."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def row_length(self) -> int | None:
        """T of every batch, or None where it changes from one to the next."""

    @property
    def tokens_per_step(self) -> int:
        """About how many tokens a step reads."""

    @property
    def steps_per_epoch(self) -> float:
        """Steps until each item has been seen once."""

    @property
    def size(self) -> str:
        """How much there is to learn from, in words; `validation_size`, to measure with."""

    @property
    def validation_size(self) -> str: ...

    def identity(self) -> Identity:
        """What must be the same for a resumed run to end in the weights of an uninterrupted one."""

    def fresh_model(self, attention: str) -> Any:
        """The model at step 0, with `requires_grad` where it is to learn."""

    def saved_model(self, checkpoint: Path, attention: str) -> Any:
        """The model of a checkpoint, likewise."""

    def write_model(self, folder: Path, model: Any, recipe: str) -> dict[str, str]:
        """Write the model's files; returns {file name: SHA-256}."""

    def batch(self, step: int, micro: int) -> Any:
        """Micro batch `micro` of the step after `step` finished ones."""

    def evaluation_batches(self) -> Iterator[Any]:
        """The same batches of the validation split each time."""

    def n_targets(self, batch: Any) -> int: ...

    def loss_sum(self, model: Any, batch: Any, dtype: torch.dtype) -> Tensor:
        """Sum of the targets' losses in nats. Large products use `dtype`."""

    def judge(self, model: Any, batch: Any, dtype: torch.dtype) -> tuple[Tensor, list[Verdict]]:
        """The same sum, and the verdicts on the batch's items."""

    def measures(self, verdicts: list[Verdict]) -> dict[str, float]:
        """What the verdicts of a whole evaluation come to, by name."""
