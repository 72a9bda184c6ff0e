"""One preparation: chunks of text -> ids (threads) -> shards in order -> manifest.json.

A journal records what is on disk. `prepare.py` decides whether there is anything to do, and where.
"""

import contextlib
import itertools
import math
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
    ReadPosition,
    Shard,
    SourceRecord,
    StaleError,
    TokenManifest,
    WriterState,
    delete_prepared,
    write_journal,
    write_manifest,
)
from gpt2cli.data.nanogpt_tokens import TokenImport
from gpt2cli.data.shards import ShardWriter, document_end, dtype_for, move_tail, tokens_of_bytes
from gpt2cli.data.text_reader import MAX_PIECE_CHARACTERS
from gpt2cli.data.tokenize import encode_chunks, encoder_for, text_chunks
from gpt2cli.errors import InputError, counted
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.tokenizer.files import save_tokenizer

_Begin = Literal["waiting", "reading", "vocabulary", "merging", "continuing"]
Phase = Literal[_Begin, "tokens", "finishing", "done", "nothing to do"]
TOLERANCE = 0.2  # of the validation share that is asked for
# A part of the name of a cached folder: a change of the rule is a change of this text.
SPLIT_RULE = "documents by sha256(seed:index), and a tail moved where they miss the share of tokens"
HELD_OUT = "validation sources"
NANOGPT_SPLIT = "nanoGPT's train.bin and val.bin"


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
    """The sources and settings of a preparation. `expected` are the sources as an earlier pass found them;
    `tokenizer` is given instead of that of the settings; `arguments` and `validation_arguments` are as typed;
    `nanogpt` is the folder whose tokens are imported.
    The training split keeps its first `n_vocabulary_bytes` bytes: its vocabulary was trained on them.
    """

    sources: Sequence[TextSource]
    out: Path
    settings: PrepareSettings
    block: int
    workers: int
    journal_seconds: float
    expected: Sequence[SourceRecord] | None = None
    tokenizer: Tokenizer | None = None
    arguments: tuple[str, ...] = ()
    validation_arguments: tuple[str, ...] = ()
    n_vocabulary_bytes: int = 0
    nanogpt: Path | None = None

    @cached_property
    def n_total(self) -> int | None:
        return total_bytes(self.sources)

    @property
    def has_validation(self) -> bool:
        return self.settings.validation > 0 or bool(self.validation_arguments)


def run_prepare(job: PrepareJob, tokenizer: Tokenizer, start: Journal) -> Iterator[PrepareProgress]:
    """Do the remaining work in journal `start`, yielding progress. The last item means a valid folder.

    The caller holds the folder's lock. Raises InputError if the text is too short for one block, or
    has changed.
    """
    # Left by an interrupted `prepare --force`.
    (job.out / MANIFEST).unlink(missing_ok=True)
    # Before the tokens: `--tokenizer OUT --out OUT --force` must find it again after an interruption.
    names = save_tokenizer(tokenizer, job.out)
    dtype, n_shard = dtype_for(tokenizer.n_vocab), job.settings.shard_tokens
    train = ShardWriter(job.out, "train", dtype, n_shard, start.train)
    validation = ShardWriter(job.out, "validation", dtype, n_shard, start.validation)
    with contextlib.closing(train), contextlib.closing(validation):
        notes = list[str]()
        journal = yield from _write_tokens(job, tokenizer, start, train, validation, notes)
        yield _progress(job, "finishing", journal, start)
        journal = _meet_share(job, tokenizer, journal, train, validation)
    for warning in (*notes, *_warnings(job, journal)):
        yield _progress(job, "finishing", journal, start, warning=warning)
    write_manifest(job.out, _manifest(job, tokenizer, journal, names, notes))
    (job.out / JOURNAL).unlink()
    files.flush_directory(job.out)
    yield _progress(job, "done", journal, start)


