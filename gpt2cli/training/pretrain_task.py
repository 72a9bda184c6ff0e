"""Pretraining: next-token prediction on a prepared text, from random weights."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2cli.checkpoints.folder import load_model, write_model
from gpt2cli.data.token_dataset import TokenDataset
from gpt2cli.data.windows import TrainingWindows, validation_starts
from gpt2cli.errors import InputError, UsageError
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.recipe.schema import PretrainRecipe
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum
from gpt2cli.training.task import Batch, TrainingTask, first_sample
from gpt2cli.training.train_state import RunIdentity


@dataclass(frozen=True)
class PretrainTask(TrainingTask):
    """The training task of `gpt2 pretrain`."""

    recipe: PretrainRecipe
    data: TokenDataset

    def __post_init__(self) -> None:
        wanted, found = self.recipe.data.tokenizer, self.data.tokenizer.name
        if wanted != found:
            raise UsageError(
                f"data.tokenizer is {wanted}, but {self.recipe.data.source} was prepared with {found}",
                "a prepared folder keeps its tokenizer",
                f"data.tokenizer={found}",
            )
        if self.data.validation.n_tokens < 2:
            raise InputError(
                f"the validation split has {self.data.validation.n_tokens} tokens, a loss needs at least 2",
                "the text is too short, or data.validation too small",
                "data.validation=0.2",
            )
        self.windows  # noqa: B018 - raises for a text that is too short

    @cached_property
    def windows(self) -> TrainingWindows:
        return TrainingWindows(self.data.train, self.recipe.model.context, self.recipe.seed)

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

    def identity(self) -> RunIdentity:
        manifest = self.data.manifest
        shards = "".join(shard.sha256 for shard in (*manifest.train, *manifest.validation))
        digest = hashlib.sha256(shards.encode()).hexdigest()[:16]
        return {"data": digest, "train tokens": self.data.train.n_tokens}

    def fresh_model(self, attention: str) -> GPT2LMHead:
        return new_model(self.config, self.recipe.seed, attention)

    def saved_model(self, checkpoint: Path, attention: str) -> GPT2LMHead:
        return load_model(checkpoint, attention=attention, dropout=self.recipe.model.dropout).model

    def write_model(self, folder: Path, model: GPT2LMHead, recipe: str) -> dict[str, str]:
        return write_model(folder, model, self.tokenizer, recipe)

    def batch(self, step: int, micro: int) -> Batch:
        batch = self.recipe.batch
        rows = self.windows.rows(first_sample(batch, step, micro), batch.micro_batch)  # (B, T + 1)
        return _inputs_and_targets(rows)

    def evaluation_batches(self) -> Iterator[Batch]:
        """Windows spread evenly over the validation split, in batches of at most `micro_batch`."""
        validation, n_rows = self.data.validation, self.recipe.batch.micro_batch
        context = self.recipe.model.context
        length = min(context + 1, validation.n_tokens)
        starts = validation_starts(validation.n_tokens, context, self.recipe.eval.batches * n_rows)
        for i in range(0, len(starts), n_rows):
            rows = [validation.read(start, length) for start in starts[i : i + n_rows]]
            yield _inputs_and_targets(np.stack(rows))

    def loss_sum(self, model: GPT2LMHead, batch: Batch, dtype: torch.dtype) -> Tensor:
        hidden = model.transformer(batch.input_ids).flatten(0, 1)  # (B * T, C)
        return cross_entropy_sum(hidden, model.lm_head.weight, batch.targets.flatten(), dtype)


def _inputs_and_targets(rows: np.ndarray) -> Batch:
    ids = torch.from_numpy(rows)  # (B, T + 1)
    return Batch(ids[:, :-1], ids[:, 1:])  # the target of a position is the token after it
