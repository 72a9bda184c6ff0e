"""A TensorFlow checkpoint: read natively, written by TensorFlow.

PREFIX.index is a sorted-string table [1] from the names of tensors to protobuf messages [2];
PREFIX.data-00000-of-00001 and its like hold the numbers, little-endian, in C order. Each block of the
table and each tensor has a CRC-32C, and each one is checked.

[1] LevelDB, doc/table_format.md
[2] TensorFlow, core/protobuf/tensor_bundle.proto
"""

import importlib.util
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from crc32c import crc32c
from torch import Tensor

from gpt2cli.errors import InputError, ResourceError, UsageError
from gpt2cli.files import open_regular

INSTALL = "pip install tensorflow"
DTYPES = {
    "float32": torch.float32,  # OpenAI's
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# TensorFlow's numbers of types (core/framework/types.proto).
_DTYPE_NAMES = {
    **{1: "float32", 2: "float64", 14: "bfloat16", 19: "float16"},
    **{3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 9: "int64", 10: "bool"},
}
_FIX = "fetch the checkpoint's files again"
_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER = 48  # bytes: two handles of blocks, padding, the magic number
_TRAILER = 5  # bytes after a block: its compression and its checksum
# GPT-2 XL's index has 15 KB and names of 26 bytes. A name costs a row only what differs from the name
# before it, so that without these limits a small file could ask for much memory.
_LARGEST_INDEX, _LONGEST_NAME, _MOST_DIMENSIONS = 1 << 20, 256, 8


@dataclass(frozen=True)
class Entry:
    """One tensor, and where its bytes lie."""

    name: str
    dtype: str  # NumPy's name of it
    shape: tuple[int, ...]
    path: Path  # the data file
    offset: int  # bytes
    n_bytes: int
    checksum: int  # masked CRC-32C


def read_index(prefix: Path) -> dict[str, Entry]:
    """The checkpoint's tensors by name. The data stays unread, but it is all there.

    Raises InputError, which names the file, where the index is damaged or does not fit the data files.
    """
    path = prefix.with_name(f"{prefix.name}.index")
    with open_regular(path) as file:
        data = file.read(_LARGEST_INDEX + 1)
    try:
        if len(data) > _LARGEST_INDEX:
            raise ValueError(
                f"it has more than {_LARGEST_INDEX:,} bytes; that of the largest GPT-2 has 15,000"
            )
        rows = dict(_table(data))
        n_shards = _n_shards(rows.pop(b"", b""))
        entries = {name.decode(): _entry(prefix, name.decode(), row, n_shards) for name, row in rows.items()}
    except (IndexError, ValueError) as error:
        why = "it ends within a number" if isinstance(error, IndexError) else str(error)
        raise InputError(f"{path}: cannot be read as the index of a checkpoint", why, _FIX) from None
    sizes = {data_file: _size_of(data_file) for data_file in {entry.path for entry in entries.values()}}
    for entry in entries.values():
        if entry.offset + entry.n_bytes > sizes[entry.path]:
            raise InputError(
                f"{entry.path}: is shorter than {path.name} says",
                f"{entry.name} ends at byte {entry.offset + entry.n_bytes:,} of {sizes[entry.path]:,}",
                _FIX,
            )
    return entries


def read_tensor(entry: Entry) -> Tensor:
    """The tensor, in memory of its own. Raises InputError if its bytes are not those that were written."""
    tensor = torch.empty(entry.n_bytes, dtype=torch.uint8)
    memory = tensor.numpy().data
    with open_regular(entry.path) as file:  # not mapped: to cut a mapped file short kills the process
        file.seek(entry.offset)
        n_read = file.readinto(memory)
    if n_read < entry.n_bytes or _masked(crc32c(memory)) != entry.checksum:
        raise InputError(
            f"{entry.path}: {entry.name} is damaged", "its CRC-32C is not the one in the index", _FIX
        )
    return tensor.view(DTYPES[entry.dtype]).view(entry.shape)


def require_tensorflow() -> None:
    """Raises UsageError if TensorFlow is not installed, which only writing needs."""
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.origin is None:  # a mere folder of that name has no origin
        raise UsageError("TensorFlow writes this format", "it is not installed here", INSTALL)


def write_checkpoint(prefix: Path, shapes: Mapping[str, Sequence[int]], tensors: Iterable[Tensor]) -> None:
    """Write a checkpoint of float32 variables, and the graph that holds them. `tensors` come in the order
    of `shapes`, one at a time.

    Raises UsageError if TensorFlow does not start, ResourceError if it cannot write there.
    """
    tf = _tensorflow()
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={"GPU": 0})) as session:
        slots = []
        for name, shape in shapes.items():
            # Set through a placeholder: a constant would become a part of the graph, and of .meta.
            variable = tf.get_variable(name, shape, tf.float32, tf.zeros_initializer(), use_resource=False)
            value = tf.placeholder(tf.float32, shape)
            slots.append((value, tf.assign(variable, value).op))
        saver = tf.train.Saver(save_relative_paths=True)
        for (value, assign), tensor in zip(slots, tensors, strict=True):
            session.run(assign, {value: tensor.to(torch.float32).numpy().reshape(value.shape)})
        try:
            saver.save(session, str(prefix))
        except (tf.errors.OpError, OSError, ValueError) as error:
            said = (str(error).splitlines() or [""])[0][:300]
            raise ResourceError(
                f"{prefix}: TensorFlow cannot write the checkpoint",
                said,
                "free some space, or choose another place",
            ) from None


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The rows (key, value) of a sorted-string table: an index block lists the blocks that hold them."""
    if len(data) < _FOOTER or not data.endswith(_MAGIC):
        raise ValueError("it does not end as such a file does")
    footer, end = data[-_FOOTER:], 0
    _, at = _handle(footer, 0)  # of a block about the table, which TensorFlow leaves empty
    index, _ = _handle(footer, at)
    for _, row in _rows(_block(data, *index)):
        (offset, n_bytes), _ = _handle(row, 0)
        if offset < end:
            raise ValueError(f"two of its blocks share byte {offset:,}")
        end = offset + n_bytes
        yield from _rows(_block(data, offset, n_bytes))


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and length of a block, and where the next number begins."""
    offset, at = _varint(data, at)
    n_bytes, at = _varint(data, at)
    return (offset, n_bytes), at


