"""Preparation of text: the folder that holds a text's tokens, and the work left to do there.

    sources -> chunks (read, cut, split) -> encode (threads) -> shards (in order) -> manifest.json

The folder is valid once it has manifest.json, which is written last. Until then journal.json records
what is on disk, and the same call continues from there, to the same bytes as without the
interruption. The work itself is in `prepare_pipeline.py`.
"""

import contextlib
import hashlib
import json
import shlex
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from gpt2cli import files, locks, paths
from gpt2cli.cores import usable_cores
from gpt2cli.data.byte_source import ReadOptions
from gpt2cli.data.input_files import TextSource, expand_sources
from gpt2cli.data.manifest import (
    JOURNAL,
    MANIFEST,
    VERSION,
    Journal,
    PrepareSettings,
    SourceRecord,
    StaleError,
    TokenManifest,
    delete_prepared,
    is_prepared,
    read_journal,
    read_manifest,
    require_replaceable,
    was_made_by_prepare,
    write_journal,
)
from gpt2cli.data.nanogpt_tokens import (
    META,
    nanogpt_folder,
    nanogpt_sources,
    require_nanogpt_tokenizer,
)
from gpt2cli.data.prepare_pipeline import (
    HELD_OUT,
    NANOGPT_SPLIT,
    SPLIT_RULE,
    PrepareJob,
    PrepareProgress,
    missed_share,
    require_unchanged,
    run_import,
    run_prepare,
)
from gpt2cli.data.prepare_settings import prepare_command, require_same_settings
from gpt2cli.data.text_reader import SplitRule
from gpt2cli.data.token_dataset import open_dataset
from gpt2cli.data.tokenize import source_record
from gpt2cli.data.vocabulary import learn_vocabulary, spooled
from gpt2cli.encodings import WrongEncodingError
from gpt2cli.errors import Gpt2Error, ResourceError, UsageError
from gpt2cli.tokenizer.base import Tokenizer, is_made_of_text
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.files import load_tokenizer

JOURNAL_SECONDS = 5.0  # an interruption costs at most this much work
SPOOL = files.TEMPORARY + "stdin"  # a temporary name, which `files.sweep` deletes


def prepare(
    sources: Sequence[str | Path],
    out: Path,
    settings: PrepareSettings,
    *,
    validation_sources: Sequence[str | Path] = (),
    block: int = 1,
    workers: int = 0,
    force: bool = False,
    stdin_is_records: bool = False,
    journal_seconds: float = JOURNAL_SECONDS,
) -> Generator[PrepareProgress, None, None]:
    """Turn text into the prepared folder `out`; the same call continues what was interrupted.

    `validation_sources` are held out for validation, instead of a share of `sources`. `block` is the
    least number of tokens that training needs; `workers` are threads, 0 for one per core; `force`
    replaces a prepared folder.

    Raises UsageError if `out` holds something else or was made with other settings, InputError for
    text that cannot be read, is too short or has changed, ResourceError if another process is writing
    to `out`.
    """
    _check_settings(settings, validation_sources)
    _refuse_foreign(out)
    found, settings, nanogpt = _choose_sources(sources, settings, validation_sources, out, stdin_is_records)
    files.require_writable(out)
    with locks.lock(out), files.naming(out):
        files.sweep(out)
        job = PrepareJob(
            found,
            out,
            settings,
            block,
            workers or usable_cores(),
            journal_seconds,
            arguments=tuple(map(str, sources)),
            validation_arguments=tuple(map(str, validation_sources)),
            nanogpt=nanogpt,
        )
        yield from _prepare(job, force)


def prepare_cached(
    sources: Sequence[str | Path],
    settings: PrepareSettings,
    *,
    validation_sources: Sequence[str | Path] = (),
    tokenizer: Tokenizer | None = None,
    again: bool = False,
) -> Generator[PrepareProgress, None, None]:
    """`prepare` once into a folder under GPT2_HOME, named by content and settings: the last item's `out`.

    `tokenizer`, of a base model, encodes the text instead of the one that `settings.tokenizer` names.
    A single source that is a prepared folder is returned as it is. If two processes ask for the same
    text, the second waits for the first. With `again` a folder that is there, and damaged, is replaced.

    Raises as `prepare`, and InputError for a character that `tokenizer` does not have.
    """
    if len(sources) == 1 and is_prepared(Path(sources[0])):
        yield from _prepared_before(Path(sources[0]), validation_sources, tokenizer)
        return
    _check_settings(settings, validation_sources)
    found, settings, nanogpt = _choose_sources(sources, settings, validation_sources, paths.prepared())
    if any(source.path is None for source in found):
        raise UsageError("standard input cannot be a data.source", fix="gpt2 prepare - --out FOLDER")
    expected = [source_record(source) for source in found]
    if nanogpt and (nanogpt / META).is_file():
        expected.append(source_record(TextSource(META, nanogpt / META, "nanogpt")))
    out = paths.prepared() / _key(expected, settings, tokenizer)
    paths.require_writable_home(out)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locks.lock(out))
                break
            except ResourceError:
                yield PrepareProgress("waiting", out)
                time.sleep(0.2)
        stack.enter_context(files.naming(out))
        files.sweep(out)
        require_replaceable(out)
        if not again and (out / MANIFEST).is_file() and not (out / JOURNAL).is_file():
            with contextlib.suppress(Gpt2Error):  # a damaged folder shows when it is opened
                for note in read_manifest(out).notes:
                    yield PrepareProgress("finishing", out, warning=note)
            yield PrepareProgress("nothing to do", out)
            return
        job = PrepareJob(
            found,
            out,
            settings,
            1,
            usable_cores(),
            JOURNAL_SECONDS,
            expected,
            tokenizer,
            arguments=tuple(map(str, sources)),
            validation_arguments=tuple(map(str, validation_sources)),
            nanogpt=nanogpt,
        )
        yield from _prepare(job, True)  # the folder is ours: what does not fit in it is made again


