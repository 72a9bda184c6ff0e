"""Fine-tuning a classifier: a language model with a new head predicts the class of a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gpt2cli.checkpoints.classifier import load_classifier, write_classifier
from gpt2cli.checkpoints.folder import read_manifest, require_tensors
from gpt2cli.checkpoints.lora_adapter import (
    ADAPTER_WEIGHTS,
    read_classifier_adapter,
    write_peft,
)
from gpt2cli.checkpoints.safetensors_file import read_tensors
from gpt2cli.data.labelled_splits import ClassifySplits, LabelledExamples
from gpt2cli.data.labelled_texts import class_weights, pad_right
from gpt2cli.data.sft_batches import batches_by_length
from gpt2cli.data.windows import first_sample
from gpt2cli.evaluation.class_metrics import Prediction, classification_metrics
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2Classifier, empty_classifier
from gpt2cli.model.lora import merged_state
from gpt2cli.paths import ADAPTER
from gpt2cli.recipe.schema import ClassifyRecipe
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.training.base_model import BaseLM
from gpt2cli.training.task import Batch, TrainingTask, add_adapters, require_base_of_adapters
from gpt2cli.training.train_state import ROWS_PER_STEP, RunIdentity

OLD_ADAPTERS = "adapters.safetensors"  # of older versions, in place of the folder ADAPTER


@dataclass(frozen=True)
class ClassifyBatch(Batch):
    """`targets` are (B,), a class per text."""

    lengths: Tensor  # (B,), tokens of each row without its padding


@dataclass(frozen=True)
class ClassifyTask(TrainingTask):
    """The training task of `gpt2 finetune-classify`: the last token's hidden state gives the class."""

    recipe: ClassifyRecipe
    data: ClassifySplits
    base: BaseLM

    def __post_init__(self) -> None:
        require_base_of_adapters(self.recipe.train, self.base)

    @cached_property
    def config(self) -> GPT2Config:
        # A classifier has no output layer that could have weights of its own.
        return replace(self.base.config, tie_word_embeddings=True)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.base.tokenizer

    @property
    def tokens_per_step(self) -> int:
        mean = sum(map(len, self.data.train.ids)) / len(self.data.train)
        return max(1, round(mean * self.recipe.batch.rows_per_step))

    @property
    def steps_per_epoch(self) -> float:
        return len(self.data.train) / self.recipe.batch.rows_per_step

    @property
    def size(self) -> str:
        return f"{len(self.data.train):,} training texts"

    @property
    def validation_size(self) -> str:
        return f"validation {len(self.data.validation):,}, test {len(self.data.test):,}"

    @cached_property
    def _weights(self) -> Tensor | None:
        if self.recipe.data.balance != "weights":
            return None
        return torch.tensor(class_weights(self.data.train.classes, len(self.data.labels)))

    def identity(self) -> RunIdentity:
        lora, train = self.recipe.lora, self.recipe.train
        facts: RunIdentity = {
            "init": self.base.sha256[:16],
            "data": self.data.digest[:16],
            "labels": ", ".join(self.data.labels),
            "train": train,
            "data.balance": self.recipe.data.balance,
            ROWS_PER_STEP: self.recipe.batch.rows_per_step,
        }
        if train == "lora":
            facts |= {"lora": f"rank {lora.rank}, alpha {lora.alpha:g}, on {' '.join(lora.targets)}"}
        return facts

    def fresh_model(self, attention: str) -> GPT2Classifier:
        model = empty_classifier(self.config, len(self.data.labels), attention)
        model.transformer = self.base.model(attention).transformer
        head = torch.empty(len(self.data.labels), self.config.n_embd)  # (K, C)
        generator = torch.Generator().manual_seed(self.recipe.seed)
        head.normal_(0.0, self.config.initializer_range, generator=generator)
        model.score.weight = torch.nn.Parameter(head)
        self._mark_trainable(model)
        return model

    def saved_model(self, checkpoint: Path, attention: str) -> GPT2Classifier:
        if self.recipe.train == "lora":
            model = self.fresh_model(attention)
            state = _read_adapters(checkpoint)
            trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
            shapes = {name: tuple(tensor.shape) for name, tensor in trainable.items()}
            found = {name: tuple(tensor.shape) for name, tensor in state.items()}
            require_tensors(checkpoint / ADAPTER, shapes, found)
            model.load_state_dict(state, strict=False)
            return model
        model = load_classifier(checkpoint, attention=attention, dropout=self.config.dropout).model
        self._mark_trainable(model)
        return model

    def write_model(self, folder: Path, model: GPT2Classifier, recipe: str) -> dict[str, str]:
        hashes: dict[str, str] = {}
        if self.recipe.train == "lora":
            (folder / ADAPTER).mkdir()
            written = write_peft(
                folder / ADAPTER,
                model,
                dropout=self.recipe.lora.dropout,
                targets=self.recipe.lora.targets,
                base=self.base.folder,
                base_sha256=self.base.sha256,
            )
            hashes = {f"{ADAPTER}/{name}": sha256 for name, sha256 in written.items()}
            merged = merged_state(model)  # training continues with separate adapters
            model = empty_classifier(self.config, len(self.data.labels))
            model.load_state_dict(merged, assign=True)
        labels, max_tokens = self.data.labels, self.data.max_tokens
        return hashes | write_classifier(folder, model, labels, self.tokenizer, max_tokens, recipe)

    def batch(self, step: int, micro: int) -> ClassifyBatch:
        """Each epoch visits every text once, in its own order; a batch may span two epochs."""
        batch, n = self.recipe.batch, len(self.data.train)
        first = first_sample(step, micro, batch.micro_batch, batch.accumulation)
        samples = [divmod(sample, n) for sample in range(first, first + batch.micro_batch)]
        rows = [int(_epoch_order(self.recipe.seed, epoch, n)[position]) for epoch, position in samples]
        return self._batch(self.data.train, rows)

    def evaluation_batches(self) -> Iterator[ClassifyBatch]:
        """The whole validation split, texts of similar length together."""
        validation, n_rows = self.data.validation, self.recipe.batch.micro_batch
        for rows in batches_by_length([len(ids) for ids in validation.ids], n_rows):
            yield self._batch(validation, rows)

    def loss_sum(self, model: GPT2Classifier, batch: ClassifyBatch, dtype: torch.dtype) -> Tensor:
        return self._loss_sum(model(batch.input_ids, batch.lengths), batch)

    def evaluate_batch(
        self, model: GPT2Classifier, batch: ClassifyBatch, dtype: torch.dtype
    ) -> tuple[Tensor, list[Prediction]]:
        logits = model(batch.input_ids, batch.lengths)  # (B, K)
        predicted = logits.argmax(dim=-1).tolist()
        return self._loss_sum(logits, batch), list(zip(batch.targets.tolist(), predicted, strict=True))

    def metrics(self, predictions: list[Prediction]) -> dict[str, float]:
        metrics = classification_metrics(predictions, len(self.data.labels))
        return {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1}

    def _loss_sum(self, logits: Tensor, batch: ClassifyBatch) -> Tensor:
        weight = None if self._weights is None else self._weights.to(logits.device, non_blocking=True)
        return F.cross_entropy(logits.float(), batch.targets, weight=weight, reduction="sum")

    def _batch(self, examples: LabelledExamples, rows: Sequence[int]) -> ClassifyBatch:
        input_ids, lengths = pad_right([examples.ids[i] for i in rows], self.tokenizer.end_of_text)
        return ClassifyBatch(input_ids, torch.tensor([examples.classes[i] for i in rows]), lengths)

    def _mark_trainable(self, model: GPT2Classifier) -> None:
        """Set `requires_grad`. Autograd saves nothing below the lowest trainable block, so that training
        the last block costs little more than a forward.
        """
        if self.recipe.train == "lora":
            add_adapters(model, self.recipe.lora, self.recipe.seed)
            model.score.weight.requires_grad_(True)
            return
        trainable = {
            "head": (model.score,),
            "last-block": (model.score, model.transformer.ln_f, model.transformer.h[-1]),
            "all": (model,),
        }[self.recipe.train]
        model.requires_grad_(False)
        for module in trainable:
            module.requires_grad_(True)


def _read_adapters(checkpoint: Path) -> dict[str, Tensor]:
    """The trained tensors beside a merged model, by the names of the model with adapters."""
    hashes = read_manifest(checkpoint)
    if OLD_ADAPTERS in hashes:
        return read_tensors(checkpoint / OLD_ADAPTERS, hashes[OLD_ADAPTERS])
    return read_classifier_adapter(checkpoint / ADAPTER, hashes.get(f"{ADAPTER}/{ADAPTER_WEIGHTS}"))


@lru_cache(maxsize=2)  # a batch may span two epochs
def _epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)
