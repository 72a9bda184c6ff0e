"""Owns the token files of a prepared folder: writing them in order, and moving a tail from one
split to the other. A file is a row of little-endian uint16 or uint32 ids and nothing else;
every file of a split but its last holds the same number of them. Reading is `stored.py`'s.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt2cli import files
from gpt2cli.data.manifest import DTYPES, Shard, StaleError, WriterState
from gpt2cli.errors import InputError

Ids = np.ndarray[tuple[int], np.dtype[Any]]


def dtype_for(n_vocab: int) -> str:
    """uint16 where it holds every id, else uint32."""
    return "uint16" if n_vocab <= 1 << 16 else "uint32"


def packed(ids: Ids, dtype: str, n_vocab: int) -> Ids:
    """`ids` (N,) in the type of the files. Checked first: a cast alone would turn 70000 into 4464."""
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < n_vocab:
        raise InputError(f"token id {int(ids.max())} is not below the vocabulary size {n_vocab}")
    assert n_vocab <= 1 << 8 * DTYPES[dtype]
    return ids.astype(np.dtype(dtype).newbyteorder("<"))


class ShardWriter:
    """Appends ids to the files of one split: `split`-00000.bin, `split`-00001.bin, ..."""

    def __init__(self, folder: Path, split: str, dtype: str, shard_tokens: int, state: WriterState) -> None:
        """Continues from `state`: what lies in the folder beyond it is cut off or deleted."""
        self._folder, self._split, self._dtype = folder, split, dtype
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
        """Append `ids`, which are `packed`."""
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
        """What to continue from; true of the disk after `flush`."""
        return WriterState(tuple(self._finished), self._n_open)

    def flush(self) -> None:
        if self._file:
            files.flush(self._file)

    def finish(self) -> None:
        """End the open file; `state` then holds finished ones only."""
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
        self._file.truncate(self._n_open * DTYPES[self._dtype])
        while block := self._file.read(files.CHUNK):
            self._digest.update(block)

    def _require(self, path: Path, n_tokens: int) -> None:
        if not path.is_file() or path.stat().st_size < n_tokens * DTYPES[self._dtype]:
            raise StaleError(
                f"{path}: shorter than the journal says",
                "the folder was changed since `prepare` was interrupted",
            )

    def _finish_shard(self) -> None:
        assert self._file
        files.flush(self._file)
        self._file.close()
        self._finished.append(Shard(self._open_name(), self._n_open, self._digest.hexdigest()))
        self._file, self._n_open = None, 0

    def _open_name(self) -> str:
        return f"{self._split}-{len(self._finished):05d}.bin"


def copy_tail(folder: Path, shards: Sequence[Shard], dtype: str, n: int, target: ShardWriter) -> None:
    """Append the last `n` tokens of `shards` to `target`."""
    width = DTYPES[dtype]
    skip = sum(shard.n_tokens for shard in shards) - n
    for shard in shards:
        with files.open_regular(folder / shard.file) as file:
            file.seek(min(skip, shard.n_tokens) * width)
            while block := file.read(files.CHUNK):
                target.write(np.frombuffer(block, np.dtype(dtype).newbyteorder("<")))
        skip = max(0, skip - shard.n_tokens)


def without_tail(folder: Path, shards: Sequence[Shard], dtype: str, n: int) -> tuple[Shard, ...]:
    """`shards` as they are after their last `n` tokens went; nothing on the disk changes."""
    kept = []
    left = sum(shard.n_tokens for shard in shards) - n
    for shard in shards:
        n_tokens = min(left, shard.n_tokens)
        left -= n_tokens
        if n_tokens:
            whole = n_tokens == shard.n_tokens
            digest = shard.sha256 if whole else _digest_of_head(folder / shard.file, n_tokens * DTYPES[dtype])
            kept.append(Shard(shard.file, n_tokens, digest))
    return tuple(kept)


def cut_to(folder: Path, split: str, shards: Sequence[Shard], dtype: str) -> None:
    """Make the files of a split just `shards`: longer ones are truncated, others deleted."""
    for path in sorted(folder.glob(f"{split}-*.bin"))[len(shards) :]:
        path.unlink()
    for shard in shards:
        path = folder / shard.file
        n_bytes = shard.n_tokens * DTYPES[dtype]
        if path.stat().st_size != n_bytes:
            with open(path, "r+b") as file:
                file.truncate(n_bytes)
                files.flush(file)
    files.flush_directory(folder)


def _digest_of_head(path: Path, n_bytes: int) -> str:
    digest = hashlib.sha256()
    with files.open_regular(path) as file:
        while n_bytes and (block := file.read(min(n_bytes, files.CHUNK))):
            digest.update(block)
            n_bytes -= len(block)
    return digest.hexdigest()


def last_document_length(folder: Path, shards: Sequence[Shard], dtype: str, end_of_text: int) -> int:
    """Tokens of the last document, its end-of-text included: what follows the one before."""
    width, seen = DTYPES[dtype], 0
    for shard in reversed(shards):
        with files.open_regular(folder / shard.file) as file:
            right = shard.n_tokens
            while right:
                left = max(0, right - files.CHUNK)
                file.seek(left * width)
                ids = np.frombuffer(file.read((right - left) * width), np.dtype(dtype).newbyteorder("<"))
                ends = np.flatnonzero(ids == end_of_text)
                if not seen:
                    ends = ends[:-1]  # the last document's own
                if len(ends):
                    return seen + len(ids) - 1 - int(ends[-1])
                seen += len(ids)
                right = left
    return seen
