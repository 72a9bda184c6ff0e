"""Owns one safetensors file: written with its hash, read with its hash, trusted in between never.

The layout is Hugging Face's (8 bytes of header length, a JSON header, raw little-endian data).
Reading copies the file into memory and hashes it before a tensor is made of it: a file that is
memory-mapped and then truncated kills the process with SIGBUS, and the format has no checksum.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2cli.disk import CHUNK, flush, open_regular
from gpt2cli.errors import InputError

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
ALIGNMENT = 64  # bytes; what torch gives its own tensors
_MAX_HEADER = 16 << 20  # bytes; GPT-2 XL needs 60 KB


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write a new file, flushed to the device; returns its SHA-256. One tensor at a time is copied."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-(8 + len(encoded)) % ALIGNMENT)  # the data begins aligned, to be used in place
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in (len(encoded).to_bytes(8, "little"), encoded):
            file.write(part)
            digest.update(part)
        for tensor in tensors.values():
            raw = _bytes_of(tensor)
            file.write(raw)
            digest.update(raw)
        flush(file)
    return digest.hexdigest()


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Every tensor of the file, as views of one block of memory.

    Raises InputError where the hash differs from `sha256` or the header does not fit the data.
    """
    block, digest = _read_and_hash(path)
    if sha256 is not None and digest != sha256:
        raise changed(path, digest, sha256)
    return _parse(path, block)


def changed(path: Path, found: str, wanted: str) -> InputError:
    """The error for a file whose hash is not the one that was written down."""
    return InputError(
        f"{path}: the content has changed since it was written",
        f"SHA-256 is {found[:16]}..., the manifest says {wanted[:16]}...",
        "restore the file from a copy, or use another checkpoint",
    )


def _read_and_hash(path: Path) -> tuple[memoryview, str]:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise InputError(f"{path}: {size} bytes are no safetensors file")
        # Anonymous memory comes in whole pages and, unlike bytearray, is not zeroed twice.
        view = memoryview(mmap.mmap(-1, size))
        digest, done = hashlib.sha256(), 0
        while done < size:
            n = file.readinto(view[done : done + 4 * CHUNK])
            if not n:
                raise InputError(f"{path}: ended at byte {done} of {size}", "it changed while it was read")
            digest.update(view[done : done + n])
            done += n
    return view, digest.hexdigest()


def _parse(path: Path, block: memoryview) -> dict[str, Tensor]:
    length = int.from_bytes(block[:8], "little")
    if length > min(_MAX_HEADER, len(block) - 8):
        raise InputError(f"{path}: the header claims {length} bytes", f"the file has {len(block)} in all")
    try:
        header = json.loads(bytes(block[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the header is not JSON", str(error)) from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: the header is not a JSON object")
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, block, 8 + length) for name, entry in header.items()}


def _tensor(path: Path, name: str, entry: Any, block: memoryview, offset: int) -> Tensor:
    """The tensor of one header entry; its data begins `offset` bytes into the file.

    Offsets in the header count from there.
    """
    data = block[offset:]
    try:
        dtype, shape, (start, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        n_elements = 1
        for size in shape:
            n_elements *= size
        numbers = [*shape, start, end]
        sound = all(type(number) is int and 0 <= number <= 2**48 for number in numbers)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: {name!r} has a broken header entry", f"it reads {entry!r}"[:200]) from None
    if not sound or n_elements * dtype.itemsize != end - start or end > len(data):
        raise InputError(
            f"{path}: {name!r} does not fit the file",
            f"shape {shape} and bytes {start} to {end} disagree, or lie beyond the {len(data)} bytes of data",
        )
    if not n_elements:
        raise InputError(f"{path}: {name!r} is empty", f"its shape is {shape}")
    raw = data[start:end]
    if (start + offset) % dtype.itemsize:  # files of others may be packed tighter than torch allows
        raw = memoryview(bytearray(raw))
    tensor = torch.frombuffer(raw, dtype=dtype).view(shape)
    # Products may round differently in memory of another alignment, and a resume must not.
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8)
    return flat.numpy().data
