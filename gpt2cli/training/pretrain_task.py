"""Pretraining: next-token prediction on a prepared text, from random weights or another model's."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2cli.data.prepare_settings import prepare_command
from gpt2cli.data.shards import token_lengths
from gpt2cli.data.token_dataset import TokenDataset
from gpt2cli.data.windows import TrainingWindows, first_sample, validation_windows
from gpt2cli.errors import InputError, UsageError
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.recipe.data_sections import each_name
from gpt2cli.recipe.schema import PretrainRecipe
from gpt2cli.training.base_model import BaseLM
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum
from gpt2cli.training.task import Batch, LanguageModelTask
from gpt2cli.training.train_state import ROWS_PER_STEP, RunIdentity

# Rows per evaluation batch hold about as many tokens. Training's micro-batch has no part in it: the
# loss must not depend on how a batch is cut.
EVALUATION_TOKENS = 4096


@dataclass(frozen=True)
class PretrainTask(LanguageModelTask):
    """The training task of `gpt2 pretrain`."""

    recipe: PretrainRecipe
    data: TokenDataset
    base: BaseLM  # random weights, or the model to train further

    def __post_init__(self) -> None:
        if self.data.tokenizer.fingerprint != self.base.tokenizer.fingerprint:
            raise UsageError(
                f"{self.data.folder}: was prepared with another tokenizer than init={self.recipe.init} has",
                f"{self.data.tokenizer.n_vocab} tokens, and the model has {self.base.tokenizer.n_vocab}",
                prepare_command(self.data.manifest, self.data.folder, tokenizer=self.base.name),
            )
        n_validation, folder = self.data.validation.n_tokens, self.data.folder
        if n_validation < 2:
            is_named = [Path(name) for name in each_name(self.recipe.data.source)] == [folder]
            raise InputError(
                f"the validation split has {n_validation} tokens, a loss needs at least 2",
                "the text is too short, or its share for validation too small",
                prepare_command(self.data.manifest, folder, validation=0.2)
                if is_named
                else "data.validation=0.2, or more text",
            )
        self.windows  # noqa: B018 - raises for a text that is too short

    @cached_property
    def windows(self) -> TrainingWindows:
        return TrainingWindows(self.data.train, self.row_length, self.recipe.seed)

    @property
    def row_length(self) -> int:
        return self.config.n_positions

    @property
    def tokens_per_step(self) -> int:
        return self.recipe.batch.rows_per_step * self.row_length

    @property
    def size(self) -> str:
        return (
            f"{self.data.train.n_tokens:,} training and {self.data.validation.n_tokens:,} validation tokens"
        )

    @property
    def validation_size(self) -> str:
        return f"validation {self.data.validation.n_tokens:,}"

    @property
    def steps_per_epoch(self) -> float:
        return self.windows.n_windows / self.recipe.batch.rows_per_step

    def identity(self) -> RunIdentity:
        manifest = self.data.manifest
        shards = "".join(shard.sha256 for shard in (*manifest.train, *manifest.validation))
        digest = hashlib.sha256(shards.encode()).hexdigest()[:16]
        return self.lora_identity() | {
            "data": digest,
            "train tokens": self.data.train.n_tokens,
            ROWS_PER_STEP: self.recipe.batch.rows_per_step,  # the same samples, however they are cut
        }

    def batch(self, step: int, micro: int) -> Batch:
        batch = self.recipe.batch
        first = first_sample(step, micro, batch.micro_batch, batch.accumulation)
        rows = self.windows.rows(first, batch.micro_batch)  # (B, T + 1)
        return _inputs_and_targets(rows)

    def evaluation_batches(self) -> Iterator[Batch]:
        """Windows spread evenly over the validation split, or all of it, in batches of a fixed size."""
        validation, n_rows = self.data.validation, max(1, EVALUATION_TOKENS // self.row_length)
        wanted = self.recipe.eval.tokens
        found = validation_windows(validation.n_tokens, self.row_length, None if wanted == "all" else wanted)
        for length, same in itertools.groupby(found, key=lambda window: window[1]):
            starts = [start for start, _ in same]
            for i in range(0, len(starts), n_rows):
                rows = [validation.read(start, length + 1) for start in starts[i : i + n_rows]]
                yield _inputs_and_targets(np.stack(rows))

    @cached_property
    def evaluation_bytes(self) -> int | None:
        lengths = torch.from_numpy(token_lengths(self.tokenizer))  # (V,)
        return int(sum(lengths[batch.targets].sum() for batch in self.evaluation_batches()))

    def loss_sum(self, model: GPT2LMHead, batch: Batch, dtype: torch.dtype) -> Tensor:
        hidden = model.transformer(batch.input_ids).flatten(0, 1)  # (B * T, C)
        return cross_entropy_sum(hidden, model.lm_head.weight, batch.targets.flatten(), dtype)


def _inputs_and_targets(rows: np.ndarray) -> Batch:
    ids = torch.from_numpy(rows)  # (B, T + 1)
    return Batch(ids[:, :-1], ids[:, 1:])  # the target of a position is the token after it
