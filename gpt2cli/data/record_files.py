"""Records in files: CSV, TSV, JSON lines, a JSON list or parquet -> each record, with its line.

This is the one reader of records: pretraining text, labelled texts, instructions, tables to classify and
responses to judge come through it, in constant memory and under one rule for bad records.
"""

import codecs
import contextlib
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from gpt2cli import files
from gpt2cli.data.bad_records import RecordTally
from gpt2cli.data.byte_source import STRICT, ByteSource, ReadOptions
from gpt2cli.data.csv_rows import (
    LONGEST,
    SEPARATORS,
    csv_rows,
    find_separator,
    has_spaced_quotes,
    sample_lines,
)
from gpt2cli.data.file_kinds import TABLES, Kind, reading_command
from gpt2cli.data.input_files import SourceKind, TextSource, record_source
from gpt2cli.data.json_values import json_values
from gpt2cli.data.text_fields import name_field
from gpt2cli.encodings import Utf8Reader, decode_utf8
from gpt2cli.errors import InputError, UsageError
from gpt2cli.json_files import parse_json

ONE_PER_LINE = "one object per line"
LONGEST_LINE = 1 << 26  # bytes
LARGE = 1 << 20  # characters of a field, where a text may be longer than a context


class RecordReader:
    """The records of one source: iterate once for (line, value). A row of a table is a dict of texts.

    `columns` name the columns of a table without a row of names. Where they are not given, `headerless`
    names those of a TSV file that begins with its data: such a file has just so many fields in its first
    line, none of them one of those names, and its first word stands at the head of a later line too.

    Malformed records go to `tally`; the caller adds those that it cannot use, counts the good ones, and
    calls `finish` at the end. Raises InputError naming FILE:LINE.
    """

    def __init__(
        self,
        source: TextSource,
        options: ReadOptions | None = None,
        *,
        columns: Sequence[str] = (),
        headerless: Sequence[str] = (),
        fields: Sequence[str] = (),
        longest: int = LONGEST,
        file: BinaryIO | None = None,
        fix: str = ONE_PER_LINE,
    ) -> None:
        """`fields` are all that is wanted of parquet. `file` is read instead of the source's path."""
        options = options or ReadOptions()
        self.source, self.kind = source, source.kind
        self.tally = RecordTally(options.max_bad)
        self.columns: tuple[str, ...] = ()  # of a table, once its first row is read
        self.twice: set[str] = set()  # columns that are there twice
        self.separator = ""
        self._bytes = ByteSource(source, options.encoding, file)
        self._given, self._headerless = tuple(columns), tuple(headerless)
        self._fields, self._longest, self._fix = tuple(fields), longest, fix

    @property
    def digest(self) -> str:
        return self._bytes.digest

    @property
    def n_read(self) -> int:
        return self._bytes.n_read

    def where(self, line: int) -> str:
        return f"{self.source.name}, row {line}" if self.kind == "parquet" else f"{self.source.name}:{line}"

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        if self.kind == "parquet":
            self._refuse_names()
            assert self.source.path is not None
            self._bytes.drain()  # parquet needs random access, so its digest takes a separate pass
            yield from enumerate(parquet_rows(self.source.path, self._fields), 1)
            return
        with self._bytes.stream() as stream:
            self.kind = self.kind if self.kind != "records" else _kind_by_content(stream)
            if self.kind in TABLES:
                yield from self._rows(_numbered_lines(stream, self.source.name))
            else:
                self._refuse_names()
                is_lines = _is_lines(stream, self.kind)
                if is_lines:
                    yield from self._lines(stream)
                else:
                    text = Utf8Reader(stream, self.source.name, line=1)
                    yield from json_values(text.read, self.source.name, self._fields)
            self._bytes.drain()

    def require_once(self, names: Iterable[str]) -> None:
        """Raise InputError if the table has one of these columns twice."""
        for name in names:
            if name in self.twice:
                fix = "rename one of them"
                raise InputError(f"{self.where(1)}: the column {name!r} is there twice", fix=fix)

    def finish(self) -> list[str]:
        """What to say of the file. Raises InputError if too many of its records are bad."""
        self.tally.finish()
        notes = []
        if self.separator and self.separator != ("\t" if self.kind == "tsv" else ","):
            spoken = SEPARATORS.get(self.separator, repr(self.separator))
            notes.append(f"{self.source.name}: its columns are separated by {spoken}")
        return notes + [note for note in [self.tally.note(self.source.name)] if note]

    def close(self) -> None:
        self._bytes.close()

    def _refuse_names(self) -> None:
        if self._given:
            raise InputError(
                f"{self.source.name}:1: records name their fields themselves",
                f"and are to be named {', '.join(map(repr, self._given[:8]))}",
                "leave the names of columns out",
            )

    def _lines(self, stream: BinaryIO) -> Iterator[tuple[int, Any]]:
        name = self.source.name
        for number, text in _numbered_lines(stream, name, returns=False):
            text = text.lstrip("\ufeff")  # files with marks, one after another
            if not text.strip():
                continue
            try:
                value = parse_json(text)
            except ValueError as error:
                fix = _line_fix(text, name) or self._fix
                self.tally.skip(InputError(f"{name}:{number}: not a JSON record", str(error), fix))
                continue
            yield number, value

    def _rows(self, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, dict[str, str]]]:
        name = self.source.name
        first, lines = sample_lines(lines)
        texts = [text for _, text in first]
        self.separator = "\t" if self.kind == "tsv" else find_separator(texts)
        if texts and texts[0].strip().lower() == f"sep={self.separator}":
            next(lines)
        rows = csv_rows(
            lines,
            name,
            self.separator,
            self.tally,
            quoted=self.kind == "csv",
            longest=self._longest,
            spaced=self.kind == "csv" and has_spaced_quotes(texts, self.separator),
        )
        head = list(itertools.islice(rows, 2 + len(first)))
        if not head:
            if self.tally.n_bad:
                return
            raise InputError(f"{name}:1: there are no rows", "the file is empty")
        names, is_named = self._names(head)
        self.columns = tuple(dict.fromkeys(column for column in names if column))
        self.twice = {column for column in self.columns if names.count(column) > 1}
        for line, values in itertools.chain(head[is_named:], rows):
            if len(values) != len(names):
                fitted = _fitted(values, names)
                if fitted is None:
                    self.tally.skip(self._misfit(line, values, names))
                    continue
                values = fitted
            yield line, {column: value for column, value in zip(names, values, strict=True) if column}

    def _names(self, head: Sequence[tuple[int, list[str]]]) -> tuple[tuple[str, ...], bool]:
        """The names of all columns, and whether the first row is them."""
        line, values = head[0]
        first = tuple(value.strip() for value in values)
        if self._given:
            if set(first) == set(self._given):
                raise InputError(
                    f"{self.source.name}:{line}: the columns are named in this row",
                    "with names given besides it would be taken for data",
                    "leave the names of columns out",
                )
            return self._given, False
        wanted = self._headerless
        may_be_data = self.kind == "tsv" and len(first) == len(wanted) and not set(first) & set(wanted)
        if may_be_data and any(values[0] == first[0] for _, values in head[1:]):
            return wanted, False
        return first, True

    def _misfit(self, line: int, values: Sequence[str], names: Sequence[str]) -> InputError:
        few = len(values) < len(names)
        quote = f"put quotes around a text that holds {SEPARATORS.get(self.separator, 'it')[:-1]}s"
        return InputError(
            f"{self.source.name}:{line}: too {'few' if few else 'many'} fields, {len(values)}",
            f"the file has {len(names)} columns: {', '.join(map(repr, names[:8]))}",
            quote if self.kind == "csv" and not few else "",
        )


