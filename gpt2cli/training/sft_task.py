"""Supervised instruction fine-tuning (SFT): a language model trained on the answers of records.

Only positions inside the loss mask go through the output layer, the largest matmul of the model.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from gpt2cli.checkpoints.folder import load_model, write_model
from gpt2cli.data.instructions import InstructionRecord, InstructionRecords
from gpt2cli.data.sft_batches import (
    BatchOrder,
    SftExample,
    batches_by_length,
    collate,
    encode_record,
    pack_records,
    token_limit,
)
from gpt2cli.data.splits import split
from gpt2cli.errors import InputError, UsageError
from gpt2cli.evaluation.classes import Prediction
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.recipe.schema import InstructRecipe
from gpt2cli.templates import TEMPLATES, Template, prompt_ids, write_template
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.training.base_model import FinetuneBase
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum
from gpt2cli.training.task import Batch
from gpt2cli.training.train_state import RunIdentity


@dataclass(frozen=True)
class SftBatch(Batch):
    """`targets` are the N tokens inside the loss mask, (N,)."""

    target_positions: Tensor  # (N,), indices into the B * T positions: where each target is predicted
    positions: Tensor | None  # (B, T), position within the record; None without packing
    segments: Tensor | None  # (B, T), record within the row; None without packing
    rows: tuple[tuple[SftExample, ...], ...]  # the examples of each row, for --dry-run


@dataclass(frozen=True)
class EvalPrompt:
    """A record to be answered, and its prompt as token ids."""

    record: InstructionRecord
    ids: tuple[int, ...]


@dataclass(frozen=True)
class SftSplits:
    """The records as token ids, split at random."""

    train: tuple[SftExample, ...]
    validation: tuple[SftExample, ...]
    shown: EvalPrompt  # of the validation split: answered after each evaluation
    test: tuple[EvalPrompt, ...]
    limit: int  # tokens per record that the model sees
    n_cut: int  # records longer than that
    n_left_out: int  # records whose prompt alone fills the limit
    n_train_only: int  # records with an earlier answer to train on, but no room for the last one
    sha256: str  # of the source file

    @property
    def test_digest(self) -> str:
        """SHA-256 of the test prompts, token by token, and of the reference answers."""
        digest = hashlib.sha256()
        for prompt in self.test:
            turns = [asdict(turn) for turn in prompt.record.turns]
            digest.update(json.dumps([prompt.record.index, prompt.ids, turns]).encode())
        return digest.hexdigest()


def split_records(recipe: InstructRecipe, found: InstructionRecords, base: FinetuneBase) -> SftSplits:
    """Encode and split the records.

    A record without room for its last answer goes to the training split: it cannot be evaluated.
    Raises InputError if too few records are left, UsageError for a limit beyond the context.
    """
    limit = token_limit(recipe.data.max_tokens, base.config.n_positions)
    template, tokenizer = TEMPLATES[recipe.template], base.tokenizer
    prompts, examples, train_only = list[EvalPrompt](), list[SftExample](), list[SftExample]()
    for record in found.records:
        example = encode_record(record, template, tokenizer, limit, recipe.mask_prompt)
        if example is None:
            continue
        ids = prompt_ids(template, record.question, tokenizer.encode, tokenizer.end_of_text)
        if len(ids) < limit:
            prompts.append(EvalPrompt(record, tuple(ids)))
            examples.append(example)
        else:
            train_only.append(example)
    if not prompts:
        raise InputError(
            f"none of the {len(found.records)} records has room for an answer",
            f"their prompts alone have {limit} tokens or more",
            f"data.max_tokens={4 * limit}, or a model with a longer context",
        )
    train, validation, test = split(len(examples), (recipe.data.validation, recipe.data.test), recipe.seed)
    return SftSplits(
        train=(*(examples[i] for i in train), *train_only),
        validation=tuple(examples[i] for i in validation),
        shown=prompts[validation[0]],
        test=tuple(prompts[i] for i in test),
        limit=limit,
        n_cut=sum(example.was_cut for example in (*examples, *train_only)),
        n_left_out=len(found.records) - len(examples) - len(train_only),
        n_train_only=len(train_only),
        sha256=found.sha256,
    )


@dataclass(frozen=True, eq=False)
class SftTask:
    """The training task of `gpt2 finetune-instruct`."""

    recipe: InstructRecipe
    base: FinetuneBase
    examples: SftSplits

    def __post_init__(self) -> None:
        if self.recipe.train == "lora" and self.base.folder is None:
            raise UsageError(
                "train: lora needs a trained model to start from",
                "init is scratch: an adapter is useless without the random weights it was trained on",
                "init=124M, or train=all",
            )

    @property
    def template(self) -> Template:
        return TEMPLATES[self.recipe.template]

    @property
    def config(self) -> GPT2Config:
        return self.base.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.base.tokenizer

    @property
    def row_length(self) -> None:
        return None

    @property
    def tokens_per_step(self) -> int:
        batch = self.recipe.batch
        mean = sum(example.n_read for example in self.examples.train) / len(self._rows)
        return max(1, round(mean * batch.micro_batch * batch.accumulation))

    @property
    def steps_per_epoch(self) -> float:
        return self._order.n_batches / self.recipe.batch.accumulation

    @property
    def size(self) -> str:
        train = self.examples.train
        rows = f" in {len(self._rows):,} rows" if self.recipe.packing else ""
        return f"{len(train):,} records{rows} with {_count_targets(train):,} target tokens"

    @property
    def max_targets(self) -> int:
        """The most positions of one micro-batch that go through the output layer."""
        largest = max(_count_targets(row) for row in self._rows)
        return self.recipe.batch.micro_batch * largest

    @property
    def validation_size(self) -> str:
        held = self.examples.validation
        return f"validation {len(held):,} with {_count_targets(held):,}, test {len(self.examples.test):,}"

    def identity(self) -> RunIdentity:
        digest = hashlib.sha256()
        for example in (*self.examples.train, *self.examples.validation):
            ids, loss_mask = example.ids, example.loss_mask
            digest.update(len(ids).to_bytes(4, "little") + ids.tobytes() + loss_mask.tobytes())
        recipe = self.recipe
        adapters: RunIdentity = {}
        if recipe.train == "lora":
            lora = recipe.lora
            adapters = {
                "lora.rank": lora.rank,
                "lora.alpha": lora.alpha,
                "lora.dropout": lora.dropout,
                "lora.targets": ",".join(lora.targets),
            }
        return adapters | {
            "init": self.base.sha256[:16],
            "data": digest.hexdigest()[:16],
            "train records": len(self.examples.train),
            "train": recipe.train,
            "template": recipe.template,
            "packing": int(recipe.packing),
            "data.max_tokens": self.examples.limit,  # decides where records are cut and packed
        }

    def fresh_model(self, attention: str) -> GPT2LMHead:
        model = self.base.model(attention)
        if self.recipe.train == "lora":
            self._add_adapters(model)
        return model

    def saved_model(self, checkpoint: Path, attention: str) -> GPT2LMHead:
        if self.recipe.train != "lora":
            return load_model(checkpoint, attention=attention, dropout=self.config.dropout).model
        from gpt2cli.checkpoints.lora_adapter import load_adapter

        model = self.base.model(attention)
        self._add_adapters(model)
        load_adapter(checkpoint, model)
        return model

    def _add_adapters(self, model: GPT2LMHead) -> None:
        from gpt2cli.model.lora import add_lora

        lora = self.recipe.lora
        add_lora(
            model,
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            targets=lora.targets,
            seed=self.recipe.seed,
        )

    def write_model(self, folder: Path, model: GPT2LMHead, recipe: str) -> dict[str, str]:
        """The whole model, or its adapters alone; with the template of its prompts."""
        if self.recipe.train == "lora":
            from gpt2cli.checkpoints.lora_adapter import write_adapter

            hashes = write_adapter(
                folder,
                model,
                dropout=self.recipe.lora.dropout,
                targets=self.recipe.lora.targets,
                base=self.base.folder,
                base_sha256=self.base.sha256,
                tokenizer=self.tokenizer,
                recipe=recipe,
            )
        else:
            hashes = write_model(folder, model, self.tokenizer, recipe)
        return hashes | write_template(folder, self.recipe.template)

    def batch(self, step: int, micro: int) -> SftBatch:
        number = step * self.recipe.batch.accumulation + micro
        return self._batch([self._rows[i] for i in self._order.batch(number)])

    def evaluation_batches(self) -> Iterator[SftBatch]:
        """The whole validation split, unpacked."""
        examples = self.examples.validation
        for items in batches_by_length([e.n_read for e in examples], self.recipe.batch.micro_batch):
            yield self._batch([(examples[i],) for i in items])

    def n_targets(self, batch: SftBatch) -> int:
        return batch.targets.numel()

    def loss_sum(self, model: GPT2LMHead, batch: SftBatch, dtype: torch.dtype) -> Tensor:
        mask = None if batch.segments is None else _packing_mask(batch.segments)
        hidden = model.transformer(batch.input_ids, positions=batch.positions, mask=mask)  # (B, T, C)
        hidden = hidden.flatten(0, 1)[batch.target_positions]  # (N, C)
        return cross_entropy_sum(hidden, model.lm_head.weight, batch.targets, dtype)

    def evaluate_batch(
        self, model: GPT2LMHead, batch: SftBatch, dtype: torch.dtype
    ) -> tuple[Tensor, list[Prediction]]:
        return self.loss_sum(model, batch, dtype), []

    def metrics(self, predictions: list[Prediction]) -> dict[str, float]:
        return {}

    @cached_property
    def _rows(self) -> list[tuple[SftExample, ...]]:
        """The examples of each training row: one, or with packing several, the same ones in every epoch."""
        examples = self.examples.train
        if not self.recipe.packing:
            return [(example,) for example in examples]
        packed = pack_records([e.n_read for e in examples], self.examples.limit, self.recipe.seed)
        return [tuple(examples[i] for i in row) for row in packed]

    @cached_property
    def _order(self) -> BatchOrder:
        lengths = [sum(example.n_read for example in row) for row in self._rows]
        return BatchOrder(lengths, self.recipe.batch.micro_batch, self.recipe.seed)

    def _batch(self, rows: list[tuple[SftExample, ...]]) -> SftBatch:
        arrays = collate(rows)
        is_packed = any(len(row) > 1 for row in rows)
        # One record per row needs no mask: causal attention never sees the padding on its right.
        return SftBatch(
            input_ids=torch.from_numpy(arrays.input_ids),
            targets=torch.from_numpy(arrays.targets),
            target_positions=torch.from_numpy(arrays.target_positions),
            positions=torch.from_numpy(arrays.positions) if is_packed else None,
            segments=torch.from_numpy(arrays.segments) if is_packed else None,
            rows=tuple(rows),
        )


def _packing_mask(segments: Tensor) -> Tensor:
    """(B, 1, T, T): a token attends to itself and to earlier tokens of its own record."""
    T = segments.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    return ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]


def _count_targets(examples: Sequence[SftExample]) -> int:
    return sum(int(example.loss_mask.sum()) for example in examples)
