"""Owns `prepare`: which folder holds the tokens of which text, and whether anything is left to do.

    sources -> tasks (read, cut, split) -> encode (threads) -> shards (in order) -> manifest.json

The folder is valid from the moment manifest.json is in it, which is written last. Until then
journal.json says what is safely on the disk, and the same call goes on from there; the result
is the same to the byte as without the interruption. The work itself is in pipeline.py.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gpt2cli import files, paths
from gpt2cli.data.input_files import Source, expand, total_bytes
from gpt2cli.data.manifest import (
    JOURNAL,
    MANIFEST,
    VERSION,
    Journal,
    Manifest,
    Settings,
    SourceRecord,
    StaleError,
    discard,
    is_ours,
    is_prepared,
    read_journal,
    read_manifest,
    write_journal,
)
from gpt2cli.data.prepare_pipeline import Job, Progress, refuse_changed, run
from gpt2cli.data.shards import dtype_for
from gpt2cli.data.text_chunks import record_of, returning_memory
from gpt2cli.data.text_reader import Reading
from gpt2cli.data.token_dataset import TokenData, Tokens, open_tokens
from gpt2cli.errors import Gpt2Error, ResourceError, UsageError
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.tokenizer.files import load_tokenizer

__all__ = ["Progress", "Settings", "TokenData", "Tokens", "open_tokens", "prepare", "prepare_cached"]

JOURNAL_SECONDS = 5.0  # at most this much work is done twice after an interruption
CHARS = "chars"
SPOOL = files.TEMPORARY + "stdin"  # swept like every other leftover


def prepare(
    sources: Sequence[str | Path],
    out: Path,
    settings: Settings,
    *,
    block: int = 1,
    workers: int = 0,
    force: bool = False,
    stdin_is_jsonl: bool = False,
    journal_seconds: float = JOURNAL_SECONDS,
) -> Generator[Progress, None, None]:
    """Turn text into the prepared folder `out`; the last item's phase is "done" or "nothing to do".

    `block`: tokens that training needs at least. `workers`: threads, 0 for one a core. `force`
    replaces a prepared folder. Closing the generator, or a kill, leaves a folder from which the
    same call continues.

    Raises UsageError where `out` holds something else or was made with other settings, InputError
    for text that cannot be read, is too short, or has changed since; ResourceError where another
    process writes in `out`.
    """
    _check_settings(settings)
    _refuse_foreign(out)
    found = expand(sources, out=out, stdin_is_jsonl=stdin_is_jsonl)
    files.require_writable(out)
    with files.lock(out):
        files.sweep(out)
        work = _Work(out, settings, block, workers or os.cpu_count() or 1, journal_seconds)
        yield from _prepare(work, found, force, None)


def prepare_cached(
    sources: Sequence[str | Path],
    settings: Settings,
    *,
    block: int = 1,
    workers: int = 0,
) -> Generator[Progress, None, None]:
    """The same, into a folder under GPT2_HOME that is named by content and settings, once.

    A single source that is a prepared folder already is the answer itself. Two processes may
    ask for the same text at once: the second waits for the first. The folder is the last item's
    `out`.
    """
    if len(sources) == 1 and is_prepared(Path(sources[0])):
        yield Progress("nothing to do", Path(sources[0]))
        return
    _check_settings(settings)
    found = expand(sources, out=paths.prepared())
    if any(source.path is None for source in found):
        raise UsageError("standard input cannot be prepared on the fly", fix="gpt2 prepare - --out FOLDER")
    expected = [record_of(source) for source in found]
    out = paths.prepared() / _key(expected, settings)
    files.require_writable(out)
    with contextlib.ExitStack() as stack:
        while not _locked(stack, out):
            yield Progress("waiting", out)
            time.sleep(0.2)
        files.sweep(out)
        if (out / MANIFEST).is_file() and not (out / JOURNAL).is_file():
            yield Progress("nothing to do", out)
            return
        work = _Work(out, settings, block, workers or os.cpu_count() or 1, JOURNAL_SECONDS)
        yield from _prepare(work, found, False, expected)


@dataclass(frozen=True)
class _Work:
    out: Path
    settings: Settings
    block: int
    workers: int
    journal_seconds: float


def _prepare(
    work: _Work, sources: Sequence[Source], force: bool, expected: Sequence[SourceRecord] | None
) -> Iterator[Progress]:
    """`prepare` for the holder of the folder's lock."""
    out = work.out
    with _spooled(sources, work) as sources:
        tokenizer = None if work.settings.tokenizer == CHARS else _tokenizer(work.settings.tokenizer)
        settings = replace(work.settings, tokenizer=tokenizer.name if tokenizer else CHARS)
        journal = _journal(out, settings, tokenizer, force)
        if force and not all(source.path for source in sources):
            journal = None  # if it proved stale, standard input could not be read again
        if not journal and not force and (out / MANIFEST).is_file():
            yield _nothing_to_do(out, settings, tokenizer, sources)
            return
        n_total = total_bytes(sources)
        if not tokenizer:
            tokenizer, counted = yield from _characters(sources, settings, out, n_total)
            expected = expected or counted
        job = Job(
            sources=sources,
            n_total=n_total,
            out=out,
            settings=settings,
            tokenizer=tokenizer,
            dtype=dtype_for(tokenizer.n_vocab),
            block=work.block,
            workers=work.workers,
            journal_seconds=work.journal_seconds,
            expected=expected,
        )
        if journal and journal.fingerprint == tokenizer.fingerprint:
            try:
                yield from run(job, journal)
                return
            except StaleError:
                if not force:
                    raise
        elif journal and not force:
            raise StaleError("the text has other characters than before the interruption")
        yield from run(job, _begin(job))


