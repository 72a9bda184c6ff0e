"""Owns pretraining as a task: a fresh model that learns each next token of a prepared text."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2cli.checkpoints.folder import load_model, write_model
from gpt2cli.data.token_dataset import TokenData
from gpt2cli.data.windows import Windows, evaluation_starts, first_sample
from gpt2cli.errors import InputError, UsageError
from gpt2cli.evaluation.classes import Verdict
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.recipe.schema import PretrainRecipe
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum
from gpt2cli.training.task import RANK, WORLD, Batch
from gpt2cli.training.train_state import Identity


@dataclass(frozen=True)
class Pretraining:
    """Predict each next token of a text, from random weights."""

    recipe: PretrainRecipe
    data: TokenData

    def __post_init__(self) -> None:
        wanted, there = self.recipe.data.tokenizer, self.data.tokenizer.name
        if wanted != there:
            raise UsageError(
                f"data.tokenizer is {wanted}, but the text is prepared with {there}",
                f"{self.recipe.data.source} is a prepared folder, which keeps its own tokenizer",
                f"data.tokenizer={there}, or prepare the text again",
            )
        if self.data.validation.n_tokens < 2:
            raise InputError(
                f"the validation split has {self.data.validation.n_tokens} tokens, a loss needs 2",
                "the text is short, or data.validation is small",
                "data.validation=0.2",
            )
        self.windows  # noqa: B018 - refuses a text that is too short, before any work

    @cached_property
    def windows(self) -> Windows:
        return Windows(self.data.train, self.recipe.model.context, self.recipe.seed)

    @cached_property
    def config(self) -> GPT2Config:
        return self.recipe.model.config(self.data.tokenizer.n_vocab)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.data.tokenizer

    @property
    def row_length(self) -> int:
        return self.recipe.model.context

    @property
    def tokens_per_step(self) -> int:
        return self.recipe.tokens_per_step

    @property
    def size(self) -> str:
        return f"{self.data.train.n_tokens:,} training tokens"

    @property
    def validation_size(self) -> str:
        return f"validation {self.data.validation.n_tokens:,}"

    @property
    def steps_per_epoch(self) -> float:
        return self.windows.n_windows * self.recipe.model.context / self.tokens_per_step

    def identity(self) -> Identity:
        shards = "".join(
            shard.sha256 for shard in (*self.data.manifest.train, *self.data.manifest.validation)
        )
        return {
            "data": hashlib.sha256(shards.encode()).hexdigest()[:16],
            "train tokens": self.data.train.n_tokens,
        }

    def fresh_model(self, attention: str) -> GPT2LMHead:
        return new_model(self.config, self.recipe.seed, attention)

    def saved_model(self, checkpoint: Path, attention: str) -> GPT2LMHead:
        return load_model(checkpoint, attention=attention, dropout=self.recipe.model.dropout).model

    def write_model(self, folder: Path, model: GPT2LMHead, recipe: str) -> dict[str, str]:
        return write_model(folder, model, self.tokenizer, recipe)

    def batch(self, step: int, micro: int) -> Batch:
        batch = self.recipe.batch
        first = first_sample(
            step,
            micro,
            rank=RANK,
            world=WORLD,
            micro_batch=batch.micro_batch,
            accumulation=batch.accumulation,
        )
        return _shifted(self.windows.rows(first, batch.micro_batch))

    def evaluation_batches(self) -> Iterator[Batch]:
        """Windows spread over the validation split, in batches of at most micro_batch."""
        validation, n_rows = self.data.validation, self.recipe.batch.micro_batch
        context = self.recipe.model.context
        length = min(context + 1, validation.n_tokens)
        starts = evaluation_starts(validation.n_tokens, context, self.recipe.eval.batches * n_rows)
        for i in range(0, len(starts), n_rows):
            yield _shifted(np.stack([validation.read(start, length) for start in starts[i : i + n_rows]]))

    def n_targets(self, batch: Batch) -> int:
        return batch.targets.numel()

    def loss_sum(self, model: GPT2LMHead, batch: Batch, dtype: torch.dtype) -> Tensor:
        hidden = model.transformer(batch.input_ids)  # (B, T, C)
        return cross_entropy_sum(hidden.flatten(0, 1), model.lm_head.weight, batch.targets.flatten(), dtype)

    def judge(self, model: GPT2LMHead, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, list[Verdict]]:
        return self.loss_sum(model, batch, dtype), []

    def measures(self, verdicts: list[Verdict]) -> dict[str, float]:
        return {}


def _shifted(rows: np.ndarray) -> Batch:
    ids = torch.from_numpy(rows)  # (B, T + 1)
    return Batch(ids[:, :-1], ids[:, 1:])