def _choose_sources(
    sources: Sequence[str | Path],
    settings: PrepareSettings,
    validation_sources: Sequence[str | Path],
    out: Path,
    stdin_is_records: bool = False,
) -> tuple[list[TextSource], PrepareSettings, Path | None]:
    """The files to read, the settings to read them with, and the folder of nanoGPT's tokens if they are
    in one.
    """
    if nanogpt := nanogpt_folder(sources, settings, validation_sources):
        return nanogpt_sources(nanogpt), replace(settings, validation=0.0), nanogpt
    held_out = validation_sources
    found = expand_sources(sources, out=out, held_out=held_out, stdin_is_records=stdin_is_records)
    return found, settings, None


def _prepared_before(
    folder: Path, validation_sources: Sequence[str | Path], tokenizer: Tokenizer | None
) -> Iterator[PrepareProgress]:
    """A prepared folder as a source. Raises UsageError if it cannot have what is asked for."""
    manifest = read_manifest(folder)
    for source in validation_sources:
        require_same_settings(folder, manifest, validation_source=str(source))
    if tokenizer and tokenizer.fingerprint != manifest.fingerprint:
        text = manifest.arguments[0] if len(manifest.arguments) == 1 else "TEXT.txt"
        raise UsageError(
            f"{folder}: was prepared with another tokenizer than the base model's",
            "the model would read its tokens as others",
            f"give the text itself: {shlex.quote(f'data.source={text}')}",
        )
    if missed := _missed_by_old_rule(manifest):
        warning = f"{folder}: {missed}; {prepare_command(manifest, folder)} splits it by tokens"
        yield PrepareProgress("finishing", folder, warning=warning)
    yield PrepareProgress("nothing to do", folder)


def _prepare(job: PrepareJob, force: bool) -> Iterator[PrepareProgress]:
    """`prepare`, under the folder's lock."""
    out = job.out
    with _spooled(job) as job:
        tokenizer = job.tokenizer
        if job.nanogpt:
            tokenizer = require_nanogpt_tokenizer(job.nanogpt, job.settings.tokenizer, job.tokenizer)
        elif not tokenizer and not is_made_of_text(job.settings.tokenizer):
            tokenizer = named_tokenizer(job.settings.tokenizer)
        if tokenizer:  # what was typed may be a path
            job = replace(job, settings=replace(job.settings, tokenizer=tokenizer.name))
        journal = _journal(out, job.settings, tokenizer, force)
        if force and not all(source.path for source in job.sources):
            journal = None  # standard input could not be read again after a stale journal
        if not force and (out / MANIFEST).is_file() and not (out / JOURNAL).is_file():
            yield from _nothing_to_do(job, tokenizer)
            return
        if not tokenizer:
            trained = yield from learn_vocabulary(job)
            tokenizer, job = trained.tokenizer, replace(job, n_vocabulary_bytes=trained.n_bytes)
        if journal and journal.fingerprint == tokenizer.fingerprint:
            try:
                yield from run_prepare(job, tokenizer, journal)
                return
            except StaleError:
                if not force:
                    raise
            except WrongEncodingError:
                delete_prepared(out)  # read so, nothing can be continued
                raise
        elif journal and not force:
            raise StaleError("the text has other characters than before the interruption")
        # The journal comes first: it shows that the folder is ours.
        begin = Journal(job.settings, tokenizer.fingerprint)
        write_journal(out, begin)
        delete_prepared(out, keep=JOURNAL)
        if job.nanogpt:
            yield from run_import(job, tokenizer)
            return
        try:
            yield from run_prepare(job, tokenizer, begin)
        except WrongEncodingError:
            delete_prepared(out)
            raise


def _journal(
    out: Path, settings: PrepareSettings, tokenizer: Tokenizer | None, force: bool
) -> Journal | None:
    try:
        journal = read_journal(out)
        if journal:
            _refuse_other(out, settings, tokenizer, journal)
        return journal
    except Gpt2Error:
        if force:
            return None
        raise


