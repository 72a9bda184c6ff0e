"""Reading text: a source becomes the pieces of its documents, in constant memory, with a digest.

A .txt or .md file and standard input are one document each, unless they are split; their CRLF becomes LF.
A record is a document, of the texts of its fields. Text is split at a separator, at line ends or at blank
lines. A long document comes in several pieces, cut where GPT-2's byte-pair encoding gives the same tokens.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from gpt2cli.data.byte_source import BLOCK, ByteSource, ReadOptions
from gpt2cli.data.file_kinds import TABLES, markup_note
from gpt2cli.data.input_files import TextSource
from gpt2cli.data.record_files import LARGE, RecordReader
from gpt2cli.data.tables import no_column
from gpt2cli.data.text_fields import TEXT, joined_text, longest_field, name_field
from gpt2cli.encodings import Utf8Reader
from gpt2cli.errors import InputError, UsageError
from gpt2cli.tokenizer.base import END_OF_TEXT

PIECE_CHARACTERS = 1 << 18  # the usual size
MAX_PIECE_CHARACTERS = 1 << 19  # text without a safe cut is cut here anyway

# A safe cut lies between a character that is not whitespace and a space or newline. GPT-2's pattern
# never matches across it and has no lookbehind, so that both sides split into the same words as the
# whole. (Python's \S excludes everything that Unicode calls White_Space.)
SAFE_CUT = re.compile(r"\S(?=[ \n])")


LINES, BLANK_LINES = "\n", r"\n(?:[^\S\n]*\n)+"
_CHOICES = "--split-on, --per-line and --blank-line (data.split_on, data.per_line, data.blank_line)"


@dataclass(frozen=True)
class SplitRule:
    """How a text is cut into documents; at most one of the three. `split_on` cuts the texts of records
    too, the other two plain text alone.

    Raises UsageError for two rules at once.
    """

    split_on: str = ""
    per_line: bool = False
    blank_line: bool = False

    def __post_init__(self) -> None:
        if bool(self.split_on) + self.per_line + self.blank_line > 1:
            raise UsageError(
                "a text is split in two ways", f"{_CHOICES} exclude each other", "give one of them"
            )

    def separator(self, is_plain: bool) -> re.Pattern[str] | None:
        if self.split_on:  # a text's CRLF is LF when it is split
            return re.compile(re.escape(self.split_on.replace("\r\n", "\n")))
        if is_plain and (self.per_line or self.blank_line):
            return re.compile(LINES if self.per_line else BLANK_LINES)
        return None


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
    `n_line_ends` counts what was CRLF; `notes` are what to say of the source once it is read.

    Raises InputError naming the file with the byte offset or the line.
    """

    def __init__(
        self,
        source: TextSource,
        fields: Sequence[str] = TEXT,
        options: ReadOptions | None = None,
        rule: SplitRule | None = None,
    ) -> None:
        self.source = source
        self.n_line_ends = 0
        self.notes: list[str] = []
        self._n_markers = 0
        self._held = ""
        self._fields, self._options, self._rule = tuple(fields), options or ReadOptions(), rule or SplitRule()
        self._reader: RecordReader | ByteSource
        if source.kind == "text":
            self._reader = ByteSource(source, self._options.encoding)
        else:
            self._reader = RecordReader(source, self._options, fields=self._fields, longest=LARGE)

    @property
    def digest(self) -> str:
        return self._reader.digest

    @property
    def n_read(self) -> int:
        return self._reader.n_read

    def pieces(self) -> Iterator[TextPiece]:
        reader = self._reader
        is_plain = isinstance(reader, ByteSource) and self.source.path  # no command reads stdin again
        for n, piece in enumerate(
            self._text(reader) if isinstance(reader, ByteSource) else self._records(reader)
        ):
            if n == 0 and is_plain and (note := markup_note(self.source.name, piece.text)):
                self.notes.append(note)
            if END_OF_TEXT in piece.text:
                self._n_markers += piece.text.count(END_OF_TEXT)
            yield piece
        if self._n_markers:
            times = f"{self._n_markers:,} times" if self._n_markers > 1 else "once"
            self.notes.append(
                f"{self.source.name}: {END_OF_TEXT} stands in its text {times} and is read as ordinary text,"
                f" not as the end of a document; {split_option(END_OF_TEXT)} ends one there"
            )

    def close(self) -> None:
        self._reader.close()

    def _records(self, reader: RecordReader) -> Iterator[TextPiece]:
        separator, tally = self._rule.separator(is_plain=False), reader.tally
        for line, record in reader:
            if reader.kind in TABLES and not tally.n_good:
                self._require_columns(reader, record)
            try:
                text = joined_text(record, self._fields, reader.where(line))
            except InputError as error:
                tally.skip(error)
                continue
            if reader.kind in TABLES and "\r\n" in text:  # line ends of the file, not of the text
                self.n_line_ends += text.count("\r\n")
                text = text.replace("\r\n", "\n")
            tally.n_good += 1
            if separator is None or not separator.search(text):
                yield from split_document(text)
            else:
                yield from _split(iter([text, ""]), separator)
        self.notes += reader.finish()

    def _require_columns(self, reader: RecordReader, record: dict[str, str]) -> None:
        """Refuse a table without the fields at its first row: no other has them."""
        reader.require_once(self._fields)
        for field in self._fields:
            if field not in reader.columns:
                fix = name_field(longest_field(record) or "NAME")
                raise no_column(reader.where(1), field, reader.columns, fix)

    def _text(self, opened: ByteSource) -> Iterator[TextPiece]:
        separator = self._rule.separator(is_plain=True)
        with opened.stream() as stream:
            blocks = self._blocks(stream)
            if separator is not None:
                yield from _split(blocks, separator)
            else:
                pending = ""
                for block in blocks:
                    pending += block
                    while len(pending) > MAX_PIECE_CHARACTERS:
                        piece, pending = _cut(pending)
                        yield piece
                yield from split_document(pending)
            opened.drain()

    def _blocks(self, stream: BinaryIO) -> Iterator[str]:
        reader = Utf8Reader(stream, self.source.name)
        while block := reader.read(BLOCK):
            yield self._with_line_feeds(block)
        yield self._held

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