def _begin(job: Job) -> Journal:
    """An empty folder that is known to be ours. The journal first, so that it is never in doubt."""
    journal = Journal(job.settings, job.tokenizer.fingerprint)
    write_journal(job.out, journal)
    discard(job.out, keep=JOURNAL)
    return journal


def _journal(out: Path, settings: Settings, tokenizer: Tokenizer | None, force: bool) -> Journal | None:
    """What to continue, if anything. Raises UsageError where it was begun with other settings."""
    try:
        journal = read_journal(out)
        if journal:
            _refuse_other(out, settings, tokenizer, journal)
        return journal
    except Gpt2Error:
        if force:
            return None
        raise


def _nothing_to_do(
    out: Path, settings: Settings, tokenizer: Tokenizer | None, sources: Sequence[Source]
) -> Progress:
    """The finished folder, once it is known to be just what is asked for, and undamaged."""
    manifest = read_manifest(out)
    _refuse_other(out, settings, tokenizer, manifest)
    refuse_changed(manifest.sources, [record_of(source) for source in sources], "since it was prepared")
    open_tokens(out).close()
    return Progress(
        "nothing to do",
        out,
        n_documents=manifest.n_documents,
        n_bytes=manifest.n_bytes,
        n_tokens=manifest.n_tokens,
        n_validation_tokens=sum(shard.n_tokens for shard in manifest.validation),
    )


def _refuse_other(
    out: Path, settings: Settings, tokenizer: Tokenizer | None, there: Journal | Manifest
) -> None:
    before, now = asdict(there.settings), asdict(settings)
    differences = [f"{key} {before[key]} there, {now[key]} now" for key in now if now[key] != before[key]]
    if not differences and tokenizer and tokenizer.fingerprint != there.fingerprint:
        differences = ["another tokenizer"]
    if differences:
        raise UsageError(
            f"{out}: was prepared with other settings",
            "; ".join(differences),
            "give another --out, or replace it with --force",
        )


def _characters(
    sources: Sequence[Source], settings: Settings, out: Path, n_total: int | None
) -> Generator[Progress, None, tuple[Tokenizer, list[SourceRecord]]]:
    """The character vocabulary of the whole text: a pass of its own over all sources."""
    seen: set[str] = set()
    found: list[SourceRecord] = []
    n_read = n_bytes = 0
    for source in sources:
        with contextlib.closing(Reading(source, settings.text_fields)) as reading:
            for piece in returning_memory(reading.pieces()):
                seen.update(piece.text)
                n_bytes += piece.n_bytes
                yield Progress("vocabulary", out, n_read + reading.n_read, n_total, n_bytes=n_bytes)
            n_read += reading.n_read
            found.append(SourceRecord(source.name, source.kind, reading.n_read, reading.digest))
    return Chars.from_counts(seen), found


def _tokenizer(name: str) -> Tokenizer:
    """ "gpt2", or a folder with a tokenizer's files. Raises UsageError where it is neither."""
    if name == "gpt2":
        return gpt2()
    if not Path(name).is_dir():
        raise UsageError(
            f"{name}: no such tokenizer", "it is gpt2, chars, or a folder with vocab.json and merges.txt"
        )
    return load_tokenizer(Path(name))


@contextlib.contextmanager
def _spooled(sources: Sequence[Source], work: _Work) -> Iterator[Sequence[Source]]:
    """Characters take two passes, and standard input gives one: it is kept in a file meanwhile."""
    if work.settings.tokenizer != CHARS or all(source.path for source in sources):
        yield sources
        return
    spool = work.out / SPOOL
    try:
        with open(spool, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, files.CHUNK)
        yield [source if source.path else replace(source, path=spool) for source in sources]
    finally:
        spool.unlink(missing_ok=True)


def _refuse_foreign(out: Path) -> None:
    """Never write among files that are not ours: --force deletes."""
    if not out.is_dir():
        return
    strangers = [
        path.name
        for path in out.iterdir()
        if path.name != ".lock" and not path.name.startswith(files.TEMPORARY)
    ]
    if strangers and not is_ours(out):
        raise UsageError(
            f"{out}: is not empty, and was not made by `gpt2 prepare`",
            f"it holds {', '.join(sorted(strangers)[:3])}",
            "give a folder that is new or empty: --out FOLDER",
        )


def _check_settings(settings: Settings) -> None:
    if not 0 <= settings.validation < 1:
        raise UsageError(f"validation is {settings.validation}", "it is a fraction: at least 0, below 1")
    if settings.shard_tokens < 1:
        raise UsageError(f"shard-tokens is {settings.shard_tokens}", "a shard holds at least one token")
    if not settings.text_fields:
        raise UsageError("no text field given", "a .jsonl record needs one")


def _locked(stack: contextlib.ExitStack, folder: Path) -> bool:
    try:
        stack.enter_context(files.lock(folder))
    except ResourceError:
        return False
    return True


def _key(sources: Sequence[SourceRecord], settings: Settings) -> str:
    """The cache's name for the tokens of this text: wherever the text lies, and whoever asks."""
    content = [[source.kind, source.bytes, source.sha256] for source in sources]
    tokenizer = settings.tokenizer
    if tokenizer != CHARS:
        tokenizer = _tokenizer(tokenizer).fingerprint
    key = json.dumps([VERSION, content, tokenizer, asdict(replace(settings, tokenizer=""))])
    return hashlib.sha256(key.encode()).hexdigest()[:24]
