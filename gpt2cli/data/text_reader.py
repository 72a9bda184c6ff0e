"""Reading text: a source becomes the pieces of its documents, in constant memory, with a digest.

A .txt or .md file and standard input are one document each, whose CRLF becomes LF; .jsonl has one per
line, .parquet one per row. A long document comes in several pieces, cut where GPT-2's byte-pair
encoding gives the same tokens.
"""

import codecs
import contextlib
import gzip
import hashlib
import io
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from gpt2cli import files
from gpt2cli.data.input_files import TextSource
from gpt2cli.data.records import kind_of, name_field, parquet_rows, text_field
from gpt2cli.errors import InputError
from gpt2cli.json_files import parse_json

PIECE_CHARACTERS = 1 << 18  # the usual size
MAX_PIECE_CHARACTERS = 1 << 19  # text without a safe cut is cut here anyway
BLOCK = 1 << 20

# A safe cut lies between a character that is not whitespace and a space or newline. GPT-2's pattern
# never matches across it and has no lookbehind, so that both sides split into the same words as the
# whole. (Python's \S excludes everything that Unicode calls White_Space.)
SAFE_CUT = re.compile(r"\S(?=[ \n])")


@dataclass(frozen=True)
class TextPiece:
    """A piece of one document's text; `ends` marks the last one."""

    text: str
    ends: bool
    n_bytes: int  # of `text` as UTF-8
    forced: bool = False  # cut at MAX_PIECE_CHARACTERS: the tokens around the cut may differ
    starts: bool = False  # the document's first; set where documents are told apart


class SourceReader:
    """A source being read: iterate over `pieces`. `digest` and `n_read` cover the bytes read so far,
    `n_line_ends` counts what was CRLF.

    Raises InputError naming the file with the byte offset or the line.
    """

    def __init__(self, source: TextSource, fields: Sequence[str]) -> None:
        self.source = source
        self.n_line_ends = 0
        self._held = ""
        self._fields = fields
        self._raw = _Hashing(files.open_regular(source.path) if source.path else sys.stdin.buffer)

    @property
    def digest(self) -> str:
        return self._raw.digest.hexdigest()

    @property
    def n_read(self) -> int:
        return self._raw.n_read

    def pieces(self) -> Iterator[TextPiece]:
        try:
            if self.source.kind == "parquet":
                yield from self._parquet()
                return
            stream = cast(BinaryIO, io.BufferedReader(self._raw, BLOCK))
            if self.source.gzipped:
                # With its own buffer: the default one reads 8 KB at a time.
                stream = cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=stream), BLOCK))
            yield from self._text(stream) if self.source.kind == "text" else self._jsonl(stream)
            self.drain()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{self.source.name}: damaged gzip data", str(error), "fetch the file again"
            ) from None

    def drain(self) -> None:
        """Read to the end, for the digest."""
        while self._raw.read(BLOCK):
            pass

    def close(self) -> None:
        self._raw.close()

    def _text(self, stream: BinaryIO) -> Iterator[TextPiece]:
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        pending, offset = "", 0
        while block := stream.read(BLOCK):
            pending += self._with_line_feeds(self._decode(block, offset, decoder))
            offset += len(block)
            while len(pending) > MAX_PIECE_CHARACTERS:
                piece, pending = _cut(pending)
                yield piece
        yield from split_document(pending + self._decode(b"", offset, decoder) + self._held)

    def _with_line_feeds(self, text: str) -> str:
        """The next part of a text with LF for CRLF; a "\r" at its end is held back for what follows."""
        if self._held:
            text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        if self._held:
            text = text[:-1]
        n = text.count("\r\n")
        self.n_line_ends += n
        return text.replace("\r\n", "\n") if n else text

    def _decode(self, block: bytes, offset: int, decoder: codecs.IncrementalDecoder) -> str:
        """The text of `block`, which starts at byte `offset` of the source."""
        held = decoder.getstate()[0]
        with contextlib.suppress(UnicodeDecodeError):
            text = decoder.decode(block, final=not block)
            if "\0" not in text:
                return text if offset else text.removeprefix("\ufeff")
        return files.decode_text(held + block, self.source.name, offset - len(held))  # raises

    def _jsonl(self, stream: BinaryIO) -> Iterator[TextPiece]:
        offset = 0
        for number, line in enumerate(stream, 1):
            where = f"{self.source.name}:{number}"
            text = files.decode_text(line, self.source.name, offset, line=number)
            offset += len(line)
            if not text.strip():
                continue
            try:
                record = parse_json(text)
            except ValueError as error:
                raise InputError(f"{where}: not a JSON record", str(error)) from None
            yield from split_document(_joined(record, self._fields, where))

    def _parquet(self) -> Iterator[TextPiece]:
        assert self.source.path is not None
        self.drain()  # parquet needs random access, so its digest takes a separate pass
        for number, row in enumerate(parquet_rows(self.source.path, self._fields), 1):
            where = f"{self.source.name}, row {number}"
            yield from split_document(_joined(row, self._fields, where))


def split_document(document: str) -> Iterator[TextPiece]:
    """A document in memory, as pieces; the empty document has none."""
    while len(document) > MAX_PIECE_CHARACTERS:
        piece, document = _cut(document)
        yield piece
    if document:
        yield TextPiece(document, True, len(document.encode("utf-8")))


def _cut(text: str) -> tuple[TextPiece, str]:
    """The first piece of a text longer than MAX_PIECE_CHARACTERS, and the rest."""
    end = _safe_cut(text)
    forced = not end
    head = text[: end or MAX_PIECE_CHARACTERS]
    return TextPiece(head, False, len(head.encode("utf-8")), forced), text[len(head) :]


def _safe_cut(text: str) -> int:
    """The last safe cut up to PIECE_CHARACTERS, else the first one up to MAX_PIECE_CHARACTERS, else 0."""
    for start in (PIECE_CHARACTERS - 4096, 0):
        end = 0
        for match in SAFE_CUT.finditer(text, start, PIECE_CHARACTERS):
            end = match.end()
        if end:
            return end
    later = SAFE_CUT.search(text, PIECE_CHARACTERS - 1, MAX_PIECE_CHARACTERS)
    return later.end() if later else 0


def _joined(record: Any, fields: Sequence[str], where: str) -> str:
    """The texts of the fields, joined by blank lines, without empty ones."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: must be a JSON object, not {kind_of(record)}")
    texts, fix = [], ""
    for field in fields:
        if not isinstance(record.get(field), str):
            fix = _another_field(record, field)
        texts.append(text_field(record, field, where, fix))
    return "\n\n".join(text for text in texts if text)


def _another_field(record: dict[str, Any], field: str) -> str:
    """The fix for a record without text in `field`: the longest text that it has."""
    if field in record and record[field] is None:
        return "fill it in, or leave the record out"
    texts = {name: len(value) for name, value in record.items() if isinstance(value, str)}
    return name_field(max(texts, key=texts.__getitem__, default="NAME"))


class _Hashing(io.RawIOBase):
    """A file that hashes what is read from it, and fills every read, also from a pipe.

    Full reads make the digest at any position a function of the content, not of how it arrives.
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
        if self._file is not getattr(sys.stdin, "buffer", None):  # None: closed by the parent process
            self._file.close()
        super().close()
