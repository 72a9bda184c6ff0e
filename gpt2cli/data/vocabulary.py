"""A vocabulary made from the text itself: its characters, or byte-pair merges trained on its training split.

`tokenizer/train.py` learns the merges; here is which text it sees.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2cli import files
from gpt2cli.data.input_files import TextSource, expand_sources
from gpt2cli.data.manifest import PrepareSettings
from gpt2cli.data.prepare_pipeline import TOLERANCE, Phase, PrepareJob, PrepareProgress
from gpt2cli.data.text_reader import SAFE_CUT
from gpt2cli.data.tokenize import reader_of, text_chunks, trim_heap
from gpt2cli.errors import InputError, UsageError
from gpt2cli.tokenizer import train
from gpt2cli.tokenizer.base import Tokenizer, trained_size
from gpt2cli.tokenizer.bpe import BPE
from gpt2cli.tokenizer.chars import Chars


@dataclass(frozen=True)
class TrainedVocabulary:
    """The text that it was trained on is in the first `n_bytes` of the training split."""

    tokenizer: Tokenizer
    n_bytes: int = 0


def learn_vocabulary(job: PrepareJob) -> Generator[PrepareProgress, None, TrainedVocabulary]:
    """The vocabulary that `job.settings.tokenizer` names, from passes of their own over the sources."""
    size = trained_size(job.settings.tokenizer)
    if size is None:
        return TrainedVocabulary((yield from _characters(job)))
    train.require_size(size, "bpe-")
    tokenizer, n_bytes = yield from learn_bpe(job, size)
    return TrainedVocabulary(tokenizer, n_bytes)


def _characters(job: PrepareJob) -> Generator[PrepareProgress, None, Tokenizer]:
    """The character vocabulary of the whole text."""
    seen: set[str] = set()
    n_read = n_bytes = 0
    for source in job.sources:
        with contextlib.closing(reader_of(source, job.settings)) as reader:
            for piece in trim_heap(reader.pieces()):
                seen.update(piece.text)
                n_bytes += piece.n_bytes
                n_done = n_read + reader.n_read
                yield PrepareProgress("vocabulary", job.out, n_done, job.n_total, n_bytes=n_bytes)
            n_read += reader.n_read
    return Chars.from_text(seen)


def learn_bpe(
    job: PrepareJob, size: int, notes: list[str] | None = None
) -> Generator[PrepareProgress, None, tuple[BPE, int]]:
    """Byte-pair merges of the training split, and where in it their text ends, in bytes.

    Held-out text must not shape the vocabulary. The tail that may still move to validation is counted in
    tokens, unknown here, so training text stops well before it. Remarks on the sources go to `notes`.
    """
    n_train = n_bytes = 0
    for chunk in text_chunks(job.sources, job.settings, [], [] if notes is None else notes):
        n_train += sum(piece.n_bytes for piece in chunk.train)
        n_bytes = chunk.position.n_bytes
        yield PrepareProgress("reading", job.out, n_bytes=n_bytes)
    if not n_train:
        raise InputError("no text to learn a vocabulary from", "the sources are empty", "name another file")
    share = job.settings.validation
    n_seen = min(n_train, int(n_bytes * max(1 - (1 + TOLERANCE) * share, (1 - share) / 2)))
    n_taken = min(n_seen, train.MOST_BYTES)
    texts = _evenly(_texts(job.sources, job.settings, n_seen), n_taken / max(1, n_seen))
    for step in train.train_bpe(texts, size):
        phase: Phase = "merging" if step.is_merging else "vocabulary"
        yield PrepareProgress(phase, job.out, step.n_bytes, n_taken, n_bytes=step.n_bytes)
    assert step.tokenizer
    for warning in vocabulary_notes(step, size, n_seen):
        yield PrepareProgress("vocabulary", job.out, n_taken, n_taken, warning=warning)
    return step.tokenizer, n_seen


def vocabulary_notes(trained: train.VocabularyProgress, size: int, n_seen: int) -> Iterator[str]:
    """What a user should know of a new vocabulary, trained on a text of `n_seen` bytes."""
    assert trained.tokenizer
    if trained.tokenizer.n_vocab < size:
        yield (
            f"the vocabulary has {trained.tokenizer.n_vocab:,} tokens, not {size:,}:"
            " no other pair occurs twice in this text"
        )
    if trained.is_cut:
        yield (
            f"the vocabulary is that of the first {trained.n_bytes / 1e6:,.0f} MB: they have"
            f" {train.MOST_WORDS:,} different words, and more would take too much memory"
        )
    elif n_seen > train.MOST_BYTES:
        yield (
            f"the vocabulary is that of {trained.n_bytes / 1e6:,.0f} MB, taken evenly from"
            f" {n_seen / 1e6:,.0f} MB"
        )


def _texts(sources: Sequence[TextSource], settings: PrepareSettings, n_bytes: int) -> Iterator[str]:
    """The first `n_bytes` of the training documents, in pieces cut where words end."""
    left = n_bytes
    for chunk in text_chunks(sources, settings, [], []):
        for piece in chunk.train:
            text = piece.text
            if piece.n_bytes > left:
                text = text.encode("utf-8")[:left].decode("utf-8", "ignore")
            left -= min(piece.n_bytes, left)
            yield from _short(text)
            if not left:
                return


def _short(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > train.PIECE:
        cut = SAFE_CUT.search(text, start + train.PIECE, start + 2 * train.PIECE)
        # A word without an end, such as DNA, is cut: the library's time grows with its square.
        end = cut.end() if cut else start + train.PIECE
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _evenly(texts: Iterable[str], share: float) -> Iterator[str]:
    """About `share` of the texts, from all over."""
    for number, text in enumerate(texts):
        if share >= 1 or int((number + 1) * share) > int(number * share):
            yield text


def train_tokenizer(
    sources: Sequence[str | Path],
    size: int,
    out: Path,
    settings: PrepareSettings,
    *,
    stdin_is_records: bool = False,
    force: bool = False,
) -> Iterator[PrepareProgress]:
    """Learn a vocabulary of `size` tokens from texts, read as `settings` say, and write it into the tokenizer
    folder `out`.

    Raises UsageError if `out` holds something else, or a vocabulary and not `force`; InputError for text that
    cannot be read.
    """
    train.require_size(size, "--size ")
    _require_place(out, force)
    found = expand_sources(sources, out=out, stdin_is_records=stdin_is_records)
    files.require_writable(out.parent)
    notes = list[str]()
    with tempfile.TemporaryDirectory() as folder:
        job = PrepareJob(spooled(found, Path(folder) / "stdin"), out, settings, 1, 1, 0.0)
        tokenizer, n_bytes = yield from learn_bpe(job, size, notes)
    for note in notes:
        yield PrepareProgress("vocabulary", out, n_bytes, n_bytes, warning=note)
    with files.new_folder(out) as new:
        train.save_trained(
            tokenizer, new, {"size": size, "bytes": n_bytes, "sources": list(map(str, sources))}
        )
    yield PrepareProgress("done", out, n_bytes=n_bytes)


def spooled(sources: Sequence[TextSource], spool: Path) -> list[TextSource]:
    """The same, with standard input saved to the file `spool`, so that it can be read more than once."""
    if all(source.path for source in sources):
        return list(sources)
    with open(spool, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, files.CHUNK)
    return [source if source.path else replace(source, path=spool) for source in sources]


def _require_place(out: Path, force: bool) -> None:
    """Raise UsageError unless `out` is free, empty, or with `force` an earlier vocabulary of ours."""
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not train.is_trained(out):
        raise UsageError(
            f"{out}: is not empty, and was not made by `gpt2 tokenizer train`",
            "--force would delete what is in it",
            "give a new or empty folder: --out FOLDER",
        )
    if not force:
        raise UsageError(
            f"{out}: holds a vocabulary already", "", "add --force to replace it, or another --out"
        )
