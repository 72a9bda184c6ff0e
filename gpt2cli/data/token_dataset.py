"""A prepared folder as a dataset: verified once when it is opened, then read by position.

Reads use `os.pread` on open descriptors, not a memory map: truncating a mapped file kills the
process with SIGBUS, here it is an InputError.
"""

import bisect
import hashlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpt2cli import files
from gpt2cli.data.manifest import DTYPES, Dtype, Shard, TokenManifest, read_manifest
from gpt2cli.data.prepare_settings import prepare_command
from gpt2cli.errors import InputError
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.files import load_tokenizer

Int64s = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class TokenDataset:
    """An open prepared folder. Close it, or use it in a `with` block."""

    folder: Path
    manifest: TokenManifest
    tokenizer: Tokenizer
    train: "TokenSplit"
    validation: "TokenSplit"

    def close(self) -> None:
        self.train.close()
        self.validation.close()

    def __enter__(self) -> "TokenDataset":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_dataset(folder: Path) -> TokenDataset:
    """Open and verify a prepared folder: size, SHA-256 and ids of every shard (about 1 GB/s).

    Raises InputError naming the file that is missing, truncated or changed, or holds an id outside
    the vocabulary.
    """
    manifest = read_manifest(folder)
    tokenizer, again = load_tokenizer(folder), prepare_command(manifest, folder)
    if (tokenizer.fingerprint, tokenizer.n_vocab) != (manifest.fingerprint, manifest.n_vocab):
        raise InputError(
            f"{folder}: its tokenizer is not the one that made its tokens",
            f"it has {tokenizer.n_vocab} tokens, the manifest says {manifest.n_vocab}, or they differ",
            again,
        )
    train = TokenSplit(folder, manifest.train, manifest.dtype, manifest.n_vocab, again)
    try:
        validation = TokenSplit(folder, manifest.validation, manifest.dtype, manifest.n_vocab, again)
    except InputError:
        train.close()
        raise
    return TokenDataset(folder, manifest, tokenizer, train, validation)


class TokenSplit:
    """The ids of one split, as one sequence of `n_tokens`."""

    def __init__(
        self, folder: Path, shards: Sequence[Shard], dtype: Dtype, n_vocab: int, again: str = ""
    ) -> None:
        """Opens and verifies every shard. Raises InputError, with the command that prepares them `again`."""
        self._again = again
        self._folder, self._shards, self._n_vocab = folder, tuple(shards), n_vocab
        self._dtype, self._width = DTYPES[dtype], DTYPES[dtype].itemsize
        self._starts = list(itertools.accumulate((shard.n_tokens for shard in shards), initial=0))
        self._files: list[BinaryIO] = []
        try:
            for shard in shards:
                self._files.append(files.open_regular(folder / shard.file))
                self._verify(shard, self._files[-1])
        except InputError:
            self.close()
            raise

    @property
    def n_tokens(self) -> int:
        return self._starts[-1]

    def read(self, start: int, n: int) -> Int64s:
        """Ids start .. start + n - 1, (n,) int64, across shards.

        Raises IndexError outside the split, InputError if a file changed after it was opened.
        """
        if not 0 <= start <= start + n <= self.n_tokens:
            raise IndexError(f"tokens {start} to {start + n} of {self.n_tokens}")
        ids = np.empty(n, np.int64)
        filled = 0
        index = bisect.bisect_right(self._starts, start) - 1
        while filled < n:
            inside = start + filled - self._starts[index]
            count = min(n - filled, self._shards[index].n_tokens - inside)
            ids[filled : filled + count] = self._read_shard(index, inside, count)
            filled += count
            index += 1
        return ids

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _read_shard(self, index: int, start: int, n: int) -> np.ndarray:
        data = os.pread(self._files[index].fileno(), n * self._width, start * self._width)
        if len(data) < n * self._width:
            raise self._error(self._shards[index], "truncated since it was opened")
        ids = np.frombuffer(data, self._dtype)
        if n and int(ids.max()) >= self._n_vocab:
            raise self._error(self._shards[index], f"changed since it was opened: id {int(ids.max())}")
        return ids

    def _verify(self, shard: Shard, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        if size != shard.n_tokens * self._width:
            why = f"{size} bytes, not {shard.n_tokens * self._width}"
            raise self._error(shard, "damaged: wrong size", why)
        digest, largest = hashlib.sha256(), 0
        while block := file.read(files.CHUNK):
            digest.update(block)
            largest = max(largest, int(np.frombuffer(block, self._dtype).max()))
        # Not covered by the digest: a manifest made elsewhere can confirm ids outside the vocabulary.
        if largest >= self._n_vocab:
            why = f"the vocabulary has the ids 0 to {self._n_vocab - 1}"
            raise self._error(shard, f"holds the id {largest}", why)
        if digest.hexdigest() != shard.sha256:
            why = f"SHA-256 is {digest.hexdigest()}, not {shard.sha256}"
            raise self._error(shard, "damaged: its content changed", why)

    def _error(self, shard: Shard, what: str, why: str = "") -> InputError:
        return InputError(f"{self._folder / shard.file}: {what}", why, self._again)