def _nothing_to_do(job: PrepareJob, tokenizer: Tokenizer | None) -> Iterator[PrepareProgress]:
    """The finished folder, after checking its settings, its sources and its shards."""
    manifest = read_manifest(job.out)
    _refuse_other(job.out, job.settings, tokenizer, manifest)
    require_unchanged(manifest.sources, list(map(source_record, job.sources)), "since it was prepared")
    open_dataset(job.out).close()
    last = PrepareProgress(
        "nothing to do",
        job.out,
        n_documents=manifest.n_documents,
        n_bytes=manifest.n_bytes,
        n_tokens=manifest.n_tokens,
        n_validation_tokens=manifest.n_validation_tokens,
    )
    if missed := _missed_by_old_rule(manifest):
        yield replace(last, phase="finishing", warning=f"{missed}; --force splits it by tokens")
    yield last


def _missed_by_old_rule(manifest: TokenManifest) -> str:
    """The warning for a folder of version 1 whose validation split is far from its share of the tokens."""
    if manifest.split in (SPLIT_RULE, HELD_OUT, NANOGPT_SPLIT):
        return ""
    n_validation = manifest.n_validation_tokens
    return missed_share(manifest.settings.validation, manifest.n_tokens - n_validation, n_validation)


def _refuse_other(
    out: Path, settings: PrepareSettings, tokenizer: Tokenizer | None, there: Journal | TokenManifest
) -> None:
    before, now = asdict(there.settings), asdict(settings)
    if isinstance(there, Journal):
        before["max_bad"] = now["max_bad"]  # it decides when to give up, not what is written
    differences = [
        f"{key} was {before[key] or repr(before[key])} and is now {now[key] or repr(now[key])}"
        for key in now
        if now[key] != before[key]
    ]
    if not differences and tokenizer and tokenizer.fingerprint != there.fingerprint:
        differences = ["another tokenizer"]
    if differences:
        raise UsageError(
            f"{out}: was prepared with other settings",
            "; ".join(differences),
            "give another --out, or replace it with --force",
        )


def named_tokenizer(name: str) -> Tokenizer:
    """GPT-2's, or that of a folder. Raises UsageError for another name."""
    if name == "gpt2":
        return gpt2()
    if not paths.expand(name).is_dir():
        raise UsageError(
            f"{name}: no such tokenizer",
            "it is gpt2, chars, bpe-8192 (trained on the text, any size), or a tokenizer folder",
            f"gpt2 tokenizer train TEXT.txt --size 8192 --out {shlex.quote(name)}"
            if "/" in name
            else f"--tokenizer {'chars' if name.startswith('char') else 'gpt2'}",
        )
    return load_tokenizer(paths.expand(name))


@contextlib.contextmanager
def _spooled(job: PrepareJob) -> Iterator[PrepareJob]:
    """A vocabulary of the text takes passes of its own, so standard input is saved to a file."""
    if not is_made_of_text(job.settings.tokenizer) or all(source.path for source in job.sources):
        yield job
        return
    spool = job.out / SPOOL
    try:
        yield replace(job, sources=spooled(job.sources, spool))
    finally:
        spool.unlink(missing_ok=True)


def _refuse_foreign(out: Path) -> None:
    """A folder with files that are not ours, or a later version's: --force would delete them."""
    if not out.is_dir():
        return
    require_replaceable(out)
    names = [path.name for path in out.iterdir()]
    foreign = [name for name in names if name != ".lock" and not name.startswith(files.TEMPORARY)]
    if foreign and not was_made_by_prepare(out):
        raise UsageError(
            f"{out}: is not empty, and was not made by `gpt2 prepare`",
            f"it holds {', '.join(sorted(foreign)[:3])}",
            "give a new or empty folder: --out FOLDER",
        )


def _check_settings(settings: PrepareSettings, validation_sources: Sequence[str | Path]) -> None:
    if validation_sources and settings.validation:
        raise UsageError(
            f"validation is {settings.validation}, and there are validation sources",
            "the validation sources take the place of a fraction",
            "leave one of them out",
        )
    if not 0 <= settings.validation < 1:
        raise UsageError(
            f"validation is {settings.validation}",
            "it must be a fraction: at least 0, below 1",
            "--validation 0.1",
        )
    if settings.shard_tokens < 1:
        raise UsageError(f"shard-tokens is {settings.shard_tokens}", "it must be at least 1")
    if not settings.text_fields:
        raise UsageError("no text field given", fix="--text-field text")
    ReadOptions(settings.encoding, settings.max_bad)
    SplitRule(settings.split_on, settings.per_line, settings.blank_line)


def _key(sources: Sequence[SourceRecord], settings: PrepareSettings, tokenizer: Tokenizer | None) -> str:
    """The name of the cache folder: a hash of the content and the settings, not of paths."""
    content = [[source.kind, source.bytes, source.sha256, source.held_out] for source in sources]
    if not tokenizer and not is_made_of_text(settings.tokenizer):
        tokenizer = named_tokenizer(settings.tokenizer)
    fingerprint = tokenizer.fingerprint if tokenizer else settings.tokenizer
    key = json.dumps([VERSION, SPLIT_RULE, content, fingerprint, asdict(replace(settings, tokenizer=""))])
    return hashlib.sha256(key.encode()).hexdigest()[:24]
