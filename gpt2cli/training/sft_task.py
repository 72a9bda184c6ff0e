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

from gpt2cli.data.byte_source import joined_digest
from gpt2cli.data.instructions import InstructionRecord, InstructionRecords
from gpt2cli.data.sft_batches import (
    BatchOrder,
    SftExample,
    batches_by_length,
    encode_record,
    pack_records,
    token_limit,
)
from gpt2cli.data.splits import split
from gpt2cli.errors import InputError, counted
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.recipe.schema import InstructRecipe
from gpt2cli.templates import TEMPLATES, Template, Turns, prompt_ids, write_template
from gpt2cli.training.base_model import BaseLM
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum
from gpt2cli.training.task import Batch, LanguageModelTask, require_base_of_adapters
from gpt2cli.training.train_state import RunIdentity


@dataclass(frozen=True)
class SftBatch(Batch):
    """`targets` are the N tokens inside the loss mask, (N,)."""

    target_positions: Tensor  # (N,), ascending indices into the B * T positions that predict them
    positions: Tensor | None  # (B, T), position within the record; None without packing
    segments: Tensor | None  # (B, T), record within the row, -1 for padding; None without packing
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
    n_shared: int  # test prompts that are in the training split too
    n_shared_validation: int  # validation prompts that are
    n_repeated: int  # records that are the same as another
    turns: Turns  # "single" if no training record has a second question
    sha256: str  # of the source file

    @property
    def test_digest(self) -> str:
        """SHA-256 of the test prompts, token by token, and of the reference answers."""
        digest = hashlib.sha256()
        for prompt in self.test:
            turns = [asdict(turn) for turn in prompt.record.turns]
            digest.update(json.dumps([prompt.record.index, prompt.ids, turns]).encode())
        return digest.hexdigest()


def split_records(
    recipe: InstructRecipe,
    found: InstructionRecords,
    base: BaseLM,
    *,
    validation: InstructionRecords | None = None,
    test: InstructionRecords | None = None,
) -> SftSplits:
    """Encode and split the records. `validation` and `test`, where given, take the places of their shares of
    `found`.

    A record without room for its last answer goes to the training split: it cannot be evaluated.
    Raises InputError if too few records are left, UsageError for a limit beyond the context.
    """
    limit = token_limit(recipe.data.max_tokens, base.config.n_positions)

    def encoded(records: InstructionRecords) -> _Encoded:
        return _encode(records, recipe, base, limit)

    own = encoded(found)
    if not own.prompts:
        raise _no_room(found, limit)
    shares = [
        share
        for share, others in ((recipe.data.validation, validation), (recipe.data.test, test))
        if others is None and share
    ]
    train, *held = split(len(own.examples), shares, recipe.seed)
    apart = {name: encoded(others) for name, others in (("validation", validation), ("test", test)) if others}
    for name, part in apart.items():
        if not part.prompts:
            raise _no_room(validation if name == "validation" and validation else test or found, limit)
    held_out = apart.get("validation") or own.chosen(held.pop(0))
    asked = apart.get("test") or own.chosen(held.pop(0) if held else [])
    trained_on = {own.prompts[i].ids for i in train}
    most_exchanges = max(
        1,
        *(own.prompts[i].record.n_exchanges for i in train),
        *(record.n_exchanges for record in own.train_only_records),
    )
    whole = [(example.ids.tobytes()) for example in (*own.examples, *own.train_only)]
    return SftSplits(
        train=(*(own.examples[i] for i in train), *own.train_only),
        validation=tuple(held_out.examples),
        shown=held_out.prompts[0],
        test=tuple(asked.prompts),
        limit=limit,
        n_cut=sum(example.was_cut for example in (*own.examples, *own.train_only)),
        n_left_out=len(found.records) - len(own.examples) - len(own.train_only),
        n_train_only=len(own.train_only),
        n_shared=sum(prompt.ids in trained_on for prompt in asked.prompts),
        n_shared_validation=sum(prompt.ids in trained_on for prompt in held_out.prompts),
        n_repeated=len(whole) - len(set(whole)),
        turns="single" if most_exchanges == 1 else "multi",
        sha256=joined_digest([one.sha256 for one in (found, validation, test) if one]),
    )


@dataclass(frozen=True)
class _Encoded:
    """Records with room for an answer, and those for training only."""

    prompts: Sequence[EvalPrompt]
    examples: Sequence[SftExample]
    train_only: Sequence[SftExample] = ()
    train_only_records: Sequence[InstructionRecord] = ()

    def chosen(self, rows: Sequence[int]) -> "_Encoded":
        return _Encoded([self.prompts[i] for i in rows], [self.examples[i] for i in rows])


