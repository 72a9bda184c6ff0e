"""Owns the order of the work: sources -> tasks of about a megabyte, the same ones every time.

A task holds whole pieces, each already given to training or validation, and the mark: where the
reading stood when the task was complete. Marks make an interrupted preparation continue: the
sources are read again from the start, which is fast, and only tasks not yet done are encoded.
"""

import contextlib
import ctypes
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gpt2cli.data.input_files import Source
from gpt2cli.data.manifest import Mark, Settings, SourceRecord
from gpt2cli.data.text_reader import Piece, Reading

TASK_CHARACTERS = 1 << 20
TASK_PIECES = 1 << 13
TRIM_CHARACTERS = 1 << 25  # often enough to stay flat, too rare to be felt


@dataclass
class Task:
    train: list[Piece] = field(default_factory=list)
    validation: list[Piece] = field(default_factory=list)
    mark: Mark = field(default_factory=Mark)


def tasks(sources: Sequence[Source], settings: Settings, records: list[SourceRecord]) -> Iterator[Task]:
    """All tasks of all sources. A record is appended to `records` as each source comes to its end.

    Depends on the sources' content and the settings only: not on time, nor on how many workers
    there are.
    """
    task, size, count = Task(), 0, _Count()
    for source in sources:
        reading = Reading(source, settings.text_fields)
        with contextlib.closing(reading):
            for piece in returning_memory(reading.pieces()):
                (task.validation if count.add(piece, settings) else task.train).append(piece)
                size += len(piece.text)
                if size >= TASK_CHARACTERS or len(task.train) + len(task.validation) >= TASK_PIECES:
                    task.mark = count.mark(len(records), reading.n_read, reading.digest)
                    yield task
                    task, size = Task(), 0
            records.append(SourceRecord(source.name, source.kind, reading.n_read, reading.digest))
    if task.train or task.validation:
        task.mark = count.mark(len(records), 0, "")
        yield task


def returning_memory(pieces: Iterator[Piece]) -> Iterator[Piece]:
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


def record_of(source: Source) -> SourceRecord:
    """What `tasks` would record of a source, without looking at its text."""
    reading = Reading(source, ())
    with contextlib.closing(reading):
        reading.drain()
        return SourceRecord(source.name, source.kind, reading.n_read, reading.digest)


def in_validation(index: int, settings: Settings) -> bool:
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

    def add(self, piece: Piece, settings: Settings) -> bool:
        """Count the piece; true where it belongs to validation."""
        if not self._inside:
            self._validation = in_validation(self._n_documents, settings)
            self._n_documents += 1
            self._n_validation += self._validation
        self._inside = not piece.ends
        self._n_bytes += piece.n_bytes
        self._n_forced += piece.forced
        return self._validation

    def mark(self, n_sources: int, n_read: int, digest: str) -> Mark:
        self._n_tasks += 1
        return Mark(
            n_tasks=self._n_tasks,
            n_sources=n_sources,
            n_read=n_read,
            digest=digest,
            n_documents=self._n_documents,
            n_validation_documents=self._n_validation,
            n_bytes=self._n_bytes,
            n_forced_cuts=self._n_forced,
        )
