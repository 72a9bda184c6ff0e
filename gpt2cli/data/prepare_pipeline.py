"""Owns the work of one preparation: tasks -> ids (threads) -> shards in order -> manifest.json.

Keeps a journal of what is safely on the disk and continues from one. Whether there is anything
to do, and in which folder, `tokens.py` decides.
"""

import collections
import contextlib
import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gpt2cli import files
from gpt2cli.data.input_files import Source
from gpt2cli.data.manifest import (
    JOURNAL,
    MANIFEST,
    Journal,
    Manifest,
    Mark,
    Settings,
    Shard,
    SourceRecord,
    StaleError,
    WriterState,
    discard,
    write_journal,
    write_manifest,
)
from gpt2cli.data.shards import Ids, ShardWriter, copy_tail, cut_to, last_document_length, without_tail
from gpt2cli.data.text_chunks import Task, tasks
from gpt2cli.data.text_reader import CAP
from gpt2cli.data.tokenize import Encoder, encoder_for
from gpt2cli.errors import InputError
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.files import save_tokenizer

Phase = Literal["waiting", "vocabulary", "continuing", "tokens", "finishing", "done", "nothing to do"]


@dataclass(frozen=True)
class Progress:
    """How far a preparation is. The last one has the phase "done" or "nothing to do".

    `n_read` of `n_total` source bytes (None: standard input) gives the fraction, `n_bytes` of
    text and `n_tokens` the speed; `n_continued` bytes of text were done by an earlier call.
    A `warning` is said once, in an item of its own.
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
class Job:
    """What to prepare. `expected`: the sources as an earlier pass over them found them, if there was one."""

    sources: Sequence[Source]
    n_total: int | None
    out: Path
    settings: Settings
    tokenizer: Tokenizer
    dtype: str
    block: int
    workers: int
    journal_seconds: float
    expected: Sequence[SourceRecord] | None


def run(job: Job, start: Journal) -> Iterator[Progress]:
    """Do what `start` leaves to do, under the folder's lock. After the last item the folder is valid.

    Raises InputError where the text is too short for one block, or is not what it was.
    """
    journal = start
    # What an interrupted `prepare --force` left of the old folder, or an interrupted last move.
    (job.out / MANIFEST).unlink(missing_ok=True)
    if not journal.tail_moved:
        train, validation = (
            ShardWriter(job.out, split, job.dtype, job.settings.shard_tokens, state)
            for split, state in (("train", start.train), ("validation", start.validation))
        )
        with contextlib.closing(train), contextlib.closing(validation):
            journal = yield from _write_tokens(job, start, train, validation)
            yield _progress(job, "finishing", journal, start)
            journal = _move_tail(job, journal, validation)
    n_validation = _n_tokens(journal.validation.finished)
    if job.settings.validation and n_validation < job.block:
        why = f"only {n_validation:,} tokens for validation, fewer than one block of {job.block:,}"
        yield _progress(job, "finishing", journal, start, warning=why)
    if journal.mark.n_forced_cuts and job.settings.tokenizer != "chars":
        cuts = f"{journal.mark.n_forced_cuts:,} cuts inside text without a space for {CAP:,} characters"
        yield _progress(job, "finishing", journal, start, warning=f"{cuts}: tokens there may differ")
    for split, state in (("train", journal.train), ("validation", journal.validation)):
        cut_to(job.out, split, state.finished, job.dtype)
    names = save_tokenizer(job.tokenizer, job.out)
    write_manifest(job.out, _manifest(job, journal, names))
    (job.out / JOURNAL).unlink()
    files.flush_directory(job.out)
    yield _progress(job, "done", journal, start)


def _write_tokens(
    job: Job, start: Journal, train: ShardWriter, validation: ShardWriter
) -> Generator[Progress, None, Journal]:
    """Encode and append every task that is not done yet; the journal of the complete work."""
    found: list[SourceRecord] = []
    journal, saved_at = start, time.monotonic()
    for task, ids in _encoded(job, start.mark.n_tasks, found):
        sources = tuple(found[: task.mark.n_sources])
        if ids is None:
            if task.mark.n_tasks == start.mark.n_tasks:
                _compare(start, task.mark, sources)
            journal = replace(start, mark=task.mark, sources=sources)
            yield _progress(job, "continuing", journal, start)
            continue
        train.write(ids[0])
        validation.write(ids[1])
        journal = replace(
            start, mark=task.mark, sources=sources, train=train.state, validation=validation.state
        )
        if time.monotonic() - saved_at >= job.journal_seconds:
            train.flush()
            validation.flush()
            write_journal(job.out, journal)
            saved_at = time.monotonic()
        yield _progress(job, "tokens", journal, start)
    if journal.mark.n_tasks < start.mark.n_tasks:
        _compare(start, journal.mark, tuple(found))
    if job.expected is not None:
        refuse_changed(job.expected, found, "while it was read")
    train.finish()
    validation.finish()
    end = replace(journal.mark, n_sources=len(found), n_read=0, digest="")
    return replace(journal, mark=end, sources=tuple(found), train=train.state, validation=validation.state)


def _encoded(
    job: Job, n_done: int, found: list[SourceRecord]
) -> Iterator[tuple[Task, tuple[Ids, Ids] | None]]:
    """Tasks in order with the ids of their two splits; None for the first `n_done`."""

    encode = encoder_for(job.tokenizer, job.dtype)
    queue: collections.deque[tuple[Task, Future[tuple[Ids, Ids]]]] = collections.deque()
    with ThreadPoolExecutor(job.workers, "encode") as pool:
        try:
            for task in tasks(job.sources, job.settings, found):
                if task.mark.n_tasks <= n_done:
                    yield task, None
                    continue
                queue.append((task, pool.submit(_both, encode, task)))
                if len(queue) > 2 * job.workers:
                    first, future = queue.popleft()
                    yield first, future.result()
            while queue:
                first, future = queue.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _both(encode: Encoder, task: Task) -> tuple[Ids, Ids]:
    return encode(task.train), encode(task.validation)


def _move_tail(job: Job, journal: Journal, validation: ShardWriter) -> Journal:
    """Copy what validation lacks from the end of training, and note in the journal what stays.

    Validation lacks something where no document was drawn for it: the last document, or of a
    single one its tail. Nothing is taken from the training files before the journal knows it.
    """
    train = journal.train.finished
    n = 0
    if job.settings.validation and not validation.n_tokens and _n_tokens(train) > 1:
        if journal.mark.n_documents == 1:
            n = max(1, round(_n_tokens(train) * job.settings.validation))
        else:
            n = last_document_length(job.out, train, job.dtype, job.tokenizer.end_of_text)
            one_more = replace(journal.mark, n_validation_documents=1)
            journal = replace(journal, mark=one_more)
    _require_block(job, journal, _n_tokens(train) - n)
    copy_tail(job.out, train, job.dtype, n, validation)
    validation.finish()
    kept = without_tail(job.out, train, job.dtype, n)
    journal = replace(journal, train=WriterState(kept), validation=validation.state, tail_moved=True)
    write_journal(job.out, journal)
    return journal


def _require_block(job: Job, journal: Journal, n_train: int) -> None:
    if n_train >= job.block:
        return
    mark = journal.mark
    n_tokens = _n_tokens(journal.train.finished) + _n_tokens(journal.validation.finished)
    discard(job.out)  # nothing here is worth continuing, and it must not stand in the way of other text
    raise InputError(
        f"too little text: {n_train:,} tokens to train on, fewer than one block of {job.block:,}",
        f"{len(journal.sources)} source(s) held {mark.n_documents:,} document(s), {mark.n_bytes:,} bytes,"
        f" {n_tokens:,} tokens; {n_tokens - n_train:,} of them go to validation",
        "add text, or choose a shorter context (--block)",
    )


def refuse_changed(before: Sequence[SourceRecord], now: Sequence[SourceRecord], when: str) -> None:
    """Raise InputError naming the first source that is not what it was. Its path may have changed."""
    for old, new in itertools.zip_longest(before, now):
        if old is None or new is None:
            what = f"{new.path}: is a new source" if new else f"{old.path}: is missing"
        elif (old.kind, old.bytes, old.sha256) != (new.kind, new.bytes, new.sha256):
            what = f"{new.path}: changed {when}"
        else:
            continue
        raise StaleError(what)


def _compare(start: Journal, mark: Mark, sources: tuple[SourceRecord, ...]) -> None:
    """Make sure that what was done already was done from the text that is there now."""
    when = "since the preparation was interrupted"
    refuse_changed(start.sources, sources, when)
    if mark != start.mark:
        raise StaleError(f"the source after the first {len(sources)} changed {when}")


def _manifest(job: Job, journal: Journal, tokenizer_files: Sequence[str]) -> Manifest:
    mark = journal.mark
    tail = mark.n_documents == 1
    return Manifest(
        settings=job.settings,
        fingerprint=journal.fingerprint,
        n_vocab=job.tokenizer.n_vocab,
        dtype=job.dtype,
        tokenizer_files=tuple(tokenizer_files),
        n_documents=mark.n_documents,
        n_validation_documents=mark.n_validation_documents,
        n_bytes=mark.n_bytes,
        n_forced_cuts=mark.n_forced_cuts,
        split="tail of the document" if tail else "documents by sha256(seed:index), at least one",
        sources=journal.sources,
        train=journal.train.finished,
        validation=journal.validation.finished,
    )


def _progress(job: Job, phase: Phase, now: Journal, start: Journal, warning: str = "") -> Progress:
    return Progress(
        phase=phase,
        out=job.out,
        n_read=sum(source.bytes for source in now.sources) + now.mark.n_read,
        n_total=job.n_total,
        n_documents=now.mark.n_documents,
        n_bytes=now.mark.n_bytes,
        n_continued=start.mark.n_bytes,
        n_tokens=_n_written(now.train) + _n_written(now.validation),
        n_validation_tokens=_n_written(now.validation),
        warning=warning,
    )


def _n_written(state: WriterState) -> int:
    return _n_tokens(state.finished) + state.n_open


def _n_tokens(shards: Sequence[Shard]) -> int:
    return sum(shard.n_tokens for shard in shards)
