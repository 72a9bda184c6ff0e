"""Records in files: CSV, TSV, JSON lines, a JSON list or parquet -> each record, with its line.

CSV is RFC 4180: commas, and quotes around what holds a comma, a quote or a line end. TSV is plain:
tabs separate and a quote is a character like any other, as in the SMS Spam Collection. The first row
of both names the columns, or the caller does. `text_reader.py` reads texts larger than memory.
"""

import bz2
import contextlib
import csv
import gzip
import hashlib
import io
import json
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from gpt2cli import files
from gpt2cli.errors import InputError, UsageError
from gpt2cli.json_files import DECODER, parse_json

Kind = Literal["csv", "tsv", "jsonl", "json", "parquet"]
KIND_OF_SUFFIX: dict[str, Kind] = {
    **{".csv": "csv", ".tsv": "tsv", ".tab": "tsv"},
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"},
}
ONE_PER_LINE = "one object per line"
_PACKED = {".gz": ("gzip", gzip.decompress), ".bz2": ("bzip2", bz2.decompress)}
LONGEST = 131_072  # characters of a field, the csv module's own limit


@dataclass(frozen=True)
class TableRow:
    line: int  # where it begins, from 1
    values: tuple[str | None, ...]  # None where a JSON record has no such field, or null


@dataclass(frozen=True)
class Table:
    name: str
    kind: Kind
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    sha256: str  # of the file

    def where(self, line: int) -> str:
        return f"{self.name}:{line}"

    def column(self, name: str, fix: str, naming: str = "") -> int:
        """The index of a column. Raises InputError with `fix`; `naming` is the option that names columns,
        and the fix where the file seems to have no header.
        """
        if name in self.columns:
            return self.columns.index(name)
        there = ", ".join(map(repr, self.columns[:8])) or "nothing"
        if len(self.columns) == 1 and ";" in self.columns[0]:
            there += "; the columns of a CSV file are separated by commas here"
        if naming and self.kind in ("csv", "tsv"):
            there += f"; if that is a row of data, {naming}"
            fix = naming if any(column.count(" ") > 1 for column in self.columns) else fix
        raise InputError(f"{self.where(1)}: no column {name!r}", f"the file has: {there}", fix)

    def guess(self) -> tuple[str, str]:
        """The columns that probably hold text and label: the longest, and the one of fewest values."""
        values = list(zip(*(row.values for row in self.rows[:1000]), strict=True)) or [()] * len(self.columns)
        lengths = [sum(len(value or "") for value in column) for column in values]
        text = lengths.index(max(lengths))
        others = [at for at in range(len(values)) if at != text] or [text]
        return self.columns[text], self.columns[min(others, key=lambda at: len(set(values[at])))]


def read_records(path: Path) -> tuple[list[tuple[int, Any]], str]:
    """(its line, the record) of each record, and the SHA-256 of the file; a row of a table is a record
    of texts. A file whose name does not tell its kind is one JSON list.

    Raises InputError naming FILE:LINE. That a record is an object is for the caller to check.
    """
    kind = kind_by_name(path)
    if kind in ("csv", "tsv", "parquet"):
        table = read_table(path)
        rows = [(row.line, dict(zip(table.columns, row.values, strict=True))) for row in table.rows]
        return rows, table.sha256
    text, sha256 = read_text(path)
    return list(json_records(text, path)), sha256


def json_records(text: str, path: Path, fix: str = ONE_PER_LINE) -> Iterator[tuple[int, Any]]:
    """(line, value) of each record: one per line where the name of `path` says so, else one JSON list.

    Raises InputError naming FILE:LINE, with `fix` for a bad line.
    """
    return _json_lines(text, path, fix) if kind_by_name(path) == "jsonl" else _json_list(text, path)