def read_records(
    path: Path, options: ReadOptions | None = None, fix: str = ONE_PER_LINE
) -> tuple[list[tuple[int, Any]], str]:
    """(its line, the record) of each record, and the SHA-256 of the file. A file whose name does not tell
    its kind tells it by its content.

    Raises InputError naming FILE:LINE. That a record is an object is for the caller to check.
    """
    reader = RecordReader(record_source(path), options or STRICT, fix=fix)
    try:
        records = list(reader)
    finally:
        reader.close()
    return records, reader.digest


def read_text(path: Path, options: ReadOptions | None = None) -> tuple[str, str]:
    """The text of a file, line ends as they are, and its SHA-256. Raises InputError naming FILE:LINE."""
    source = record_source(path)
    opened = ByteSource(source, (options or ReadOptions()).encoding)
    try:
        with opened.stream() as stream:
            text = decode_utf8(stream.read(), source.name, line=1)
        opened.drain()
    finally:
        opened.close()
    return text, opened.digest


def parquet_rows(path: Path, fields: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, a batch of them in memory, and of their columns those that hold `fields`.

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
            columns = [_column_of(field, there) for field in fields]
            if missing := [name for name in columns if name not in there]:
                texts = [column.name for column in file.schema_arrow if str(column.type).endswith("string")]
                raise InputError(
                    f"{path}: no column {missing[0]!r}",
                    f"the file has: {', '.join(map(repr, there[:8]))}",
                    name_field(texts[0] if texts else "NAME"),
                )
            for batch in file.iter_batches(batch_size=256, columns=list(dict.fromkeys(columns)) or None):
                yield from _as_texts(batch).to_pylist()
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        OverflowError,
    ) as error:  # ValueError: a name is not UTF-8
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(
            f"{path}:1: not a readable parquet file", str(error), "fetch the file again"
        ) from None