def run_import(job: PrepareJob, tokenizer: Tokenizer) -> Iterator[PrepareProgress]:
    """Write nanoGPT's tokens as a prepared folder. The caller holds the folder's lock.

    Raises InputError for tokens outside the vocabulary, or too few of them.
    """
    assert job.nanogpt
    start = now = Journal(job.settings, tokenizer.fingerprint)
    names, work = save_tokenizer(tokenizer, job.out), TokenImport(job.nanogpt, tokenizer)
    for train, validation in work.write(job.out, job.settings.shard_tokens):
        position = ReadPosition(n_read=work.n_read, n_documents=work.n_documents, n_bytes=work.n_bytes)
        now = replace(start, position=position, train=train, validation=validation)
        yield _progress(job, "tokens", now, start)
    now = replace(now, sources=tuple(work.sources), position=replace(now.position, n_read=0))
    n_validation = _n_written(now.validation)
    _require_tokens(job, now, _n_written(now.train) + n_validation, n_validation)
    write_manifest(job.out, _manifest(job, tokenizer, now, names, ()))
    (job.out / JOURNAL).unlink()
    files.flush_directory(job.out)
    yield _progress(job, "done", now, start)


def _write_tokens(
    job: PrepareJob,
    tokenizer: Tokenizer,
    start: Journal,
    train: ShardWriter,
    validation: ShardWriter,
    notes: list[str],
) -> Generator[PrepareProgress, None, Journal]:
    """Encode and append all remaining chunks; returns the journal of the finished work."""
    found: list[SourceRecord] = []
    journal, saved_at = start, time.monotonic()
    characters = tokenizer.characters if isinstance(tokenizer, Chars) and job.tokenizer else None
    chunks = text_chunks(job.sources, job.settings, found, notes, characters)
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
        try:
            require_unchanged(job.expected, found, "while it was read")
        except StaleError as error:
            raise InputError(error.what, fix="run the same command again") from None
    end = replace(journal.position, n_sources=len(found), n_read=0, digest="")
    return replace(journal, position=end, train=train.state, validation=validation.state)


def _meet_share(
    job: PrepareJob, tokenizer: Tokenizer, journal: Journal, train: ShardWriter, validation: ShardWriter
) -> Journal:
    """Finish both splits, after moving the tail of one to the other if validation has not its share of
    the tokens to within TOLERANCE. The cut is at the end of a document if one is near enough.
    """
    n_tokens, n_wanted = train.n_tokens + validation.n_tokens, validation.n_tokens
    fewest, most = _bounds(job.settings.validation, n_tokens)
    most = min(most, n_tokens - max(1, job.block))
    if job.settings.validation and n_tokens > 1 and not fewest <= n_wanted <= most:
        n_wanted = min(max(1, round(job.settings.validation * n_tokens)), n_tokens - 1)
        if fewest <= most:
            n_wanted = min(n_wanted, most)
    _require_tokens(job, journal, n_tokens, n_wanted)
    if n_wanted == validation.n_tokens:
        train.finish()
        validation.finish()
        return replace(journal, train=train.state, validation=validation.state)
    # Interrupted from here on, the next call starts over: the journal's shards are being cut.
    write_journal(job.out, Journal(journal.settings, journal.fingerprint))
    too_few = n_wanted > validation.n_tokens
    source, target = (train, validation) if too_few else (validation, train)
    # The tokens that `source` keeps: at least, at most, and at best.
    low, high, n_kept = fewest, most, n_wanted
    if too_few:
        low, high, n_kept = n_tokens - most, n_tokens - fewest, n_tokens - n_wanted
    source.finish()
    shards, dtype = source.state.finished, dtype_for(tokenizer.n_vocab)
    if too_few and job.n_vocabulary_bytes:
        low = max(low, tokens_of_bytes(job.out, shards, dtype, tokenizer, job.n_vocabulary_bytes))
        high, n_kept = max(low, high), max(low, n_kept)
    n_kept = document_end(job.out, shards, dtype, tokenizer.end_of_text, low, high, n_kept) or n_kept
    kept = WriterState(move_tail(job.out, shards, dtype, source.n_tokens - n_kept, target))
    target.finish()
    more = target.state
    return replace(journal, train=kept if too_few else more, validation=more if too_few else kept)


