"""Owns one safetensors file: written with its hash, and read with its hash.

The layout is Hugging Face's (8 bytes of header length, a JSON header, raw little-endian data).
Reading copies the file into memory and hashes it before a tensor is made of it: a file that is
memory-mapped and then truncated kills the process with SIGBUS, and the format has no checksum.
How it is read quickly is known to file_block.py, which hash may be believed to verified.py.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from gpt2cli.checkpoints.file_block import ALIGNMENT, lead_of, read_block
from gpt2cli.checkpoints.read_ahead import take
from gpt2cli.checkpoints.verified import is_verified, look, remember
from gpt2cli.errors import InputError
from gpt2cli.files import flush, open_regular

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 16 << 20  # bytes; GPT-2 XL needs 60 KB
_MAX_DIMENSIONS = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write a new file, flushed to the device; returns its SHA-256. One tensor at a time is copied."""
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with TensorWriter(path, layout, metadata) as writer:
        for tensor in tensors.values():
            writer.write(tensor)
    return writer.sha256


class TensorWriter:
    """A new file whose tensors come one by one, in the order of `layout` {name: (dtype, shape)}.

    When the block ends it is flushed to the device, and `sha256` is that of the whole file.
    """

    def __init__(
        self,
        path: Path,
        layout: Mapping[str, tuple[torch.dtype, Sequence[int]]],
        metadata: Mapping[str, str],
    ) -> None:
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        offset = 0
        for name, (dtype, shape) in layout.items():
            end = offset + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
        encoded += b" " * (-(8 + len(encoded)) % ALIGNMENT)  # the data begins aligned, to be used in place
        self._awaited = [(dtype, tuple(shape)) for dtype, shape in layout.values()][::-1]
        self._digest = hashlib.sha256()
        self._file = open(path, "wb")  # noqa: SIM115 - closed in __exit__
        self._put(len(encoded).to_bytes(8, "little") + encoded)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, tensor: Tensor) -> None:
        """Append the next tensor of the layout."""
        assert (tensor.dtype, tuple(tensor.shape)) == self._awaited.pop()
        self._put(_bytes_of(tensor))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                assert not self._awaited, "tensors of the layout were not written"
                flush(self._file)

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)


def read_tensors(path: Path, sha256: str | None = None, *, remembered: bool = False) -> dict[str, Tensor]:
    """Every tensor of the file, as views of one block of memory, hashed while it is read.

    With `remembered` a file that had this hash before, and has not been touched since, is only read.
    Raises InputError where the hash differs from `sha256` or the header does not fit the data.
    """
    with open_regular(path) as file:
        status = look(file)
        if status.size < 8:
            raise InputError(f"{path}: {status.size} bytes are no safetensors file")
        is_known = remembered and sha256 is not None and is_verified(status, sha256)
        digest = None if is_known or sha256 is None else hashlib.sha256()
        block = take(path, status)
        if block is not None and digest:
            digest.update(block)
        elif block is None:
            use = digest.update if digest else None
            block = read_block(path, file, status.size, lead=lead_of(file), use=use)
        is_same = look(file) == status
    if is_known and not is_same:
        digest = hashlib.sha256(block)
    if digest is not None and sha256 is not None:
        if digest.hexdigest() != sha256:
            raise changed(path, digest.hexdigest(), sha256)
        if remembered and is_same:
            remember(status, sha256)
    return _parse(path, block)


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies; `start` and `end` count bytes from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_entries(path: Path) -> dict[str, Entry]:
    """What the header says of each tensor, checked against the file's size; the data stays unread."""
    with open_regular(path) as file:

        def read(start: int, n_bytes: int) -> bytes:
            file.seek(start)
            return file.read(n_bytes)

        return _entries(path, read(0, 8), os.fstat(file.fileno()).st_size, read)


