"""The interface of a training task: the differences between pretraining and the two fine-tunes; and the
part that the two tasks share whose model is a language model.

The loop and the setup know nothing of windows, labels or records. The tasks are in
`pretrain_task.py`, `classify_task.py` and `sft_task.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from gpt2cli.checkpoints.folder import load_model, write_model
from gpt2cli.errors import UsageError
from gpt2cli.evaluation.class_metrics import Prediction
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.model.lora import add_lora
from gpt2cli.recipe.sections import LoraConfig
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.training.base_model import BaseLM
from gpt2cli.training.train_state import RunIdentity


@dataclass(frozen=True)
class Batch:
    """Input ids and their targets; a task's own batch class may add fields."""

    input_ids: Tensor  # (B, T)
    targets: Tensor  # (B, T), the token after each position, unless the task says otherwise

    @property
    def n_targets(self) -> int:
        return self.targets.numel()

    def to(self, device: torch.device) -> Self:
        """The batch on another device; the host does not wait until it is there."""
        tensors = {name: _moved(t, device) for name, t in vars(self).items() if isinstance(t, Tensor)}
        return replace(self, **tensors)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    # The copy of pageable memory would be waited for.
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


class TrainingTask(Protocol):
    """One kind of training on one data set."""

    recipe: Any
    base: BaseLM

    @property
    def config(self) -> GPT2Config:
        """Of the model to train."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def row_length(self) -> int | None:
        """T of every batch, or None where it varies."""
        return None

    @property
    def tokens_per_step(self) -> int:
        """The mean number of input tokens per step."""

    @property
    def steps_per_epoch(self) -> float: ...

    @property
    def size(self) -> str:
        """The size of the training split, as text."""

    @property
    def validation_size(self) -> str:
        """The sizes of the other splits, as text."""

    def identity(self) -> RunIdentity:
        """The values that must not change for a resumed run to end with an uninterrupted run's weights."""

    def fresh_model(self, attention: str) -> Any:
        """The model at step 0; `requires_grad` marks the trainable parameters."""

    def saved_model(self, checkpoint: Path, attention: str) -> Any:
        """The model of a checkpoint, marked the same way."""

    def write_model(self, folder: Path, model: Any, recipe: str) -> dict[str, str]:
        """Write the model's files and the recipe, YAML text; returns {file name: SHA-256}."""

    def batch(self, step: int, micro: int) -> Any:
        """Micro-batch `micro` of the step after `step` finished ones."""

    def evaluation_batches(self) -> Iterator[Any]:
        """Batches of the validation split, the same ones each time."""

    @property
    def evaluation_bytes(self) -> int | None:
        """Bytes of text that all targets of `evaluation_batches` stand for; None where they are no text."""
        return None

    def loss_sum(self, model: Any, batch: Any, dtype: torch.dtype) -> Tensor:
        """The loss summed over the batch's targets, a scalar in nats. The output layer uses `dtype`."""

    def evaluate_batch(self, model: Any, batch: Any, dtype: torch.dtype) -> tuple[Tensor, list[Prediction]]:
        """The same sum, and a prediction per item of the batch where the task makes them."""
        return self.loss_sum(model, batch, dtype), []

    def metrics(self, predictions: list[Prediction]) -> dict[str, float]:
        """Metrics over the predictions of a whole evaluation, by name."""
        return {}


class LanguageModelTask(TrainingTask):
    """A task whose model is a GPT2LMHead; `recipe.train` is "all" or "lora"."""

    base: BaseLM

    @property
    def config(self) -> GPT2Config:
        return self.base.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.base.tokenizer

    def lora_identity(self) -> RunIdentity:
        """What a resume of adapters needs unchanged."""
        if self.recipe.train != "lora":
            return {}
        lora = self.recipe.lora
        return {
            "init": self.base.sha256[:16],
            "lora.rank": lora.rank,
            "lora.alpha": lora.alpha,
            "lora.dropout": lora.dropout,
            "lora.targets": ",".join(lora.targets),
        }

    def fresh_model(self, attention: str) -> GPT2LMHead:
        model = self.base.model(attention)
        if self.recipe.train == "lora":
            add_adapters(model, self.recipe.lora, self.recipe.seed)
        return model

    def saved_model(self, checkpoint: Path, attention: str) -> GPT2LMHead:
        if self.recipe.train != "lora":
            return load_model(checkpoint, attention=attention, dropout=self.config.dropout).model
        from gpt2cli.checkpoints.lora_adapter import load_adapter

        model = self.fresh_model(attention)
        load_adapter(checkpoint, model)
        return model

    def write_model(self, folder: Path, model: GPT2LMHead, recipe: str) -> dict[str, str]:
        """The whole model, or its adapters alone."""
        if self.recipe.train != "lora":
            return write_model(folder, model, self.tokenizer, recipe)
        from gpt2cli.checkpoints.lora_adapter import write_adapter

        return write_adapter(
            folder,
            model,
            dropout=self.recipe.lora.dropout,
            targets=self.recipe.lora.targets,
            base=self.base.folder,
            base_sha256=self.base.sha256,
            tokenizer=self.tokenizer,
            recipe=recipe,
        )


def require_base_of_adapters(train: str, base: BaseLM) -> None:
    """Raise UsageError for adapters over random weights, which are stored nowhere."""
    if train == "lora" and base.folder is None:
        raise UsageError(
            "train: lora needs a trained model to start from",
            "init is scratch: an adapter is useless without the random weights it was trained on",
            "init=124M, or train=all",
        )


def add_adapters(model: nn.Module, lora: LoraConfig, seed: int) -> None:
    """Freeze the model and add the LoRA adapters of a recipe."""
    add_lora(model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets, seed=seed)
