"""Labelled texts for classification: the rows of a table, balanced, split, encoded and padded."""

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt2cli.data.records import read_table
from gpt2cli.data.sft_batches import ANY_TEXT, OWN_BASE, token_limit
from gpt2cli.data.splits import stratified_split, undersampled
from gpt2cli.errors import Gpt2Error, InputError, counted
from gpt2cli.recipe.sections import ClassifyDataConfig
from gpt2cli.tokenizer.base import Tokenizer, begin

MIN_ROWS_PER_CLASS = 3  # one for training, one for validation, one for the test


@dataclass(frozen=True)
class LabelledTexts:
    """The rows of a file. `labels` are its classes, sorted; a row's class is an index into them."""

    name: str
    texts: tuple[str, ...]
    classes: tuple[int, ...]
    lines: tuple[int, ...]
    labels: tuple[str, ...]
    sha256: str  # of the file


@dataclass(frozen=True)
class LabelledExamples:
    """One split, as token ids."""

    ids: tuple[tuple[int, ...], ...]  # at least one each
    classes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ClassifySplits:
    train: LabelledExamples
    validation: LabelledExamples
    test: LabelledExamples
    labels: tuple[str, ...]
    max_tokens: int
    n_cut: int  # texts that were longer
    n_left_out: int  # rows dropped for balance

    @property
    def digest(self) -> str:
        """SHA-256 of everything that training and its report use."""
        splits = [(part.ids, part.classes) for part in (self.train, self.validation, self.test)]
        return hashlib.sha256(json.dumps([self.labels, splits]).encode()).hexdigest()


def read_labelled(path: Path, text: str, label: str, columns: Sequence[str] = ()) -> LabelledTexts:
    """The columns `text` and `label` of a table; space around labels is stripped.

    `columns` names all columns of a file without a header.
    Raises InputError naming FILE:LINE for a malformed row, and if there is only one class.
    """
    table = read_table(path, (label, text), columns)
    is_text_first = table.columns[:1] == (table.guess()[0],)
    naming = f"data.columns='[{text}, {label}]'" if is_text_first else f"data.columns='[{label}, {text}]'"
    fix = shlex.join(f"data.{key}={name}" for key, name in zip(("text", "label"), table.guess(), strict=True))
    at_text, at_label = table.column(text, fix, naming), table.column(label, fix, naming)
    texts, names, lines = [], [], []
    for row in table.rows:
        value, name = row.values[at_text], (row.values[at_label] or "").strip()
        if value is None:
            raise InputError(
                f"{table.where(row.line)}: the field {text!r} is missing", fix='add it; "" for an empty text'
            )
        if not name:
            raise InputError(
                f"{table.where(row.line)}: the label is empty",
                f"column {label!r} must name a class in every row",
                "label the row, or delete it",
            )
        texts.append(value)
        names.append(name)
        lines.append(row.line)
    labels = tuple(sorted(set(names)))
    if len(labels) < 2:
        where = table.where(lines[0] if lines else 1)
        raise InputError(
            f"{where}: only one class, {labels[0]!r}" if labels else f"{where}: there are no rows",
            f"all {len(names)} rows have it in column {label!r}" if labels else "the file has only a header",
            "add rows of a second class",
        )
    classes = tuple(labels.index(name) for name in names)
    return LabelledTexts(str(path), tuple(texts), classes, tuple(lines), labels, table.sha256)


def split_labelled(
    data: LabelledTexts, wanted: ClassifyDataConfig, tokenizer: Tokenizer, context: int, seed: int
) -> ClassifySplits:
    """Balance, split within each class, encode and truncate.

    Raises InputError naming FILE:LINE for a class with too few rows and for a text that cannot be
    encoded, UsageError for a limit beyond the context.
    """
    max_tokens = token_limit(wanted.max_tokens, context)
    for kind, count in sorted(Counter(data.classes).items()):
        if count < MIN_ROWS_PER_CLASS:
            raise InputError(
                f"{data.name}:{data.lines[data.classes.index(kind)]}: the class {data.labels[kind]!r}"
                f" has {counted(count, 'row')}",
                f"each class needs {MIN_ROWS_PER_CLASS}: for training, validation and test",
                "add rows of this class, or delete it",
            )
    balanced = wanted.balance == "undersample"
    kept = undersampled(data.classes, seed) if balanced else list(range(len(data.classes)))
    ids: list[tuple[int, ...]] = []
    n_cut = 0
    for i in kept:
        try:
            found = encode_text(tokenizer, data.texts[i])
        except Gpt2Error as error:
            why = f"{error.why}; {ANY_TEXT}"
            raise InputError(f"{data.name}:{data.lines[i]}: {error.what}", why, OWN_BASE) from None
        n_cut += len(found) > max_tokens
        ids.append(found[:max_tokens])
    classes = [data.classes[i] for i in kept]
    try:
        parts = stratified_split(classes, (wanted.validation, wanted.test), seed)
    except InputError as error:
        raise InputError(f"{data.name}:{data.lines[0]}: {error.what}", error.why, error.fix) from None
    train, validation, test = (
        LabelledExamples(tuple(ids[i] for i in part), tuple(classes[i] for i in part)) for part in parts
    )
    return ClassifySplits(
        train=train,
        validation=validation,
        test=test,
        labels=data.labels,
        max_tokens=max_tokens,
        n_cut=n_cut,
        n_left_out=len(data.classes) - len(kept),
    )


def encode_text(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The ids of a text. The empty text is one end-of-text: a classifier reads the last token."""
    return (*begin(tokenizer), *tokenizer.encode(text)) or (tokenizer.end_of_text,)


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Pad rows of ids on the right: (B, T), and their lengths, (B,).

    A row ends by its length, never by the id `pad`, which a text may hold as well.
    """
    T = max(map(len, rows))
    input_ids = torch.tensor([[*row, *[pad] * (T - len(row))] for row in rows])  # (B, T)
    return input_ids, torch.tensor([len(row) for row in rows])


def class_weights(classes: Sequence[int], n_classes: int) -> tuple[float, ...]:
    """n / (k * n_c) for class c of k: the mean over the rows is 1, so that losses stay comparable."""
    counts = Counter(classes)
    return tuple(len(classes) / (n_classes * counts[kind]) for kind in range(n_classes))
