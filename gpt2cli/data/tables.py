"""A whole table of texts in memory, from a file of any kind of records, and which columns to name."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpt2cli.data.byte_source import ReadOptions
from gpt2cli.data.file_kinds import TABLES
from gpt2cli.data.input_files import SourceKind, record_source
from gpt2cli.data.record_files import RecordReader
from gpt2cli.data.text_fields import MISSING, find_field, require_characters
from gpt2cli.errors import InputError
from gpt2cli.json_files import kind_of


@dataclass(frozen=True)
class TableRow:
    line: int  # where it begins, from 1
    values: tuple[str | None, ...]  # None where a JSON record has no such field, or null


@dataclass(frozen=True)
class Table:
    """`notes` are what to say of the file."""

    name: str
    kind: SourceKind
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    sha256: str  # of the file
    notes: tuple[str, ...] = ()

    def where(self, line: int) -> str:
        return f"{self.name}:{line}"

    def column(self, name: str, fix: str, naming: str = "") -> int:
        """The index of a column. Raises InputError with `fix`; `naming` is the option that names columns,
        and the fix where the file seems to have no header.
        """
        if name in self.columns:
            return self.columns.index(name)
        raise no_column(self.where(1), name, self.columns, fix, naming if self.kind in TABLES else "")

    def guess(self) -> tuple[str, str]:
        """The columns that probably hold text and label."""
        rows = [dict(zip(self.columns, row.values, strict=True)) for row in self.rows[:1000]]
        return likely_columns(rows or [dict.fromkeys(self.columns)])


def no_column(where: str, name: str, columns: Sequence[str], fix: str, naming: str = "") -> InputError:
    there = ", ".join(map(repr, columns[:8])) or "nothing"
    if naming:
        there += f"; if that is a row of data, {naming}"
        fix = naming if any(column.count(" ") > 1 for column in columns) else fix
    return InputError(f"{where}: no column {name!r}", f"the file has: {there}", fix)


def read_table(
    path: Path,
    headerless: tuple[str, ...] = (),
    columns: Sequence[str] = (),
    stream: BinaryIO | None = None,
    options: ReadOptions | None = None,
    needed: Sequence[str] = (),
    label: str | None = None,
) -> Table:
    """Read a whole table, from `stream` if given; `path` is then its name in messages.

    `headerless` and `columns` are as of `RecordReader`. A record that lacks one of the `needed` fields is
    bad, and one whose `label` is blank. Raises InputError naming FILE:LINE.
    """
    source = record_source(path)
    with closing(
        RecordReader(source, options, columns=columns, headerless=headerless, file=stream)
    ) as reader:
        records: list[tuple[int, dict[str, Any]]] = []
        for line, record in reader:
            where = reader.where(line)
            try:
                if not isinstance(record, dict):
                    raise InputError(f"{where}: a JSON object is needed, not {kind_of(record)}")
                plain = record if reader.kind in TABLES else _flat(record, where, needed)
                if label and not (plain.get(label, label) or "").strip():
                    raise InputError(f"{where}: the label is empty", fix="label the row, or delete it")
            except InputError as error:
                reader.tally.skip(error)
                continue
            reader.tally.n_good += 1
            records.append((line, plain))
        if not records and not reader.tally.n_bad:
            why = "the file has only a header" if reader.columns else "the file is empty"
            raise InputError(f"{path}:1: there are no rows", why, "name another file, or add rows")
        notes = reader.finish()
        names = reader.columns or tuple(dict.fromkeys(key for _, record in records for key in record))
        if twice := reader.twice & set(needed) if label else reader.twice:  # scores print no columns
            raise InputError(f"{path}:1: the column {min(twice)!r} is there twice", fix="rename one of them")
        rows = tuple(TableRow(line, tuple(record.get(key) for key in names)) for line, record in records)
        return Table(str(path), reader.kind, names, rows, reader.digest, tuple(notes))


def _flat(record: dict[str, Any], where: str, needed: Sequence[str]) -> dict[str, str | None]:
    """A record as texts. Needed fields come from within objects too, and are there."""
    flat = {key: plain_text(value, where, key) for key, value in record.items()}
    for name in needed:
        value = find_field(record, name)
        if value is MISSING or value is None:
            raise InputError(f"{where}: the field {name!r} is missing", fix='add it; "" for an empty text')
        flat[name] = plain_text(value, where, name)
    return flat


def plain_text(value: Any, where: str, key: str) -> str | None:
    """A JSON value as text: strings as they are, the rest as JSON."""
    if value is None:
        return None
    found = value if isinstance(value, str) else json.dumps(value, default=str)
    require_characters(found + key, f"{where}: field {key!r}")
    return found


def likely_columns(records: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The column of the texts, which are the longest, and that of the classes, of which there are the fewest
    but more than one.
    """
    names = list(dict.fromkeys(name for record in records for name in record))
    values = {name: [str(record.get(name) or "") for record in records] for name in names}
    text = max(names, key=lambda name: sum(map(len, values[name])), default="")
    n_values = {name: len(set(values[name])) for name in names if name != text}
    several = [name for name, n in n_values.items() if n > 1]
    return text, min(several or n_values, key=n_values.__getitem__, default=text)
