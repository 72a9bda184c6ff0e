"""Owns instruction finetuning as a task: a language model that learns to answer.

Nothing but the answers' tokens goes through the output layer: of a batch's positions those that
are learnt are picked out before the product with the vocabulary, the largest of the model.
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
from gpt2cli.checkpoints.template_file import write_template
from gpt2cli.data.instructions import Record, Records
from gpt2cli.data.sft_batches import Order, Row, by_length, most_tokens, packed, row_of, sheet_of
from gpt2cli.data.splits import split
from gpt2cli.errors import InputError, UsageError
from gpt2cli.evaluation.classes import Verdict
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.recipe.schema import InstructRecipe
from gpt2cli.templates import TEMPLATES, Template, prompt_ids
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.training.base_model import Start
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum
from gpt2cli.training.task import Batch
from gpt2cli.training.train_state import Identity


@dataclass(frozen=True)
class InstructBatch(Batch):
    """`targets` are the N learnt tokens alone, (N,); `places` (N,) says at which of the B * T
    positions each is guessed. With packing, `positions` and `segments` (B, T) keep records apart.
    """

    places: Tensor
    positions: Tensor | None
    segments: Tensor | None
    groups: tuple[tuple[Row, ...], ...]  # what stands in each row, for a person to see


@dataclass(frozen=True)
class Question:
    """A record that is to be answered, as the model is given it."""

    record: Record
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Examples:
    """The records as tokens, divided by chance into what is learnt, what chooses, what is answered."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    shown: Question  # one of the validation split
    test: tuple[Question, ...]
    limit: int  # tokens of a record that are read
    n_cut: int
    n_left_out: int  # their questions fill the limit
    n_only_learnt: int  # what comes before their last answer fills it: there is an earlier one to learn
    sha256: str  # of the file that they come from

    @property
    def test_digest(self) -> str:
        """Names what is asked at the end, token by token, and the answers that it is held against."""
        digest = hashlib.sha256()
        for question in self.test:
            record = question.record
            turns = [asdict(turn) for turn in record.turns]
            digest.update(json.dumps([record.index, question.ids, turns]).encode())
        return digest.hexdigest()


def examples_of(recipe: InstructRecipe, found: Records, start: Start) -> Examples:
    """Encode and divide the records. Raises InputError where too few are left, UsageError for a
    limit beyond the context.

    A record that leaves no room for its last answer cannot be asked, but is learnt from.
    """
    limit = most_tokens(recipe.data.max_tokens, start.config.n_positions)
    template, tokenizer = TEMPLATES[recipe.template], start.tokenizer
    questions, rows, only_learnt = list[Question](), list[Row](), list[Row]()
    for record in found.records:
        row = row_of(record, template, tokenizer, limit, recipe.mask_prompt)
        if row is None:
            continue
        ids = prompt_ids(template, record.question, tokenizer.encode, tokenizer.end_of_text)
        if len(ids) < limit:
            questions.append(Question(record, tuple(ids)))
            rows.append(row)
        else:
            only_learnt.append(row)
    if not questions:
        raise InputError(
            f"none of the {len(found.records)} records has room for an answer",
            f"their questions alone have {limit} tokens or more",
            f"data.max_tokens={4 * limit}, or a model with a longer context",
        )
    train, validation, test = split(len(rows), (recipe.data.validation, recipe.data.test), recipe.seed)
    return Examples(
        train=(*(rows[i] for i in train), *only_learnt),
        validation=tuple(rows[i] for i in validation),
        shown=questions[validation[0]],
        test=tuple(questions[i] for i in test),
        limit=limit,
        n_cut=sum(row.was_cut for row in (*rows, *only_learnt)),
        n_left_out=len(found.records) - len(rows) - len(only_learnt),
        n_only_learnt=len(only_learnt),
        sha256=found.sha256,
    )


