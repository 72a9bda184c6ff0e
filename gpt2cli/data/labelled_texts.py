"""Labelled texts for classification: the rows of tables and records, and their batches.

`labelled_splits.py` balances, splits and encodes them.
"""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2cli.data.byte_source import ReadOptions, joined_digest
from gpt2cli.data.file_kinds import TABLES
from gpt2cli.data.input_files import record_sources
from gpt2cli.data.record_files import RecordReader
from gpt2cli.data.tables import likely_columns, no_column, plain_text
from gpt2cli.data.text_fields import BETWEEN, MISSING, find_field, longest_field
from gpt2cli.errors import InputError
from gpt2cli.json_files import kind_of
from gpt2cli.recipe.data_sections import each_name
from gpt2cli.tokenizer.base import Tokenizer, begin


@dataclass(frozen=True)
class LabelledTexts:
    """The rows of one or several files. `labels` are its classes, sorted; a row's class is an index into
    them. `notes` are what to say of the files.
    """

    name: str
    texts: tuple[str, ...]
    classes: tuple[int, ...]
    lines: tuple[int, ...]
    labels: tuple[str, ...]
    sha256: str  # of the file; of several, of their hashes
    files: tuple[str, ...]  # of each row
    notes: tuple[str, ...] = ()

    def where(self, i: int) -> str:
        """The place of a row."""
        return f"{self.files[i]}:{self.lines[i]}"


def read_labelled(
    paths: Path | Sequence[Path],
    text: str | tuple[str, ...],
    label: str,
    columns: Sequence[str] = (),
    options: ReadOptions | None = None,
    fewest: int = 2,
) -> LabelledTexts:
    """The columns `text` and `label` of one or several files; space around labels is stripped.

    Several texts are joined by blank lines. `columns` names all columns of a file without a header.
    Raises InputError naming FILE:LINE for too many bad rows, and for fewer than `fewest` classes.
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    rows, digests, notes = list[_Row](), list[str](), list[str]()
    for source in record_sources(paths):
        fields = each_name(text)
        headerless = (label, *fields) if len(fields) == 1 else ()
        with closing(RecordReader(source, options, columns=columns, headerless=headerless)) as reader:
            rows += _rows_of(reader, fields, label)
            notes += reader.finish()
            digests.append(reader.digest)
    name = ", ".join(map(str, paths))
    labels = tuple(sorted({row.label for row in rows}))
    if len(labels) < fewest:
        where = f"{rows[0].file}:{rows[0].line}" if rows else f"{name}:1"
        raise InputError(
            f"{where}: only one class, {labels[0]!r}" if labels else f"{where}: there are no rows",
            "; ".join([f"all {len(rows)} rows have it in column {label!r}", *notes])
            if labels
            else "the file has only a header",
            "add rows of a second class",
        )
    return LabelledTexts(
        name,
        tuple(row.text for row in rows),
        tuple(labels.index(row.label) for row in rows),
        tuple(row.line for row in rows),
        labels,
        joined_digest(digests),
        tuple(row.file for row in rows),
        tuple(notes),
    )


@dataclass(frozen=True)
class _Row:
    file: str
    line: int
    text: str
    label: str


def _rows_of(reader: RecordReader, fields: Sequence[str], label: str) -> Iterator[_Row]:
    records = iter(reader)
    for line, record in records:
        if reader.kind in TABLES and not reader.tally.n_good:
            _require_columns(reader, fields, label, record, records)
        where = reader.where(line)
        try:
            row = _Row(
                reader.source.name, line, _text_of(record, fields, where), _label_of(record, label, where)
            )
        except InputError as error:
            reader.tally.skip(error)
            continue
        reader.tally.n_good += 1
        yield row


def _require_columns(
    reader: RecordReader,
    fields: Sequence[str],
    label: str,
    first: dict[str, str],
    others: Iterator[tuple[int, Any]],
) -> None:
    """Raise InputError for a table that lacks a column, at its first row."""
    reader.require_once((*fields, label))
    for name in (*fields, label):
        if name not in reader.columns:
            text, kind = likely_columns([first, *(record for _, record in islice(others, 1000))])
            fix = shlex.join([f"data.text={text}", f"data.label={kind}"])
            is_one = text == kind  # the first row has one word, and is no row of names
            is_text_first = reader.columns[:1] == (text,) and not is_one
            names = [*fields, label] if is_text_first else [label, *fields]
            naming = f"data.columns='[{', '.join(names)}]'"
            fix = naming if is_one else fix
            raise no_column(reader.where(1), name, reader.columns, fix, naming)


def _text_of(record: Any, fields: Sequence[str], where: str) -> str:
    if not isinstance(record, dict):
        raise InputError(f"{where}: a JSON object is needed, not {kind_of(record)}")
    texts = []
    for field in fields:
        value = find_field(record, field)
        if value is MISSING or value is None:
            has = ", ".join(map(repr, list(record)[:8]))
            fix = shlex.quote(f"data.text={longest_field(record) or 'NAME'}")
            raise InputError(f"{where}: the field {field!r} is missing", f"it has: {has}", fix)
        is_list = isinstance(value, list) and all(isinstance(part, str) for part in value)
        texts.append(BETWEEN.join(value) if is_list else plain_text(value, where, field) or "")
    return texts[0] if len(texts) == 1 else BETWEEN.join(filter(None, texts))


def _label_of(record: dict[str, Any], label: str, where: str) -> str:
    value = find_field(record, label)
    if isinstance(value, list | dict):
        raise InputError(
            f"{where}: the label is {kind_of(value)}",
            f"column {label!r} must name one class in every row",
            "write one class, or name another column: data.label=NAME",
        )
    name = "" if value is MISSING else (plain_text(value, where, label) or "").strip()
    if not name:
        raise InputError(
            f"{where}: the label is empty",
            f"column {label!r} must name a class in every row",
            "label the row, or delete it",
        )
    return name


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