def _column_of(field: str, there: Sequence[str]) -> str:
    """The column that holds a field: the longest name that it begins with, which may have dots itself."""
    parts = field.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((name for name in names if name in there), parts[0])


def _as_texts(batch: Any) -> Any:
    """A batch with its columns of bytes as texts, where they are UTF-8: Impala's and old Spark's texts."""
    import pyarrow as pa

    for i, column in enumerate(batch.schema):
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            with contextlib.suppress(pa.ArrowInvalid):
                batch = batch.set_column(i, column.name, batch.column(i).cast(pa.large_string()))
    return batch


def _numbered_lines(stream: BinaryIO, name: str, *, returns: bool = True) -> Iterator[tuple[int, str]]:
    """Lines with their ends and their numbers, from 1. With `returns`, a lone "\\r" ends one too.

    Not splitlines: U+2028 and its like may stand inside of a text.
    """
    offset = number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise InputError(
                f"{name}:{number}: a line of more than {LONGEST_LINE >> 20} MiB", "no record is near that"
            )
        text = decode_utf8(line, name, offset, line=number, more=stream.read)
        offset += len(line)
        if returns and text.count("\r") > text.endswith("\r\n"):
            *parts, last = _LONE_RETURN.split(text)
            yield from ((number, part + "\r") for part in parts)
            text = last
        if text:
            yield number, text


_LONE_RETURN = re.compile(r"\r(?!\n)")


def _kind_by_content(stream: BinaryIO) -> Kind:
    head = cast(Any, stream).peek(4096)[:4096].removeprefix(codecs.BOM_UTF8).lstrip()
    if re.match(rb"\[\s*[\[{\"]", head) or (head.startswith(b"[") and b"\t" not in head.partition(b"\n")[0]):
        return "json"
    first = head.split(b"\n", 1)[0]
    return "jsonl" if first.startswith(b"{") else "tsv" if b"\t" in first else "csv"


def _is_lines(stream: BinaryIO, kind: SourceKind) -> bool:
    """Whether each line of JSON is a record; else they are the items of one list, or values that go over
    several lines.
    """
    head = cast(Any, stream).peek(1 << 16)[: 1 << 16].removeprefix(codecs.BOM_UTF8).lstrip()
    first, _, rest = head.partition(b"\n")
    first, rest = first.rstrip(), rest.lstrip()
    if kind == "json":
        return bool(head.startswith(b"{") and first.endswith(b"}") and rest.startswith(b"{"))
    if re.match(rb"\[\s*\{", head) or first == b"[":
        return bool(first.endswith(b"]") and rest)  # lines that are lists
    return not (first.startswith(b"{") and first.endswith((b"{", b"[", b",")) and not first.endswith(b"},"))


def _line_fix(line: str, name: str) -> str:
    """The command that mends the lines of a file like this one, which are not JSON; "" if none is known."""
    text = line.strip()
    if text.endswith(","):
        return reading_command(name, "sed 's/,[[:space:]]*$//'", ".jsonl")
    if text.startswith("{'"):
        python = "import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) for line in sys.stdin]"
        return reading_command(name, f"python3 -c {shlex.quote(python)}", ".jsonl")
    return ""


def _fitted(values: list[str], names: Sequence[str]) -> list[str] | None:
    """A row of other length than the names, where only blank fields and unnamed columns differ."""
    n = len(names)
    if len(values) > n:
        return None if any(map(str.strip, values[n:])) else values[:n]
    return None if any(names[len(values) :]) else [*values, *[""] * (n - len(values))]