def _encode(found: InstructionRecords, recipe: InstructRecipe, base: BaseLM, limit: int) -> _Encoded:
    template, tokenizer = TEMPLATES[recipe.template], base.tokenizer
    prompts, examples = list[EvalPrompt](), list[SftExample]()
    train_only, train_only_records = list[SftExample](), list[InstructionRecord]()
    for record in found.records:
        example = encode_record(record, template, tokenizer, limit, recipe.mask_prompt)
        if example is None:
            continue
        ids = prompt_ids(template, record.question, tokenizer)
        if len(ids) < limit:
            prompts.append(EvalPrompt(record, tuple(ids)))
            examples.append(example)
        else:
            train_only.append(example)
            train_only_records.append(record)
    return _Encoded(prompts, examples, train_only, train_only_records)


def _no_room(found: InstructionRecords, limit: int) -> InputError:
    return InputError(
        f"none of the {len(found.records)} records has room for an answer",
        f"their prompts alone have {limit} tokens or more",
        f"data.max_tokens={4 * limit}, or a model with a longer context",
    )


@dataclass(frozen=True, eq=False)
class SftTask(LanguageModelTask):
    """The training task of `gpt2 finetune-instruct`."""

    recipe: InstructRecipe
    base: BaseLM
    examples: SftSplits

    def __post_init__(self) -> None:
        require_base_of_adapters(self.recipe.train, self.base)

    @property
    def template(self) -> Template:
        return TEMPLATES[self.recipe.template]

    @property
    def tokens_per_step(self) -> int:
        mean = sum(example.n_read for example in self.examples.train) / len(self._rows)
        return max(1, round(mean * self.recipe.batch.rows_per_step))

    @property
    def steps_per_epoch(self) -> float:
        return self._order.n_batches / self.recipe.batch.accumulation

    @property
    def size(self) -> str:
        train = self.examples.train
        rows = f" in {counted(len(self._rows), 'row')}" if self.recipe.packing else ""
        return f"{counted(len(train), 'record')}{rows} with {counted(_count_targets(train), 'target token')}"

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
        return self.lora_identity() | {
            "init": self.base.sha256[:16],
            "data": digest.hexdigest()[:16],
            "train records": len(self.examples.train),
            "train": recipe.train,
            "template": recipe.template,
            "packing": int(recipe.packing),
            "batch.micro_batch": recipe.batch.micro_batch,  # records of similar length share one
            "batch.accumulation": recipe.batch.accumulation,
            "data.max_tokens": self.examples.limit,  # decides where records are cut and packed
        }

    def write_model(self, folder: Path, model: GPT2LMHead, recipe: str) -> dict[str, str]:
        """Write the model, and the template of its prompts."""
        files = super().write_model(folder, model, recipe)
        return files | write_template(folder, self.recipe.template, self.tokenizer, self.examples.turns)

    def batch(self, step: int, micro: int) -> SftBatch:
        number = step * self.recipe.batch.accumulation + micro
        return collate([self._rows[i] for i in self._order.batch(number)])

    def evaluation_batches(self) -> Iterator[SftBatch]:
        """The whole validation split, unpacked."""
        examples = self.examples.validation
        for items in batches_by_length([e.n_read for e in examples], self.recipe.batch.micro_batch):
            yield collate([(examples[i],) for i in items])

    def loss_sum(self, model: GPT2LMHead, batch: SftBatch, dtype: torch.dtype) -> Tensor:
        mask = None if batch.segments is None else _packing_mask(batch.segments)
        hidden = model.transformer(batch.input_ids, positions=batch.positions, mask=mask)  # (B, T, C)
        hidden = hidden.flatten(0, 1)[batch.target_positions]  # (N, C)
        return cross_entropy_sum(hidden, model.lm_head.weight, batch.targets, dtype)

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


def collate(rows: Sequence[tuple[SftExample, ...]]) -> SftBatch:
    """A batch of rows, each of one or more examples in sequence, padded on the right.

    Padding is masked by length, never by id: the end-of-text that the model must predict to stop has
    an id like any other.
    """
    B, T = len(rows), max(sum(example.n_read for example in row) for row in rows)
    input_ids, positions = torch.zeros(2, B, T, dtype=torch.long).unbind()
    segments = torch.full((B, T), -1)
    target_positions, targets = [], []
    for b, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row):
            here = slice(start, start + example.n_read)
            ids, mask = torch.from_numpy(example.ids), torch.from_numpy(example.loss_mask)[1:]
            input_ids[b, here] = ids[:-1]
            positions[b, here] = torch.arange(example.n_read)
            segments[b, here] = number
            target_positions.append(b * T + start + mask.nonzero()[:, 0])
            targets.append(ids[1:][mask])
            start = here.stop
    # One record per row needs no mask: causal attention never sees the padding on its right.
    is_packed = any(len(row) > 1 for row in rows)
    return SftBatch(
        input_ids=input_ids,
        targets=torch.cat(targets),
        target_positions=torch.cat(target_positions),
        positions=positions if is_packed else None,
        segments=segments if is_packed else None,
        rows=tuple(rows),
    )


def _packing_mask(segments: Tensor) -> Tensor:
    """(B, 1, T, T): a token attends to itself and to earlier tokens of its own record."""
    T = segments.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    return ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]


def _count_targets(examples: Sequence[SftExample]) -> int:
    return sum(int(example.loss_mask.sum()) for example in examples)
