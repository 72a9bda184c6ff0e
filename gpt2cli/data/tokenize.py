"""Text to token ids: sources are read in chunks of about a megabyte, which threads encode in order.

tiktoken releases Python's lock while it works, so threads use all cores. The chunks are the same in
every run: an interrupted preparation reads the sources again from the start, which is fast, and
encodes only the chunks that are not on disk yet.
"""

import collections
import contextlib
import ctypes
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import tiktoken

from gpt2cli.data.byte_source import ByteSource, ReadOptions
from gpt2cli.data.input_files import TextSource
from gpt2cli.data.manifest import PrepareSettings, ReadPosition, SourceRecord
from gpt2cli.data.shards import Ids, dtype_for, to_shard_dtype
from gpt2cli.data.text_reader import SourceReader, SplitRule, TextPiece
from gpt2cli.errors import InputError
from gpt2cli.tokenizer.base import END_OF_TEXT, Tokenizer, begin
from gpt2cli.tokenizer.bpe import BPE, PATTERN

CHUNK_CHARACTERS = 1 << 20
CHUNK_PIECES = 1 << 13
TRIM_CHARACTERS = 1 << 25  # often enough for flat memory, too rarely to cost time


@dataclass
class TextChunk:
    """Text pieces per split, and the read position after them."""

    train: list[TextPiece] = field(default_factory=list)
    validation: list[TextPiece] = field(default_factory=list)
    position: ReadPosition = field(default_factory=ReadPosition)


# The ids (N,) of consecutive pieces of one split, with an end-of-text after each document.
Encoder = Callable[[Sequence[TextPiece]], Ids]


def text_chunks(
    sources: Sequence[TextSource],
    settings: PrepareSettings,
    records: list[SourceRecord],
    notes: list[str],
    characters: str | None = None,
) -> Iterator[TextChunk]:
    """All chunks of all sources: a function of their content and the settings only.

    Appends a record to `records` at the end of each source, and to `notes` what to say of it.
    If `characters` are given, raises InputError for a text with others.
    """
    chunk, size, n_chunks = TextChunk(), 0, 0
    n_documents = n_bytes = n_forced = n_line_ends = 0
    inside, for_validation = False, False  # a document; whether it is for validation
    known = set(characters) if characters is not None else None

    def position(reader: SourceReader | None) -> ReadPosition:
        return ReadPosition(
            n_chunks=n_chunks,
            n_sources=len(records),
            n_read=reader.n_read if reader else 0,
            digest=reader.digest if reader else "",
            n_documents=n_documents,
            n_bytes=n_bytes,
            n_forced_cuts=n_forced,
            n_line_ends=n_line_ends + (reader.n_line_ends if reader else 0),
        )

    for source in sources:
        with contextlib.closing(reader_of(source, settings)) as reader:
            for piece in trim_heap(reader.pieces()):
                if known is not None and not known.issuperset(piece.text):
                    raise _unknown_character(source.name, piece.text, known)
                if not inside:
                    for_validation = source.held_out or is_validation(n_documents, settings)
                    n_documents += 1
                    piece = TextPiece(piece.text, piece.ends, piece.n_bytes, piece.forced, starts=True)
                inside = not piece.ends
                n_bytes += piece.n_bytes
                n_forced += piece.forced
                (chunk.validation if for_validation else chunk.train).append(piece)
                size += len(piece.text)
                if size >= CHUNK_CHARACTERS or len(chunk.train) + len(chunk.validation) >= CHUNK_PIECES:
                    n_chunks += 1
                    chunk.position = position(reader)
                    yield chunk
                    chunk, size = TextChunk(), 0
            n_line_ends += reader.n_line_ends
            notes += reader.notes
            records.append(_record(source, reader))
    if (
        settings.split_on
        and n_documents <= len(sources)
        and not any(source.kind != "text" for source in sources)
    ):
        notes.append(f"{settings.split_on!r} splits none of the texts: each file is one document")
    if chunk.train or chunk.validation:
        n_chunks += 1
        chunk.position = position(None)
        yield chunk