def _require_tokens(job: PrepareJob, journal: Journal, n_tokens: int, n_validation: int) -> None:
    """Raise InputError unless there is a block of training tokens, and text in the validation sources."""
    n_train, position = n_tokens - n_validation, journal.position
    block = max(1, job.block)
    enough = n_train >= block
    if enough and (n_validation or not job.validation_arguments):
        return
    delete_prepared(job.out)  # nothing to continue from, and it must not block other text
    counts = (
        f"{counted(len(journal.sources), 'source')} held {counted(position.n_documents, 'document')},"
        f" {position.n_bytes:,} bytes, {n_tokens:,} tokens; {n_validation:,} of them go to validation"
    )
    if enough:
        raise InputError(f"no text in {', '.join(job.validation_arguments)}", counts, "name a file with text")
    raise InputError(
        f"too little text: {n_train:,} training tokens, fewer than one block of {block:,}",
        counts,
        "add text" + (f", or prepare for a shorter context: --block {n_train}" if n_train > 2 else ""),
    )


def _warnings(job: PrepareJob, journal: Journal) -> Iterator[str]:
    """What a user should know of a finished preparation."""
    n_train, n_validation = _n_written(journal.train), _n_written(journal.validation)
    if missed := missed_share(job.settings.validation, n_train, n_validation):
        yield missed
    if job.has_validation and n_validation < job.block:
        yield f"only {n_validation:,} validation tokens, fewer than one block of {job.block:,}"
    position = journal.position
    if position.n_forced_cuts and job.settings.tokenizer != "chars":
        yield (
            f"{position.n_forced_cuts:,} cuts in text without a space for {MAX_PIECE_CHARACTERS:,}"
            " characters: tokens there may differ"
        )
    if position.n_line_ends:
        yield f"{counted(position.n_line_ends, 'line end')} of Windows (CRLF) read as LF"


def missed_share(share: float, n_train: int, n_validation: int) -> str:
    """The warning that validation has not `share` of the tokens to within TOLERANCE, or ""."""
    n_tokens = n_train + n_validation
    fewest, most = _bounds(share, n_tokens)
    if not share or fewest <= n_validation <= most:
        return ""
    return (
        f"validation has {n_validation:,} of {n_tokens:,} tokens: {n_validation / n_tokens:.2%},"
        f" and {share:.2%} was asked for"
    )


def _bounds(share: float, n_tokens: int) -> tuple[int, int]:
    """The least and the most validation tokens that are `share` of `n_tokens` to within TOLERANCE."""
    wanted = share * n_tokens
    return max(1, math.ceil(wanted * (1 - TOLERANCE))), math.floor(wanted * (1 + TOLERANCE))


def require_unchanged(before: Sequence[SourceRecord], now: Sequence[SourceRecord], when: str) -> None:
    """Raise InputError naming the first source whose content has changed; its path may change."""
    for old, new in itertools.zip_longest(before, now):
        if old is None or new is None:
            what = f"{new.path}: is a new source" if new else f"{old.path}: is missing"
        elif old.held_out != new.held_out:
            what = f"{new.path}: was for {'validation' if old.held_out else 'training'} before"
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
    job: PrepareJob,
    tokenizer: Tokenizer,
    journal: Journal,
    tokenizer_files: Sequence[str],
    notes: Sequence[str],
) -> TokenManifest:
    position = journal.position
    return TokenManifest(
        settings=job.settings,
        fingerprint=journal.fingerprint,
        n_vocab=tokenizer.n_vocab,
        dtype=dtype_for(tokenizer.n_vocab),
        tokenizer_files=tuple(tokenizer_files),
        n_documents=position.n_documents,
        n_bytes=position.n_bytes,
        n_forced_cuts=position.n_forced_cuts,
        split=NANOGPT_SPLIT if job.nanogpt else HELD_OUT if job.validation_arguments else SPLIT_RULE,
        sources=journal.sources,
        train=journal.train.finished,
        validation=journal.validation.finished,
        arguments=job.arguments,
        validation_arguments=job.validation_arguments,
        notes=tuple(notes),
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
