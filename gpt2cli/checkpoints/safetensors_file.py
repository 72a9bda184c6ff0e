"""One safetensors file: its tensors and their header, written and read with the file's hash.

The layout is Hugging Face's (8 bytes of header length, a JSON header, raw little-endian data).
"""

import contextlib
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gpt2cli.checkpoints.safetensors_bytes import ALIGNMENT, read_bytes
from gpt2cli.errors import InputError
from gpt2cli.files import flush, open_regular
from gpt2cli.json_files import parse_json

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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                assert not self._awaited, "tensors of the layout were not written"
                flush(self._file)

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)


def read_tensors(path: Path, sha256: str | None = None, *, remembered: bool = False) -> dict[str, Tensor]:
    """Every tensor of the file, as views of one block of memory, hashed while it is read.

    With `remembered`, a file that had this hash before and is unchanged since is not hashed again.
    Raises InputError if the hash differs from `sha256` or the header does not fit the data.
    """
    block = read_bytes(path, sha256, remembered=remembered)
    length = int.from_bytes(block[:8], "little")
    entries = _entries(path, bytes(block[: 8 + min(length, _MAX_HEADER)]), len(block))
    return {name: _tensor(entry, block) for name, entry in entries.items()}


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies; `start` and `end` count bytes from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class TensorFile:
    """An open file whose tensors are read one at a time, so that memory need not hold them all."""

    path: Path
    file: io.BufferedReader
    entries: dict[str, TensorEntry]

    @cached_property
    def sha256(self) -> str:
        self.file.seek(0)
        return hashlib.file_digest(self.file, "sha256").hexdigest()

    def read(self, name: str) -> Tensor:
        """A copy of one tensor."""
        entry = self.entries[name]
        block = bytearray(entry.end - entry.start)
        self.file.seek(entry.start)
        if (n_read := self.file.readinto(block)) < len(block):
            what = f"{self.path}: ended at byte {entry.start + n_read}"
            raise InputError(what, "it changed while it was read")
        return torch.frombuffer(block, dtype=entry.dtype).view(entry.shape)


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """The file, its header checked against its size. Raises InputError if that fails."""
    with open_regular(path) as file:
        first = file.read(8)
        head = first + file.read(min(int.from_bytes(first, "little"), _MAX_HEADER))
        yield TensorFile(path, file, _entries(path, head, os.fstat(file.fileno()).st_size))


def _entries(path: Path, head: bytes, size: int) -> dict[str, TensorEntry]:
    """The header's entries, each checked against the file's `size`. `head` is how the file begins."""
    if size < 8:
        raise InputError(f"{path}: {size} bytes are not a safetensors file")
    length = int.from_bytes(head[:8], "little")
    if length > min(_MAX_HEADER, size - 8):
        raise InputError(f"{path}: the header claims {length} bytes", f"the file has {size} in all")
    try:
        header = parse_json(head[8:])
    except ValueError as error:
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


def _entry(path: Path, name: str, values: Any, offset: int, size: int) -> TensorEntry:
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
    return TensorEntry(dtype, tuple(shape), offset + start, offset + end)


def _tensor(entry: TensorEntry, block: memoryview) -> Tensor:
    raw = torch.frombuffer(block[entry.start : entry.end], dtype=torch.uint8)
    # Matmuls may round differently in memory of another alignment, and a resume must not.
    raw = raw if raw.data_ptr() % ALIGNMENT == 0 else raw.clone()
    return raw.view(entry.dtype).view(entry.shape)


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8)
    return flat.numpy().data
