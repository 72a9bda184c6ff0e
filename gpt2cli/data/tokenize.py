"""Owns turning pieces into packed ids quickly. Runs in threads: tiktoken lets go of Python's lock
while it works, so threads use every core without a second process to feed, watch or orphan.
"""

import contextlib
import ctypes
import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import tiktoken

from gpt2cli.data.input_files import TextSource
from gpt2cli.data.manifest import PrepareSettings, ResumePoint, SourceRecord
from gpt2cli.data.shards import Ids, to_shard_dtype
from gpt2cli.data.text_reader import SourceReader, TextPiece
from gpt2cli.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2cli.tokenizer.bpe import BPE, PATTERN


class Encoder(Protocol):
    def __call__(self, pieces: Sequence[TextPiece]) -> Ids:
        """The ids (N,) of consecutive pieces of one split, an end-of-text after each document's end."""


def encoder_for(tokenizer: Tokenizer, dtype: str) -> Encoder:
    """An encoder that many threads may call at once; its ids are `packed` for the files."""
    by_pieces = _by_bytes(tokenizer) if isinstance(tokenizer, BPE) else _one_by_one(tokenizer)
    return lambda pieces: to_shard_dtype(by_pieces(pieces), dtype, tokenizer.n_vocab)


def _by_bytes(tokenizer: BPE) -> Encoder:
    """One call for many documents, which matters where they are short, and no Python list.

    The texts are joined by the marker, which this Encoding, unlike the tokenizer's own, knows.
    That is right as long as no text contains the marker; then each is encoded by itself.
    """
    specials = set(tokenizer.specials)
    ranks = {token: i for i, token in enumerate(tokenizer.tokens) if i not in specials}
    plain = _one_by_one(tokenizer)
    own = threading.local()

    def encoding() -> tiktoken.Encoding:
        """One a thread: threads that share an Encoding wait for its regular expression, and lose
        from a quarter to a half of the speed.
        """
        if not hasattr(own, "encoding"):
            own.encoding = tiktoken.Encoding(
                tokenizer.name,
                pat_str=PATTERN,
                mergeable_ranks=ranks,
                special_tokens={END_OF_TEXT: tokenizer.end_of_text},
            )
        return own.encoding  # type: ignore[no-any-return]

    def encode(pieces: Sequence[TextPiece]) -> Ids:
        joined = "".join([piece.text + END_OF_TEXT if piece.ends else piece.text for piece in pieces])
        if joined.count(END_OF_TEXT) != sum(piece.ends for piece in pieces):
            return plain(pieces)
        ids: Ids = encoding().encode_to_numpy(joined, allowed_special={END_OF_TEXT})
        return ids

    return encode


def _one_by_one(tokenizer: Tokenizer) -> Encoder:
    def encode(pieces: Sequence[TextPiece]) -> Ids:
        parts = [np.empty(0, np.int64)]
        for piece in pieces:
            parts.append(np.array(tokenizer.encode(piece.text), dtype=np.int64))
            if piece.ends:
                parts.append(np.array([tokenizer.end_of_text], dtype=np.int64))
        return np.concatenate(parts)

    return encode


CHUNK_CHARACTERS = 1 << 20
CHUNK_PIECES = 1 << 13
TRIM_CHARACTERS = 1 << 25  # often enough to stay flat, too rare to be felt


@dataclass
class TextChunk:
    train: list[TextPiece] = field(default_factory=list)
    validation: list[TextPiece] = field(default_factory=list)
    mark: ResumePoint = field(default_factory=ResumePoint)


def text_chunks(
    sources: Sequence[TextSource], settings: PrepareSettings, records: list[SourceRecord]
) -> Iterator[TextChunk]:
    """All tasks of all sources. A record is appended to `records` as each source comes to its end.

    Depends on the sources' content and the settings only: not on time, nor on how many workers
    there are.
    """
    task, size, count = TextChunk(), 0, _Count()
    for source in sources:
        reading = SourceReader(source, settings.text_fields)
        with contextlib.closing(reading):
            for piece in trim_heap(reading.pieces()):
                (task.validation if count.add(piece, settings) else task.train).append(piece)
                size += len(piece.text)
                if size >= CHUNK_CHARACTERS or len(task.train) + len(task.validation) >= CHUNK_PIECES:
                    task.mark = count.mark(len(records), reading.n_read, reading.digest)
                    yield task
                    task, size = TextChunk(), 0
            records.append(SourceRecord(source.name, source.kind, reading.n_read, reading.digest))
    if task.train or task.validation:
        task.mark = count.mark(len(records), 0, "")
        yield task


def trim_heap(pieces: Iterator[TextPiece]) -> Iterator[TextPiece]:
    """The same pieces; now and then freed pages go back to the system, where glibc keeps them.

    Megabyte blocks of ever new sizes splinter its heap: 1 GB of text left 290 MB of holes behind.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    size = 0
    for piece in pieces:
        size += len(piece.text)
        if size > TRIM_CHARACTERS and trim:
            trim(0)
            size = 0
        yield piece


def source_record(source: TextSource) -> SourceRecord:
    """What `tasks` would record of a source, without looking at its text."""
    reading = SourceReader(source, ())
    with contextlib.closing(reading):
        reading.drain()
        return SourceRecord(source.name, source.kind, reading.n_read, reading.digest)


def is_validation(index: int, settings: PrepareSettings) -> bool:
    """Whether document `index` is for validation: by a hash, so that no order of the documents matters.

    The first document is always for training, which leaves neither split empty by chance: where
    none is drawn for validation, the last document, or the tail of a single one, is moved there.
    """
    digest = hashlib.sha256(f"{settings.seed}:{index}".encode()).digest()
    return index > 0 and int.from_bytes(digest[:8], "big") < settings.validation * 2**64


class _Count:
    """Running totals over pieces."""

    def __init__(self) -> None:
        self._n_tasks = self._n_documents = self._n_validation = self._n_bytes = self._n_forced = 0
        self._inside = False  # between two pieces of one document
        self._validation = False  # of the current document

    def add(self, piece: TextPiece, settings: PrepareSettings) -> bool:
        """Count the piece; true where it belongs to validation."""
        if not self._inside:
            self._validation = is_validation(self._n_documents, settings)
            self._n_documents += 1
            self._n_validation += self._validation
        self._inside = not piece.ends
        self._n_bytes += piece.n_bytes
        self._n_forced += piece.forced
        return self._validation

    def mark(self, n_sources: int, n_read: int, digest: str) -> ResumePoint:
        self._n_tasks += 1
        return ResumePoint(
            n_tasks=self._n_tasks,
            n_sources=n_sources,
            n_read=n_read,
            digest=digest,
            n_documents=self._n_documents,
            n_validation_documents=self._n_validation,
            n_bytes=self._n_bytes,
            n_forced_cuts=self._n_forced,
        )