def read_table(
    path: Path,
    headerless: tuple[str, ...] = (),
    columns: Sequence[str] = (),
    stream: BinaryIO | None = None,
) -> Table:
    """Read a whole table, from `stream` if given; `path` is then its name in messages.

    `columns` are the names of the columns of a file without a row of names. Where they are not given,
    `headerless` names those of a TSV file that begins with its data: such a file has just so many
    fields in its first line, none of them one of those names, and its first word stands at the head
    of a later line too. Raises InputError naming FILE:LINE.
    """
    kind, given = kind_by_name(path), tuple(columns)
    records: Iterable[tuple[int, Any]]
    if kind == "parquet":
        records, sha256 = enumerate(parquet_rows(path), 1), files.sha256_of(path)
    else:
        text, sha256 = read_text(path, stream)
        kind = kind or _kind_by_content(text)
        records = _json_lines(text, path) if kind == "jsonl" else _json_list(text, path)
    if kind not in ("csv", "tsv"):
        if given:
            raise InputError(
                f"{path}:1: records name their fields themselves",
                f"and are to be named {', '.join(map(repr, given[:8]))}",
                "leave the names of columns out",
            )
        return _table(path, kind, records, sha256)
    found = list(_csv_rows(str(path), text, kind))
    if not found:
        raise InputError(f"{path}:1: there are no rows", "the file is empty")
    first = tuple(value.strip() for value in found[0].values if value is not None)
    if given:
        if set(first) == set(given):
            raise InputError(
                f"{path}:{found[0].line}: the columns are named in this row",
                "with names given besides it would be taken for data",
                "leave the names of columns out",
            )
        columns = given
    elif kind == "tsv" and headerless and _begins_with_data(found, headerless):
        columns = headerless
    else:
        columns = first
        del found[0]
        twice = [name for i, name in enumerate(columns) if name in columns[:i]]
        if twice:
            raise InputError(f"{path}:1: the column {twice[0]!r} is there twice", fix="rename one of them")
    for row in found:
        if len(row.values) != len(columns):
            few = len(row.values) < len(columns)
            raise InputError(
                f"{path}:{row.line}: too {'few' if few else 'many'} fields, {len(row.values)}",
                f"the file has {len(columns)} columns: {', '.join(map(repr, columns[:8]))}",
                "put quotes around a text that holds a comma" if kind == "csv" and not few else "",
            )
    return Table(str(path), kind, columns, tuple(found), sha256)


def read_text(path: Path, stream: BinaryIO | None = None) -> tuple[str, str]:
    """The text of a file, or of `stream` called `path`, line ends as they are, and its SHA-256.

    Raises InputError naming FILE:LINE.
    """
    with files.open_regular(path) if stream is None else contextlib.nullcontext(stream) as file:
        data = file.read()
    sha256 = hashlib.sha256(data).hexdigest()
    if packed := _PACKED.get(path.suffix.lower()):
        name, unpack = packed
        try:
            data = unpack(data)
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise InputError(f"{path}:1: damaged {name} data", str(error), "fetch the file again") from None
    return files.decode_text(data, str(path), line=1), sha256


def kind_by_name(path: Path) -> Kind | None:
    """The kind that a file's name tells, packed or not; None if it need not be a table."""
    inner = Path(path.stem) if path.suffix.lower() in _PACKED else path
    return KIND_OF_SUFFIX.get(inner.suffix.lower())


