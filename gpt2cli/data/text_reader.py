"""Owns reading text: a source -> the pieces of its documents, in constant memory, with its digest.

A .txt or .md file, or standard input, is one document; a line of .jsonl and a row of .parquet is
one each. A long document comes in several pieces, cut where GPT-2's byte-pair encoding cannot
notice. What the pieces become is not known here.
"""

import codecs
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from gpt2cli import files
from gpt2cli.data.input_files import Source
from gpt2cli.errors import InputError, UsageError

PIECE = 1 << 18  # characters a piece aims at
CAP = 1 << 19  # characters after which text without a safe place is cut anyway
LINE_LIMIT = 64 << 20  # bytes of one .jsonl line: a JSON record cannot be parsed in parts
BLOCK = 1 << 20

# A safe place to cut lies between a character that is not whitespace and a space or newline.
# GPT-2's pattern never matches across it, and nothing in it looks back, so both sides are split
# into the same words as the whole. (Python's \S excludes all that Unicode calls White_Space.)
SAFE = re.compile(r"\S(?=[ \n])")


@dataclass(frozen=True)
class Piece:
    """Text of one document. `ends` is true for the document's last piece."""

    text: str
    ends: bool
    n_bytes: int  # of `text` as UTF-8
    forced: bool = False  # cut at CAP, not at a safe place: the tokens around the cut may differ


class Reading:
    """A source while it is read. Iterate over `pieces`; `digest` and `n_read` cover what was read so far.

    Raises InputError naming the file with the byte offset or the line.
    """

    def __init__(self, source: Source, fields: Sequence[str]) -> None:
        self.source = source
        self._fields = fields
        if source.kind == "parquet":
            _require_pyarrow(source)
        self._raw = _Hashing(files.open_regular(source.path) if source.path else sys.stdin.buffer)

    @property
    def digest(self) -> str:
        return self._raw.digest.hexdigest()

    @property
    def n_read(self) -> int:
        return self._raw.n_read

    def pieces(self) -> Iterator[Piece]:
        try:
            if self.source.kind == "parquet":
                yield from self._parquet()
                return
            stream = cast(BinaryIO, io.BufferedReader(self._raw, BLOCK))
            if self.source.gzipped:
                # A size of its own for the buffer inside: the default reads 8 KB at a time.
                stream = cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=stream), BLOCK))
            yield from self._text(stream) if self.source.kind == "text" else self._jsonl(stream)
            self.drain()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{self.source.name}: damaged gzip data", str(error), "fetch the file again"
            ) from None

    def drain(self) -> None:
        """Read on to the end, for the digest."""
        while self._raw.read(BLOCK):
            pass

    def close(self) -> None:
        self._raw.close()

    def _text(self, stream: BinaryIO) -> Iterator[Piece]:
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        pending, offset = "", 0
        while block := stream.read(BLOCK):
            pending += self._decode(block, offset, decoder)
            offset += len(block)
            while len(pending) > CAP:
                piece, pending = _cut(pending)
                yield piece
        yield from pieces_of(pending + self._decode(b"", offset, decoder))

    def _decode(self, block: bytes, offset: int, decoder: codecs.IncrementalDecoder) -> str:
        """The text of `block`, which begins at byte `offset` of the source."""
        held = len(decoder.getstate()[0])
        _refuse_nul(block, offset, self.source.name)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _not_utf8(self.source.name, offset - held + error.start, error.object) from None
        return text.removeprefix("\ufeff") if offset == 0 else text

    def _jsonl(self, stream: BinaryIO) -> Iterator[Piece]:
        offset, number = 0, 0
        while line := stream.readline(LINE_LIMIT + 1):
            number += 1
            where = f"{self.source.name}:{number}"
            if len(line) > LINE_LIMIT:
                raise InputError(
                    f"{where}: a line of more than {LINE_LIMIT >> 20} MiB",
                    "a JSON record has to be parsed whole",
                    "put such a text into a .txt file of its own",
                )
            _refuse_nul(line, offset, where)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(where, offset + error.start, line) from None
            offset += len(line)
            if number == 1:
                text = text.removeprefix("\ufeff")
            if text.strip():
                yield from pieces_of(_joined(_record(text, where), self._fields, where), where)

    def _parquet(self) -> Iterator[Piece]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.drain()  # parquet is read at random, so its digest takes a pass of its own
        number = 0
        try:
            with pq.ParquetFile(self.source.path) as file:
                _require_columns(self.source.name, file.schema_arrow.names, self._fields)
                for batch in file.iter_batches(batch_size=256, columns=list(self._fields)):
                    for row in batch.to_pylist():
                        number += 1
                        where = f"{self.source.name}, row {number}"
                        yield from pieces_of(_joined(row, self._fields, where), where)
        except pa.ArrowException as error:
            raise InputError(f"{self.source.name}: not a readable parquet file", str(error)) from None


