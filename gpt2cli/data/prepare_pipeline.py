"""One preparation: chunks of text -> ids (threads) -> shards in order -> manifest.json.

A journal records what is on disk. `prepare.py` decides whether there is anything to do, and where.
"""

import contextlib
import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from gpt2cli import files
from gpt2cli.data.input_files import TextSource, total_bytes
from gpt2cli.data.manifest import (
    JOURNAL,
    MANIFEST,
    Journal,
    PrepareSettings,
    Shard,
    SourceRecord,
    StaleError,
    TokenManifest,
    WriterState,
    delete_prepared,
    write_journal,
    write_manifest,
)
from gpt2cli.data.shards import ShardWriter, dtype_for, last_document_length, move_tail
from gpt2cli.data.text_reader import MAX_PIECE_CHARACTERS
from gpt2cli.data.tokenize import encode_chunks, encoder_for, text_chunks
from gpt2cli.errors import InputError
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.files import save_tokenizer

Phase = Literal["waiting", "vocabulary", "continuing", "tokens", "finishing", "done", "nothing to do"]


@dataclass(frozen=True)
class PrepareProgress:
    """The progress of a preparation. The last item has the phase "done" or "nothing to do".

    `n_read` of `n_total` source bytes (None: standard input) gives the fraction, `n_bytes` of text and
    `n_tokens` the speed; an earlier call did `n_continued` of these bytes. A `warning` comes once, in
    an item of its own.
    """

    phase: Phase
    out: Path
    n_read: int = 0
    n_total: int | None = None
    n_documents: int = 0
    n_bytes: int = 0
    n_continued: int = 0
    n_tokens: int = 0
    n_validation_tokens: int = 0
    warning: str = ""

    @property
    def is_last(self) -> bool:
        return self.phase in ("done", "nothing to do")


@dataclass(frozen=True)
class PrepareJob:
    """The sources and settings of a preparation. `expected` are the sources as an earlier pass found them."""

    sources: Sequence[TextSource]
    out: Path
    settings: PrepareSettings
    block: int
    workers: int
    journal_seconds: float
    expected: Sequence[SourceRecord] | None = None

    @cached_property
    def n_total(self) -> int | None:
        return total_bytes(self.sources)


def run_prepare(job: PrepareJob, tokenizer: Tokenizer, start: Journal) -> Iterator[PrepareProgress]:
    """Do the remaining work in journal `start`, yielding progress. The last item means a valid folder.

    The caller holds the folder's lock. Raises InputError if the text is too short for one block, or
    has changed.
    """
    # Left by an interrupted `prepare --force`.
    (job.out / MANIFEST).unlink(missing_ok=True)
    dtype, n_shard = dtype_for(tokenizer.n_vocab), job.settings.shard_tokens
    train = ShardWriter(job.out, "train", dtype, n_shard, start.train)
    validation = ShardWriter(job.out, "validation", dtype, n_shard, start.validation)
    with contextlib.closing(train), contextlib.closing(validation):
        journal = yield from _write_tokens(job, tokenizer, start, train, validation)
        yield _progress(job, "finishing", journal, start)
        journal = _fill_validation(job, tokenizer, journal, validation)
    n_validation = _n_tokens(journal.validation.finished)
    if job.settings.validation and n_validation < job.block:
        why = f"only {n_validation:,} validation tokens, fewer than one block of {job.block:,}"
        yield _progress(job, "finishing", journal, start, warning=why)
    if journal.position.n_forced_cuts and job.settings.tokenizer != "chars":
        cuts = (
            f"{journal.position.n_forced_cuts:,} cuts in text without a space for {MAX_PIECE_CHARACTERS:,}"
            " characters: tokens there may differ"
        )
        yield _progress(job, "finishing", journal, start, warning=cuts)
    names = save_tokenizer(tokenizer, job.out)
    write_manifest(job.out, _manifest(job, tokenizer, journal, names))
    (job.out / JOURNAL).unlink()
    files.flush_directory(job.out)
    yield _progress(job, "done", journal, start)


def _write_tokens(
    job: PrepareJob, tokenizer: Tokenizer, start: Journal, train: ShardWriter, validation: ShardWriter
) -> Generator[PrepareProgress, None, Journal]:
    """Encode and append all remaining chunks; returns the journal of the finished work."""
    found: list[SourceRecord] = []
    journal, saved_at = start, time.monotonic()
    chunks = text_chunks(job.sources, job.settings, found)
    n_done = start.position.n_chunks
    for chunk, ids in encode_chunks(chunks, encoder_for(tokenizer), job.workers, n_done):
        journal = replace(journal, position=chunk.position, sources=tuple(found[: chunk.position.n_sources]))
        if ids is None:
            if chunk.position.n_chunks == n_done:
                _compare(start, journal)
            yield _progress(job, "continuing", journal, start)
            continue
        train.write(ids[0])
        validation.write(ids[1])
        journal = replace(journal, train=train.state, validation=validation.state)
        if time.monotonic() - saved_at >= job.journal_seconds:
            train.flush()
            validation.flush()
            write_journal(job.out, journal)
            saved_at = time.monotonic()
        yield _progress(job, "tokens", journal, start)
    journal = replace(journal, sources=tuple(found))
    if journal.position.n_chunks < n_done:
        _compare(start, journal)
    if job.expected is not None:
        require_unchanged(job.expected, found, "while it was read")
    train.finish()
    validation.finish()
    end = replace(journal.position, n_sources=len(found), n_read=0, digest="")
    return replace(journal, position=end, train=train.state, validation=validation.state)


