"""The token shards of a prepared folder: writing them in order, and moving a tail between splits.

A shard is little-endian uint16 or uint32 ids without a header; all shards of a split but the last
hold the same number. `token_dataset.py` reads them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt2cli import files
from gpt2cli.data.manifest import DTYPES, Dtype, Shard, StaleError, WriterState
from gpt2cli.errors import InputError
from gpt2cli.tokenizer.base import Tokenizer, begin

Ids = np.ndarray[tuple[int], np.dtype[Any]]


def dtype_for(n_vocab: int) -> Dtype:
    """uint16 if it holds every id, else uint32."""
    return "uint16" if n_vocab <= 1 << 16 else "uint32"


def to_shard_dtype(ids: Ids, dtype: Dtype, n_vocab: int) -> Ids:
    """`ids` (N,) as `dtype`, little-endian. Checked first: a plain cast would turn 70000 into 4464."""
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < n_vocab:
        raise InputError(f"token id {int(ids.max())} is not below the vocabulary size {n_vocab}")
    return ids.astype(DTYPES[dtype])


class ShardWriter:
    """Appends ids to the shards of one split: `split`-00000.bin, `split`-00001.bin, ..."""

    def __init__(self, folder: Path, split: str, dtype: Dtype, shard_tokens: int, state: WriterState) -> None:
        """Continues from `state`: whatever the folder holds beyond it is truncated or deleted."""
        self._folder, self._split, self._width = folder, split, DTYPES[dtype].itemsize
        self._shard_tokens = shard_tokens
        self._finished = list(state.finished)
        self._n_open = state.n_open
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        for path in sorted(folder.glob(f"{split}-*.bin"))[len(self._finished) + bool(self._n_open) :]:
            path.unlink()
        for shard in self._finished:
            self._require(folder / shard.file, shard.n_tokens)
        if self._n_open:
            self._reopen()

    @property
    def n_tokens(self) -> int:
        return sum(shard.n_tokens for shard in self._finished) + self._n_open

    def write(self, ids: Ids) -> None:
        """Append `ids`, which have the shards' dtype."""
        start = 0
        while start < len(ids):
            part = ids[start : start + self._shard_tokens - self._n_open]
            file = self._file or self._create()
            data = part.tobytes()
            file.write(data)
            self._digest.update(data)
            self._n_open += len(part)
            start += len(part)
            if self._n_open == self._shard_tokens:
                self._finish_shard()

    @property
    def state(self) -> WriterState:
        """The state to continue from; it is on disk after `flush`."""
        return WriterState(tuple(self._finished), self._n_open)

    def flush(self) -> None:
        if self._file:
            files.flush(self._file)

    def finish(self) -> None:
        """Finish the open shard; `state` then has finished ones only."""
        if self._file:
            self._finish_shard()

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _create(self) -> BinaryIO:
        self._digest = hashlib.sha256()
        self._file = open(self._folder / self._open_name(), "wb")  # noqa: SIM115
        files.flush_directory(self._folder)
        return self._file

    def _reopen(self) -> None:
        path = self._folder / self._open_name()
        self._require(path, self._n_open)
        self._file = open(path, "r+b")  # noqa: SIM115
        self._file.truncate(self._n_open * self._width)
        while block := self._file.read(files.CHUNK):
            self._digest.update(block)

    def _require(self, path: Path, n_tokens: int) -> None:
        if not path.is_file() or path.stat().st_size < n_tokens * self._width:
            raise StaleError(
                f"{path}: shorter than the journal says",
                "the folder has changed since `prepare` was interrupted",
            )

    def _finish_shard(self) -> None:
        assert self._file
        files.flush(self._file)
        self._file.close()
        self._finished.append(Shard(self._open_name(), self._n_open, self._digest.hexdigest()))
        self._file, self._n_open = None, 0

    def _open_name(self) -> str:
        return f"{self._split}-{len(self._finished):05d}.bin"


def move_tail(
    folder: Path, shards: Sequence[Shard], dtype: Dtype, n: int, target: ShardWriter
) -> tuple[Shard, ...]:
    """Move the last `n` tokens of `shards` to `target`; returns the rest of `shards`."""
    width, kept = DTYPES[dtype].itemsize, []
    left = sum(shard.n_tokens for shard in shards) - n
    for shard in shards:
        n_kept = min(left, shard.n_tokens)
        left -= n_kept
        if n_kept == shard.n_tokens:
            kept.append(shard)
            continue
        path, head = folder / shard.file, hashlib.sha256()
        with open(path, "r+b") as file:
            for block in _blocks(file, n_kept * width):
                head.update(block)
            for block in _blocks(file, (shard.n_tokens - n_kept) * width):
                target.write(np.frombuffer(block, DTYPES[dtype]))
            file.truncate(n_kept * width)
            files.flush(file)
        if n_kept:
            kept.append(Shard(shard.file, n_kept, head.hexdigest()))
        else:
            path.unlink()
    return tuple(kept)


def _blocks(file: BinaryIO, n_bytes: int) -> Iterator[bytes]:
    while n_bytes and (block := file.read(min(n_bytes, files.CHUNK))):
        yield block
        n_bytes -= len(block)


def document_end(
    folder: Path, shards: Sequence[Shard], dtype: Dtype, end_of_text: int, first: int, last: int, wanted: int
) -> int | None:
    """The number of tokens after which a document ends that is nearest to `wanted`, of `first` to `last`."""
    width, best, n_before = DTYPES[dtype].itemsize, None, 0
    for shard in shards:
        # Of this shard: the ids from `left` to before `right`.
        left, right = max(first - 1 - n_before, 0), min(last - n_before, shard.n_tokens)
        if left < right:
            with files.open_regular(folder / shard.file) as file:
                file.seek(left * width)
                for block in _blocks(file, (right - left) * width):
                    ids = np.frombuffer(block, DTYPES[dtype])
                    ends = np.flatnonzero(ids == end_of_text) + (n_before + left + 1)
                    if len(ends):
                        nearest = int(ends[np.abs(ends - wanted).argmin()])
                        if best is None or abs(nearest - wanted) < abs(best - wanted):
                            best = nearest
                    left += len(ids)
        n_before += shard.n_tokens
    return best


def tokens_of_bytes(
    folder: Path, shards: Sequence[Shard], dtype: Dtype, tokenizer: Tokenizer, n_bytes: int
) -> int:
    """The least number of tokens, from the first on, that are `n_bytes` of text or more."""
    lengths = token_lengths(tokenizer)
    n_before, left = 0, n_bytes
    for shard in shards:
        with files.open_regular(folder / shard.file) as file:
            for block in _blocks(file, shard.n_tokens * DTYPES[dtype].itemsize):
                sums = lengths[np.frombuffer(block, DTYPES[dtype])].cumsum()
                if sums[-1] >= left:
                    return n_before + int(np.searchsorted(sums, left)) + 1
                n_before, left = n_before + len(sums), left - int(sums[-1])
    return n_before


def token_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text per token, (V,) int64. What begins or ends a text is none of it."""
    lengths = np.array([len(tokenizer.decode_bytes([id])) for id in range(tokenizer.n_vocab)])
    lengths[[tokenizer.end_of_text, *begin(tokenizer)]] = 0
    return lengths