def pieces_of(document: str, where: str = "") -> Iterator[Piece]:
    """A document that is in memory, in pieces; none for the empty document."""
    if where:  # escapes in JSON can spell half a surrogate pair; decoded files cannot
        _encoded_length(document, where)
    while len(document) > CAP:
        piece, document = _cut(document)
        yield piece
    if document:
        yield Piece(document, True, len(document.encode("utf-8")))


def _cut(text: str) -> tuple[Piece, str]:
    """The first piece of a text that is longer than CAP, and the rest."""
    place, forced = _safe_place(text), False
    if not place:
        place, forced = CAP, True
    head = text[:place]
    return Piece(head, False, len(head.encode("utf-8")), forced), text[place:]


def _safe_place(text: str) -> int:
    """The last safe place up to PIECE, else the first one up to CAP, else 0."""
    for start in (PIECE - 4096, 0):
        place = 0
        for match in SAFE.finditer(text, start, PIECE):
            place = match.end()
        if place:
            return place
    later = SAFE.search(text, PIECE - 1, CAP)
    return later.end() if later else 0


def _record(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not a JSON record", str(error)) from None


def _joined(record: Any, fields: Sequence[str], where: str) -> str:
    """The fields' texts, a blank line between them; empty ones are left out."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: a JSON object is needed, not {type(record).__name__}")
    texts = []
    for field in fields:
        value = record.get(field)
        if not isinstance(value, str):
            problem = f"is {type(value).__name__}, not text" if field in record else "is missing"
            raise InputError(
                f"{where}: field {field!r} {problem}",
                f"the record has: {', '.join(map(repr, list(record)[:8]))}",
                "name the field that holds the text: --text-field NAME",
            )
        texts.append(value)
    return "\n\n".join(text for text in texts if text)


def _encoded_length(text: str, where: str) -> int:
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: half a surrogate pair (\\u{ord(text[error.start]):04x})", "it is not a character"
        ) from None


def _refuse_nul(block: bytes, offset: int, name: str) -> None:
    place = block.find(b"\0")
    if place >= 0:
        raise InputError(
            f"{name}: a NUL byte at byte {offset + place}",
            "text has none: the file is binary, or UTF-16",
            "iconv -f UTF-16 -t UTF-8 FILE > FILE.txt, if it is UTF-16",
        )


def _not_utf8(name: str, offset: int, block: bytes) -> InputError:
    utf16 = offset == 0 and block[:2] in (b"\xff\xfe", b"\xfe\xff")
    return InputError(
        f"{name}: not UTF-8 at byte {offset}",
        "it begins like UTF-16" if utf16 else "the bytes there are no character; perhaps Latin-1",
        f"iconv -f {'UTF-16' if utf16 else 'LATIN1'} -t UTF-8 FILE > FILE.txt",
    )


def _require_pyarrow(source: Source) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UsageError(
            f"{source.name}: parquet needs pyarrow", "it is not installed here", "pip install pyarrow"
        ) from None


def _require_columns(name: str, columns: Sequence[str], fields: Sequence[str]) -> None:
    missing = [field for field in fields if field not in columns]
    if missing:
        raise InputError(
            f"{name}: no column {missing[0]!r}",
            f"the file has: {', '.join(map(repr, columns[:8]))}",
            "name the column that holds the text: --text-field NAME",
        )


class _Hashing(io.RawIOBase):
    """A file that hashes what is read from it, and fills every read to the end, also from a pipe.

    Full reads make the digest at any point a function of the content alone, however it arrives.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.n_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        self.digest.update(block)
        self.n_read += len(block)
        return len(block)

    def close(self) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()
        super().close()