def encode_chunks(
    chunks: Iterable[TextChunk], encode: Encoder, workers: int, n_done: int
) -> Iterator[tuple[TextChunk, tuple[Ids, Ids] | None]]:
    """Each chunk in order with the ids of its two splits, encoded by `workers` threads.

    The first `n_done` chunks are not encoded: None stands for their ids.
    """

    def encode_splits(chunk: TextChunk) -> tuple[Ids, Ids]:
        return encode(chunk.train), encode(chunk.validation)

    queue: collections.deque[tuple[TextChunk, Future[tuple[Ids, Ids]]]] = collections.deque()
    with ThreadPoolExecutor(workers, "encode") as pool:
        try:
            for chunk in chunks:
                if chunk.position.n_chunks <= n_done:
                    yield chunk, None
                    continue
                queue.append((chunk, pool.submit(encode_splits, chunk)))
                if len(queue) > 2 * workers:
                    first, future = queue.popleft()
                    yield first, future.result()
            while queue:
                first, future = queue.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def encoder_for(tokenizer: Tokenizer) -> Encoder:
    """An encoder for many threads at once; its ids have the dtype of the shards."""
    dtype = dtype_for(tokenizer.n_vocab)
    encode = _bpe_encoder(tokenizer) if isinstance(tokenizer, BPE) else _plain_encoder(tokenizer)
    return lambda pieces: to_shard_dtype(encode(pieces), dtype, tokenizer.n_vocab)


def reader_of(source: TextSource, settings: PrepareSettings) -> SourceReader:
    return SourceReader(
        source,
        settings.text_fields,
        ReadOptions(settings.encoding, settings.max_bad),
        SplitRule(settings.split_on, settings.per_line, settings.blank_line),
    )


def source_record(source: TextSource) -> SourceRecord:
    """The record that `text_chunks` makes of a source, without decoding its text."""
    with contextlib.closing(ByteSource(source)) as opened:
        opened.drain()
        return _record(source, opened)


def _record(source: TextSource, reader: SourceReader | ByteSource) -> SourceRecord:
    return SourceRecord(source.name, source.kind, reader.n_read, reader.digest, source.held_out)


def _unknown_character(name: str, text: str, known: set[str]) -> InputError:
    character = next(character for character in text if character not in known)
    return InputError(
        f"{name}: the character {character!a} (U+{ord(character):04X}) is not in the model's vocabulary",
        f"a character model knows only the {len(known)} characters of its first training text",
        "replace it in the text, or train a model from random weights",
    )


def is_validation(index: int, settings: PrepareSettings) -> bool:
    """Whether document `index` is drawn for validation: by a hash, so that the order of documents does not
    matter. The first never is. Where the share of documents is not that of the tokens,
    `prepare_pipeline.py` moves the difference.
    """
    digest = hashlib.sha256(f"{settings.seed}:{index}".encode()).digest()
    return index > 0 and int.from_bytes(digest[:8], "big") < settings.validation * 2**64


def trim_heap(pieces: Iterator[TextPiece]) -> Iterator[TextPiece]:
    """The same pieces; from time to time glibc returns freed pages to the system.

    Megabyte blocks of changing sizes fragment its heap: 1 GB of text left 290 MB of holes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    size = 0
    for piece in pieces:
        size += len(piece.text)
        if size > TRIM_CHARACTERS and trim:
            trim(0)
            size = 0
        yield piece


def _bpe_encoder(tokenizer: BPE) -> Encoder:
    """Encodes many documents in one call, which is faster for short ones, and builds no Python list.

    The texts are joined by END_OF_TEXT, which this Encoding, unlike the tokenizer's own, knows as a
    special token. That is right unless a text contains the marker; then each is encoded separately.
    """
    specials, ranks = tokenizer.specials, tokenizer.ranks
    plain = _plain_encoder(tokenizer)
    if begin(tokenizer) or not specials.issuperset(token.id for token in tokenizer.added):
        return plain
    local = threading.local()

    def encoding() -> tiktoken.Encoding:
        """One per thread: threads that share an Encoding wait for its regular expression, and lose
        a quarter to a half of the speed.
        """
        if not hasattr(local, "encoding"):
            local.encoding = tiktoken.Encoding(
                tokenizer.name,
                pat_str=PATTERN,
                mergeable_ranks=ranks,
                special_tokens={END_OF_TEXT: tokenizer.end_of_text},
            )
        return local.encoding  # type: ignore[no-any-return]

    def encode(pieces: Sequence[TextPiece]) -> Ids:
        joined = "".join([piece.text + END_OF_TEXT if piece.ends else piece.text for piece in pieces])
        if joined.count(END_OF_TEXT) != sum(piece.ends for piece in pieces):
            return plain(pieces)
        ids: Ids = encoding().encode_to_numpy(joined, allowed_special={END_OF_TEXT})
        return ids

    return encode


def _plain_encoder(tokenizer: Tokenizer) -> Encoder:
    def encode(pieces: Sequence[TextPiece]) -> Ids:
        parts = [np.empty(0, np.int64)]
        for piece in pieces:
            first = begin(tokenizer) if piece.starts else []
            parts.append(np.array(first + tokenizer.encode(piece.text), dtype=np.int64))
            if piece.ends:
                parts.append(np.array([tokenizer.end_of_text], dtype=np.int64))
        return np.concatenate(parts)

    return encode