def _block(data: bytes, offset: int, n_bytes: int) -> bytes:
    block, end = data[offset : offset + n_bytes], offset + n_bytes
    trailer = data[end : end + _TRAILER]
    if len(trailer) < _TRAILER:
        raise ValueError(f"its block at byte {offset:,} ends beyond it")
    if _masked(crc32c(block + trailer[:1])) != int.from_bytes(trailer[1:], "little"):
        raise ValueError(f"the CRC-32C of its block at byte {offset:,} is wrong")
    if trailer[0]:
        raise ValueError("it is compressed, which TensorFlow's are not")
    return block


def _rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Rows (key, value). A key is stored without the beginning that it shares with the key before; the block
    ends with a list of the rows that have whole keys, for a search, and its length.
    """
    end = len(block) - 4 * (1 + int.from_bytes(block[-4:], "little"))
    at, key = 0, b""
    while at < end:
        n_shared, at = _varint(block, at)
        n_own, at = _varint(block, at)
        n_value, at = _varint(block, at)
        if n_shared > len(key) or at + n_own + n_value > end:
            raise ValueError("a row is longer than its block")
        if n_shared + n_own > _LONGEST_NAME:
            raise ValueError(f"it has a name of more than {_LONGEST_NAME} bytes")
        key, at = key[:n_shared] + block[at : at + n_own], at + n_own
        yield key, block[at : at + n_value]
        at += n_value


def _n_shards(header: bytes) -> int:
    """From the message BundleHeaderProto, which stands under the empty name."""
    numbers, _ = _message(header)
    if numbers.get(2, 0) != 0:
        raise ValueError("a machine wrote it whose numbers have their bytes the other way round")
    if numbers.get(1, 0) < 1:
        raise ValueError("it does not say how many data files there are")
    return numbers[1]


def _entry(prefix: Path, name: str, row: bytes, n_shards: int) -> Entry:
    """From a message BundleEntryProto."""
    numbers, parts = _message(row)
    if 7 in parts:
        raise ValueError(f"{name} is stored in slices, which are not read")
    _, shape_parts = _message(parts.get(2, [b""])[-1])
    shape = tuple(_message(dimension)[0].get(1, 0) for dimension in shape_parts.get(2, []))
    dtype, shard = _DTYPE_NAMES.get(numbers.get(1, 0), f"number {numbers.get(1, 0)}"), numbers.get(3, 0)
    if shard >= n_shards:
        raise ValueError(f"{name} lies in data file {shard} of {n_shards}, counted from 0")
    path = prefix.with_name(f"{prefix.name}.data-{shard:05}-of-{n_shards:05}")
    entry = Entry(name, dtype, shape, path, numbers.get(4, 0), numbers.get(5, 0), numbers.get(6, 0))
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{name} has {len(shape)} dimensions")
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != entry.n_bytes:
        raise ValueError(f"{name} has shape {list(shape)} of {dtype}, but {entry.n_bytes:,} bytes")
    return entry


def _message(data: bytes) -> tuple[dict[int, int], dict[int, list[bytes]]]:
    """A protobuf message: its numbers, and its strings and inner messages, by the number of the field."""
    numbers: dict[int, int] = {}
    parts: dict[int, list[bytes]] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            numbers[field], at = _varint(data, at)
            continue
        n_bytes = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            n_bytes, at = _varint(data, at)
        part, at = data[at : at + n_bytes], at + n_bytes
        if (not n_bytes and kind != 2) or at > len(data):
            raise ValueError("one of its rows is not a protobuf message")
        if kind == 2:
            parts.setdefault(field, []).append(part)
        else:
            numbers[field] = int.from_bytes(part, "little")
    return numbers, parts


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where the next one begins."""
    number = shift = 0
    while shift < 64:
        byte = data[at]
        number, at, shift = number | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise ValueError("one of its numbers has more than 64 bits")


def _masked(checksum: int) -> int:
    """A CRC-32C as LevelDB stores it: a checksum over data with checksums in it would be weak."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _size_of(path: Path) -> int:
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def _tensorflow() -> Any:
    """TensorFlow's version 1 interface, which OpenAI used, without its start-up messages."""
    require_tensorflow()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it announces them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import tensorflow as tf
        except Exception as error:  # noqa: BLE001 - its own dependencies may fail it in any way
            said = (str(error).splitlines() or [""])[0][:300]
            again = f"python -c 'import tensorflow', or again: {INSTALL}"
            raise UsageError("TensorFlow does not start", f"{type(error).__name__}: {said}", again) from None
    tf.get_logger().setLevel("ERROR")
    return tf.compat.v1