class TensorFile:
    """A file whose tensors are read one at a time, for whoever cannot hold them all in memory.

    Opening it hashes it (`sha256`) and checks the header. Raises InputError where that fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.BufferedReader = open_regular(path)
        try:
            self.sha256 = hashlib.file_digest(self._file, "sha256").hexdigest()
            size = os.fstat(self._file.fileno()).st_size
            self.entries = _entries(path, self._pread(0, min(8, size)), size, self._pread)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> Tensor:
        """A copy of one tensor."""
        entry = self.entries[name]
        block = memoryview(bytearray(entry.end - entry.start))
        self._file.seek(entry.start)
        n_read = self._file.readinto(block)
        if n_read < len(block):
            raise self._cut_short(entry.start + n_read)
        return torch.frombuffer(block, dtype=entry.dtype).view(entry.shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _pread(self, start: int, n_bytes: int) -> bytes:
        self._file.seek(start)
        data = self._file.read(n_bytes)
        if len(data) < n_bytes:
            raise self._cut_short(start + len(data))
        return data

    def _cut_short(self, end: int) -> InputError:
        return InputError(f"{self.path}: ended at byte {end}", "it changed while it was read")


def changed(path: Path, found: str, wanted: str) -> InputError:
    """The error for a file whose hash is not the one that was written down."""
    return InputError(
        f"{path}: the content has changed since it was written",
        f"SHA-256 is {found[:16]}..., the manifest says {wanted[:16]}...",
        "restore the file from a copy, or use another checkpoint",
    )


def _parse(path: Path, block: memoryview) -> dict[str, Tensor]:
    def read(start: int, n_bytes: int) -> bytes:
        return bytes(block[start : start + n_bytes])

    return {
        name: _tensor(entry, block) for name, entry in _entries(path, read(0, 8), len(block), read).items()
    }


def _entries(path: Path, first: bytes, size: int, read: Callable[[int, int], bytes]) -> dict[str, Entry]:
    """The header's entries, each checked against the file's size. `read(start, n_bytes)` gives its bytes."""
    length = int.from_bytes(first, "little")
    if size < 8 or length > min(_MAX_HEADER, size - 8):
        raise InputError(f"{path}: the header claims {length} bytes", f"the file has {size} in all")
    try:
        header = json.loads(read(8, length), object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the header is not JSON", str(error)) from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: the header is not a JSON object")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, values, 8 + length, size) for name, values in header.items()}
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: entry.start):
        if entry.start != end:
            raise InputError(
                f"{path}: the tensors overlap, or leave a gap", f"at byte {min(end, entry.start)}"
            )
        end = entry.end
    if end != size:
        raise InputError(f"{path}: {size - end} bytes belong to no tensor", "the file was damaged or joined")
    return entries


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A header that names a tensor twice would hide one of the two."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name stands there twice")
    return table


def _entry(path: Path, name: str, values: Any, offset: int, size: int) -> Entry:
    """One entry of the header, whose offsets count from byte `offset` of the file."""
    try:
        dtype, shape, (start, end) = DTYPES[values["dtype"]], values["shape"], values["data_offsets"]
        numbers = [*shape, start, end]
        sound = len(shape) <= _MAX_DIMENSIONS and all(
            type(number) is int and 0 <= number <= 2**48 for number in numbers
        )
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path}: {name!r} has a broken header entry", f"it reads {values!r}"[:200]
        ) from None
    if not sound or math.prod(shape) * dtype.itemsize != end - start or offset + end > size:
        raise InputError(
            f"{path}: {name!r} does not fit the file",
            f"shape {shape!r} and bytes {start} to {end} disagree, or lie beyond {size - offset} bytes"[:200],
        )
    if start == end:
        raise InputError(f"{path}: {name!r} is empty", f"its shape is {shape}")
    return Entry(dtype, tuple(shape), offset + start, offset + end)


def _tensor(entry: Entry, block: memoryview) -> Tensor:
    raw = torch.frombuffer(block[entry.start : entry.end], dtype=torch.uint8)
    # Products may round differently in memory of another alignment, and a resume must not.
    raw = raw if raw.data_ptr() % ALIGNMENT == 0 else raw.clone()
    return raw.view(entry.dtype).view(entry.shape)


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8)
    return flat.numpy().data