def _fill_validation(
    job: PrepareJob, tokenizer: Tokenizer, journal: Journal, validation: ShardWriter
) -> Journal:
    """If no document was drawn for validation, move the last one there, or the tail of a single one."""
    train, dtype, n = journal.train.finished, dtype_for(tokenizer.n_vocab), 0
    if job.settings.validation and not validation.n_tokens and _n_tokens(train) > 1:
        if journal.position.n_documents == 1:
            n = max(1, round(_n_tokens(train) * job.settings.validation))
        else:
            n = last_document_length(job.out, train, dtype, tokenizer.end_of_text)
            journal = replace(journal, position=replace(journal.position, n_validation_documents=1))
    _require_block(job, journal, _n_tokens(train) - n)
    if not n:
        return journal
    # Interrupted from here on, the next call starts over: the journal's shards are being cut.
    write_journal(job.out, Journal(journal.settings, journal.fingerprint))
    kept = move_tail(job.out, train, dtype, n, validation)
    validation.finish()
    return replace(journal, train=WriterState(kept), validation=validation.state)


def _require_block(job: PrepareJob, journal: Journal, n_train: int) -> None:
    if n_train >= job.block:
        return
    position = journal.position
    n_tokens = _n_tokens(journal.train.finished) + _n_tokens(journal.validation.finished)
    delete_prepared(job.out)  # nothing to continue from, and it must not block other text
    raise InputError(
        f"too little text: {n_train:,} training tokens, fewer than one block of {job.block:,}",
        f"{len(journal.sources)} source(s) held {position.n_documents:,} document(s), {position.n_bytes:,}"
        f" bytes, {n_tokens:,} tokens; {n_tokens - n_train:,} of them go to validation",
        "add text, or prepare for a shorter context: --block N",
    )


def require_unchanged(before: Sequence[SourceRecord], now: Sequence[SourceRecord], when: str) -> None:
    """Raise InputError naming the first source whose content has changed; its path may change."""
    for old, new in itertools.zip_longest(before, now):
        if old is None or new is None:
            what = f"{new.path}: is a new source" if new else f"{old.path}: is missing"
        elif (old.kind, old.bytes, old.sha256) != (new.kind, new.bytes, new.sha256):
            what = f"{new.path}: changed {when}"
        else:
            continue
        raise StaleError(what)


def _compare(start: Journal, now: Journal) -> None:
    """Check that the work so far was done from the current text."""
    when = "since the preparation was interrupted"
    require_unchanged(start.sources, now.sources, when)
    if now.position != start.position:
        raise StaleError(f"the source after the first {len(now.sources)} changed {when}")


def _manifest(
    job: PrepareJob, tokenizer: Tokenizer, journal: Journal, tokenizer_files: Sequence[str]
) -> TokenManifest:
    position = journal.position
    tail = position.n_documents == 1
    return TokenManifest(
        settings=job.settings,
        fingerprint=journal.fingerprint,
        n_vocab=tokenizer.n_vocab,
        dtype=dtype_for(tokenizer.n_vocab),
        tokenizer_files=tuple(tokenizer_files),
        n_documents=position.n_documents,
        n_validation_documents=position.n_validation_documents,
        n_bytes=position.n_bytes,
        n_forced_cuts=position.n_forced_cuts,
        split="tail of the document" if tail else "documents by sha256(seed:index), at least one",
        sources=journal.sources,
        train=journal.train.finished,
        validation=journal.validation.finished,
    )


def _progress(
    job: PrepareJob, phase: Phase, now: Journal, start: Journal, warning: str = ""
) -> PrepareProgress:
    return PrepareProgress(
        phase=phase,
        out=job.out,
        n_read=sum(source.bytes for source in now.sources) + now.position.n_read,
        n_total=job.n_total,
        n_documents=now.position.n_documents,
        n_bytes=now.position.n_bytes,
        n_continued=start.position.n_bytes,
        n_tokens=_n_written(now.train) + _n_written(now.validation),
        n_validation_tokens=_n_written(now.validation),
        warning=warning,
    )


def _n_written(state: WriterState) -> int:
    return _n_tokens(state.finished) + state.n_open


def _n_tokens(shards: Sequence[Shard]) -> int:
    return sum(shard.n_tokens for shard in shards)
