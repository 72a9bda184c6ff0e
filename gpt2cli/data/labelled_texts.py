"""Owns labelled texts: rows of a table -> texts with classes, split, balanced, as padded ids.

Rows and their line numbers come from `tables.py`, the division from `splits.py`. What is learnt
from them is not known here.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt2cli.data.records import read_table
from gpt2cli.data.sft_batches import most_tokens
from gpt2cli.data.splits import stratified_split, undersampled
from gpt2cli.errors import Gpt2Error, InputError
from gpt2cli.recipe.schema import ClassifyData
from gpt2cli.tokenizer.base import Tokenizer

FEWEST = 3  # rows of a class: one to learn from, one to choose by, one to report on


@dataclass(frozen=True)
class Labelled:
    """The rows of a file. `labels` are its classes, sorted; a row's class is a place in there."""

    name: str
    texts: tuple[str, ...]
    classes: tuple[int, ...]
    lines: tuple[int, ...]
    labels: tuple[str, ...]
    sha256: str  # of the file


@dataclass(frozen=True)
class Examples:
    """One split, as token ids."""

    ids: tuple[tuple[int, ...], ...]  # at least one each
    classes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ClassifySplits:
    train: Examples
    validation: Examples
    test: Examples
    labels: tuple[str, ...]
    max_tokens: int
    n_cut: int  # texts that were longer
    n_left_out: int  # rows given up for balance

    @property
    def digest(self) -> str:
        """SHA-256 of everything that training and its report see."""
        splits = [(part.ids, part.classes) for part in (self.train, self.validation, self.test)]
        return hashlib.sha256(json.dumps([self.labels, splits]).encode()).hexdigest()


def read_labelled(path: Path, text: str, label: str, columns: Sequence[str] = ()) -> Labelled:
    """The rows of a table, whose columns `text` and `label` count. Space around labels does not.

    `columns` are the names of all columns of a file that has no row of names.
    Raises InputError naming FILE:LINE for what is malformed, and where there is only one class.
    """
    table = read_table(path, (label, text), columns)
    naming = f"data.columns='[{label}, {text}]' with its columns in their order"
    at_text, at_label = table.column(text, naming), table.column(label, naming)
    texts, names, lines = [], [], []
    for row in table.rows:
        said, name = row.values[at_text], (row.values[at_label] or "").strip()
        if said is None:
            raise InputError(f"{table.where(row.line)}: the field {text!r} is missing", fix='give it, or ""')
        if not name:
            raise InputError(
                f"{table.where(row.line)}: the label is empty",
                f"column {label!r} must say a class in every row",
                "label the row, or leave it out",
            )
        texts.append(said)
        names.append(name)
        lines.append(row.line)
    labels = tuple(sorted(set(names)))
    if len(labels) < 2:
        where = table.where(lines[0] if lines else 1)
        raise InputError(
            f"{where}: one class only, {labels[0]!r}" if labels else f"{where}: there are no rows",
            f"all {len(names)} rows have it in column {label!r}" if labels else "the file has a header alone",
            "there must be at least two classes to tell apart",
        )
    classes = tuple(labels.index(name) for name in names)
    return Labelled(str(path), tuple(texts), classes, tuple(lines), labels, table.sha256)


def prepare(
    data: Labelled, wanted: ClassifyData, tokenizer: Tokenizer, context: int, seed: int
) -> ClassifySplits:
    """Balance, split within each class, encode and cut.

    Raises InputError naming FILE:LINE for a class with too few rows and for what cannot be encoded,
    UsageError for a limit beyond the context.
    """
    max_tokens = most_tokens(wanted.max_tokens, context)
    for kind, count in sorted(Counter(data.classes).items()):
        if count < FEWEST:
            raise InputError(
                f"{data.name}:{data.lines[data.classes.index(kind)]}: the class {data.labels[kind]!r}"
                f" has {count} row{'s' * (count > 1)}",
                f"each class needs {FEWEST}: to learn from, to choose the best by, and to report on",
                "add rows of this class, or leave it out",
            )
    balanced = wanted.balance == "undersample"
    kept = undersampled(data.classes, seed) if balanced else list(range(len(data.classes)))
    ids: list[tuple[int, ...]] = []
    n_cut = 0
    for i in kept:
        try:
            found = encoded(tokenizer, data.texts[i])
        except Gpt2Error as error:
            raise InputError(f"{data.name}:{data.lines[i]}: {error.what}", error.why, error.fix) from None
        n_cut += len(found) > max_tokens
        ids.append(found[:max_tokens])
    classes = [data.classes[i] for i in kept]
    try:
        parts = stratified_split(classes, (wanted.validation, wanted.test), seed)
    except InputError as error:
        raise InputError(f"{data.name}:{data.lines[0]}: {error.what}", error.why, error.fix) from None
    train, validation, test = (
        Examples(tuple(ids[i] for i in part), tuple(classes[i] for i in part)) for part in parts
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


def encoded(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The ids that stand for a text; the empty text is one end-of-text, for there is always a last token."""
    return tuple(tokenizer.encode(text)) or (tokenizer.end_of_text,)


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of ids on one length: (B, T), filled on the right, and the lengths (B,) they had.

    The lengths say where a row ends, never the fill: a text may hold the same id.
    """
    T = max(map(len, rows))
    input_ids = torch.tensor([[*row, *[pad] * (T - len(row))] for row in rows])  # (B, T)
    return input_ids, torch.tensor([len(row) for row in rows])


def by_length(rows: Sequence[Sequence[int]], n_rows: int, n_tokens: int) -> Iterator[list[int]]:
    """The rows' numbers, shortest first, in batches of at most `n_rows` and `n_tokens` with filling.

    A row longer than that has a batch of its own.
    """
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batch and (len(batch) == n_rows or (len(batch) + 1) * len(rows[i]) > n_tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def class_weights(classes: Sequence[int], n_classes: int) -> tuple[float, ...]:
    """n / (k * n_c) of each class: their mean over the rows is 1, so losses stay comparable."""
    counts = Counter(classes)
    return tuple(len(classes) / (n_classes * counts[kind]) for kind in range(n_classes))