def kind_of(value: Any) -> str:
    """The type of a JSON value, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def parquet_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, a batch of them in memory.

    Raises InputError for a missing column, UsageError without pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(
            f"{path}: parquet needs pyarrow", "it is not installed here", "pip install pyarrow"
        ) from None

    files.open_regular(path).close()
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            if missing := [name for name in columns or () if name not in there]:
                texts = [column.name for column in file.schema_arrow if str(column.type).endswith("string")]
                raise InputError(
                    f"{path}: no column {missing[0]!r}",
                    f"the file has: {', '.join(map(repr, there[:8]))}",
                    name_field(texts[0] if texts else "NAME"),
                )
            for batch in file.iter_batches(batch_size=256, columns=columns and list(columns)):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a readable parquet file", str(error)) from None


def _json_lines(text: str, path: Path, fix: str = ONE_PER_LINE) -> Iterator[tuple[int, Any]]:
    # Not splitlines: U+2028 and its like may stand inside of a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise InputError(f"{path}:{number}: not a JSON record", str(error), fix) from None


_SPACE = re.compile(r"[ \t\r\n]*")


def _json_list(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    try:
        values = parse_json(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not JSON, column {error.colno}",
            error.msg,
            "one record per line is read from a file that is called .jsonl",
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: not readable JSON", str(error)) from None
    if not isinstance(values, list):
        raise InputError(
            f"{path}: a list of records is needed, not {kind_of(values)}",
            "the file is one JSON value",
            "put the records into [ ], or one per line into a file that is called .jsonl",
        )
    # Valid JSON from here on: decoded once more, value by value, for where each begins.
    line, counted, place = 1, 0, text.index("[") if values else 0
    for value in values:
        place = _after_space(text, place + 1)
        line, counted = line + text.count("\n", counted, place), place
        yield line, value
        place = _after_space(text, DECODER.raw_decode(text, place)[1])


def _after_space(text: str, place: int) -> int:
    return _SPACE.match(text, place).end()  # type: ignore[union-attr]


def _kind_by_content(text: str) -> Kind:
    if re.match(r"\s*\[\s*\{", text):
        return "json"
    first = text.lstrip().split("\n", 1)[0]
    return "jsonl" if first.startswith("{") else "tsv" if "\t" in first else "csv"


def _csv_rows(name: str, text: str, kind: Kind) -> Iterator[TableRow]:
    # newline="": line ends inside of quotes must reach the reader as they are.
    if kind == "csv":
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    else:
        reader = csv.reader(io.StringIO(text, newline=None), delimiter="\t", quoting=csv.QUOTE_NONE)
    line = 1
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise _malformed(f"{name}:{line}", str(error)) from None
        if values is None:
            return
        if values:  # an empty line is nothing
            yield TableRow(line, tuple(values))
        line = reader.line_num + 1


def _malformed(where: str, said: str) -> InputError:
    if "field limit" in said:
        return InputError(
            f"{where}: a field of more than {LONGEST:,} characters",
            "no context is near that; perhaps a quote that is never closed opens in this row",
            "close the quote, or shorten the text",
        )
    if "unexpected end" in said:
        return InputError(
            f"{where}: a quote that opens in this row is never closed",
            "everything behind it, to the end of the file, would be one text",
            'close it; a quote inside of quotes is written twice: ""',
        )
    return InputError(f"{where}: is not a row of CSV", said, 'a quote inside of quotes is written twice: ""')


def _begins_with_data(rows: list[TableRow], names: tuple[str, ...]) -> bool:
    first = rows[0].values
    known = {value.strip() for value in first if value is not None} & set(names)
    return len(first) == len(names) and not known and any(row.values[0] == first[0] for row in rows[1:])


def _table(path: Path, kind: Kind, found: Iterable[tuple[int, Any]], sha256: str) -> Table:
    """Records as a table of texts; its columns are all the fields that there are."""
    records: list[tuple[int, dict[str, Any]]] = []
    for line, record in found:
        if not isinstance(record, dict):
            raise InputError(f"{path}:{line}: a JSON object is needed, not {kind_of(record)}")
        records.append((line, record))
    if not records:
        raise InputError(f"{path}:1: there are no rows", "the file is empty")
    columns = tuple(dict.fromkeys(key for _, record in records for key in record))
    rows = tuple(
        TableRow(line, tuple(_plain(record.get(key), f"{path}:{line}", key) for key in columns))
        for line, record in records
    )
    return Table(str(path), kind, columns, rows, sha256)


def _plain(value: Any, where: str, key: str) -> str | None:
    """A JSON value as text: strings as they are, the rest as JSON."""
    if value is None:
        return None
    found = value if isinstance(value, str) else json.dumps(value, default=str)
    require_characters(found + key, f"{where}: field {key!r}")
    return found


def text_field(record: dict[str, Any], field: str, where: str, fix: str) -> str:
    """A field that must hold text. Raises InputError, with `fix` to choose another field."""
    value = record.get(field)
    if not isinstance(value, str):
        problem = f"is {kind_of(value)}, not text" if field in record else "is missing"
        raise InputError(
            f"{where}: field {field!r} {problem}",
            f"it has: {', '.join(repr(name[:40]) for name in list(record)[:8]) or 'no field'}",
            fix,
        )
    require_characters(value, f"{where}: field {field!r}")
    return value


def name_field(name: str) -> str:
    """The fix that names another field of text, of a command and of a recipe."""
    in_recipe = shlex.quote(f"data.text_fields=[{name}]")
    return f"name the field that holds the text: --text-field {shlex.quote(name)}, in a recipe {in_recipe}"


def require_characters(text: str, what: str) -> None:
    """Raise InputError for half a surrogate pair, which an escape in JSON can spell."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(f"{what} holds half a surrogate pair ({half})", "that is not a character") from None