def _split(blocks: Iterator[str], separator: re.Pattern[str]) -> Iterator[TextPiece]:
    """The documents of a text between separators, without empty ones and without line ends around them."""
    pending, is_inside = "", False  # inside a document whose first piece is out
    room = MAX_PIECE_CHARACTERS + len(separator.pattern)  # a separator may begin at the end

    def ended(document: str) -> Iterator[TextPiece]:
        document = document.rstrip("\n") if is_inside else document.strip("\n")
        if is_inside and not document:
            yield TextPiece("", True, 0)
        elif is_inside or document.strip():
            yield from split_document(document)

    for block in blocks:
        pending += block
        start = 0
        for match in separator.finditer(pending):
            if match.end() == len(pending):
                break  # blank lines may go on in the next block
            yield from ended(pending[start : match.start()])
            start, is_inside = match.end(), False
        pending = pending[start:]
        while len(pending) > room:
            piece, pending = _cut(pending if is_inside else pending.lstrip("\n"))
            yield piece
            is_inside = True
    *documents, last = separator.split(pending)
    for document in documents:
        yield from ended(document)
        is_inside = False
    yield from ended(last)


def split_document(document: str) -> Iterator[TextPiece]:
    """A document in memory, as pieces; the empty document has none."""
    while len(document) > MAX_PIECE_CHARACTERS:
        piece, document = _cut(document)
        yield piece
    if document:
        yield TextPiece(document, True, _n_bytes(document))


def _cut(text: str) -> tuple[TextPiece, str]:
    """The first piece of a text longer than MAX_PIECE_CHARACTERS, and the rest."""
    end = _safe_cut(text)
    forced = not end
    head = text[: end or MAX_PIECE_CHARACTERS]
    return TextPiece(head, False, _n_bytes(head), forced), text[len(head) :]


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


def _n_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def split_option(text: str) -> str:
    """The fix that splits at a text."""
    recipe = shlex.quote("data.split_on=" + text)
    return f"--split-on {shlex.quote(text)}, in a recipe {recipe}"