@dataclass(frozen=True, eq=False)
class Instruction:
    """Learn the answers of records, from the weights of `start`."""

    recipe: InstructRecipe
    start: Start
    examples: Examples

    def __post_init__(self) -> None:
        if self.recipe.train == "lora" and self.start.folder is None:
            raise UsageError(
                "train: lora needs a trained model to begin with",
                "init is scratch, and an adapter beside random weights is worth nothing without them",
                "init=124M, or train=all",
            )

    @property
    def template(self) -> Template:
        return TEMPLATES[self.recipe.template]

    @property
    def config(self) -> GPT2Config:
        return self.start.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.start.tokenizer

    @property
    def row_length(self) -> None:
        return None

    @property
    def tokens_per_step(self) -> int:
        batch = self.recipe.batch
        mean = sum(row.n_read for row in self.examples.train) / len(self._groups)
        return max(1, round(mean * batch.micro_batch * batch.accumulation))

    @property
    def steps_per_epoch(self) -> float:
        return self._order.n_batches / self.recipe.batch.accumulation

    @property
    def size(self) -> str:
        train = self.examples.train
        rows = f" in {len(self._groups):,} rows" if self.recipe.packing else ""
        return f"{len(train):,} records{rows} with {_learnt(train):,} tokens to learn"

    @property
    def most_learnt(self) -> int:
        """The most tokens that one micro batch can put through the output layer."""
        largest = max(sum(int(row.learnt.sum()) for row in group) for group in self._groups)
        return self.recipe.batch.micro_batch * largest

    @property
    def validation_size(self) -> str:
        held = self.examples.validation
        return f"validation {len(held):,} with {_learnt(held):,}, test {len(self.examples.test):,}"

    def identity(self) -> Identity:
        digest = hashlib.sha256()
        for row in (*self.examples.train, *self.examples.validation):
            digest.update(len(row.ids).to_bytes(4, "little") + row.ids.tobytes() + row.learnt.tobytes())
        recipe = self.recipe
        adapters: Identity = {}
        if recipe.train == "lora":
            lora = recipe.lora
            adapters = {
                "lora.rank": lora.rank,
                "lora.alpha": lora.alpha,
                "lora.dropout": lora.dropout,
                "lora.targets": ",".join(lora.targets),
            }
        return adapters | {
            "init": self.start.sha256[:16],
            "data": digest.hexdigest()[:16],
            "train records": len(self.examples.train),
            "train": recipe.train,
            "template": recipe.template,
            "packing": int(recipe.packing),
            "data.max_tokens": self.examples.limit,  # says where records are cut, and how many share a row
        }

    def fresh_model(self, attention: str) -> GPT2LMHead:
        model = self.start.model(attention)
        if self.recipe.train == "lora":
            self._add_adapters(model)
        return model

    def saved_model(self, checkpoint: Path, attention: str) -> GPT2LMHead:
        if self.recipe.train != "lora":
            return load_model(checkpoint, attention=attention, dropout=self.config.dropout).model
        from gpt2cli.checkpoints.lora_adapter import load_adapter

        model = self.start.model(attention)
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
        """The whole model, or its adapters alone; and how it wants to be asked."""
        if self.recipe.train == "lora":
            from gpt2cli.checkpoints.lora_adapter import write_adapter

            hashes = write_adapter(folder, model, self.recipe.lora, self.start, recipe)
        else:
            hashes = write_model(folder, model, self.tokenizer, recipe)
        return hashes | write_template(folder, self.recipe.template)

    def batch(self, step: int, micro: int) -> InstructBatch:
        number = step * self.recipe.batch.accumulation + micro
        return self._batch([self._groups[i] for i in self._order.batch(number)])

    def evaluation_batches(self) -> Iterator[InstructBatch]:
        """The whole validation split, unpacked."""
        rows = self.examples.validation
        for items in by_length([row.n_read for row in rows], self.recipe.batch.micro_batch):
            yield self._batch([(rows[i],) for i in items])

    def n_targets(self, batch: InstructBatch) -> int:
        return batch.targets.numel()

    def loss_sum(self, model: GPT2LMHead, batch: InstructBatch, dtype: torch.dtype) -> Tensor:
        mask = None if batch.segments is None else _within(batch.segments)
        hidden = model.transformer(batch.input_ids, positions=batch.positions, mask=mask)  # (B, T, C)
        learnt = hidden.flatten(0, 1)[batch.places]  # (N, C)
        return cross_entropy_sum(learnt, model.lm_head.weight, batch.targets, dtype)

    def judge(
        self, model: GPT2LMHead, batch: InstructBatch, dtype: torch.dtype
    ) -> tuple[Tensor, list[Verdict]]:
        return self.loss_sum(model, batch, dtype), []

    def measures(self, verdicts: list[Verdict]) -> dict[str, float]:
        return {}

    @cached_property
    def _groups(self) -> list[tuple[Row, ...]]:
        """What shares a row: with packing several records, always the same ones; else one each."""
        rows = self.examples.train
        if not self.recipe.packing:
            return [(row,) for row in rows]
        together = packed([row.n_read for row in rows], self.examples.limit, self.recipe.seed)
        return [tuple(rows[i] for i in group) for group in together]

    @cached_property
    def _order(self) -> Order:
        lengths = [sum(row.n_read for row in group) for group in self._groups]
        return Order(lengths, self.recipe.batch.micro_batch, self.recipe.seed)

    def _batch(self, groups: list[tuple[Row, ...]]) -> InstructBatch:
        sheet = sheet_of(groups)
        shared = any(len(group) > 1 for group in groups)
        # One record a row needs no mask: padding lies to the right, where attention does not look.
        return InstructBatch(
            input_ids=torch.from_numpy(sheet.input_ids),
            targets=torch.from_numpy(sheet.targets),
            places=torch.from_numpy(sheet.places),
            positions=torch.from_numpy(sheet.positions) if shared else None,
            segments=torch.from_numpy(sheet.segments) if shared else None,
            groups=tuple(groups),
        )


def _within(segments: Tensor) -> Tensor:
    """(B, 1, T, T): a token sees those before it of its own record, and itself."""
    T = segments.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    return ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]


def _learnt(rows: Sequence[Row]) -> int:
    return sum(int(row.learnt.sum()) for row in rows)
