"""TensorFlow's checkpoint files, written by the tests alone: whole ones, and such as TensorFlow never writes.

`index_of` makes an index of any rows, sound or absurd, with right checksums, so that a reader is tried
behind them. That TensorFlow reads a whole one is a test of its own.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import crc32c
import numpy as np

MAGIC = bytes.fromhex("57fb808b247547db")
FLOAT, DOUBLE, INT32, INT64, BFLOAT16, HALF = 1, 2, 3, 9, 14, 19  # DataType, core/framework/types.proto
NUMBERS = {"float32": FLOAT, "float64": DOUBLE, "int32": INT32, "int64": INT64, "float16": HALF}


def write_bundle(prefix: Path, arrays: Mapping[str, np.ndarray], n_shards: int = 1) -> None:
    """PREFIX.index and its data files, which the arrays fill in turn."""
    rows, data = {b"": header(n_shards)}, [bytearray() for _ in range(n_shards)]
    for n, (name, array) in enumerate(arrays.items()):
        part, raw = data[n % n_shards], array.tobytes()
        number = NUMBERS[array.dtype.name]
        rows[name.encode()] = entry(number, array.shape, n % n_shards, len(part), len(raw), masked(raw))
        part += raw
    for n, part in enumerate(data):
        data_file(prefix, n, n_shards).write_bytes(part)
    prefix.with_name(f"{prefix.name}.index").write_bytes(index_of(sorted(rows.items())))


def data_file(prefix: Path, shard: int, n_shards: int) -> Path:
    return prefix.with_name(f"{prefix.name}.data-{shard:05}-of-{n_shards:05}")


def header(n_shards: int, endianness: int = 0) -> bytes:
    """BundleHeaderProto."""
    return number(1, n_shards) + number(2, endianness) + text(3, number(1, 1))


def entry(
    dtype: int, shape: Iterable[int], shard: int, offset: int, n_bytes: int, checksum: int, more: bytes = b""
) -> bytes:
    """BundleEntryProto."""
    dimensions = b"".join(text(2, number(1, size)) for size in shape)
    place = number(3, shard) + number(4, offset) + number(5, n_bytes)
    return number(1, dtype) + text(2, dimensions) + place + fixed32(6, checksum) + more


def index_of(rows: Iterable[tuple[bytes, bytes]], rows_per_block: int = 1000, compression: int = 0) -> bytes:
    """A sorted-string table of the rows, in the order they come in."""
    rows, file, index = list(rows), bytearray(), []
    for start in range(0, len(rows), rows_per_block):
        some = rows[start : start + rows_per_block]
        index.append((some[-1][0] + b"\xff", add(file, block(some), compression)))
    about = add(file, block([]))
    footer = about + add(file, block(index))
    return bytes(file) + footer.ljust(40, b"\0") + MAGIC


def add(file: bytearray, content: bytes, compression: int = 0) -> bytes:
    """Append a block and its trailer; returns its handle."""
    handle = varint(len(file)) + varint(len(content))
    checked = content + bytes([compression])
    file += checked + masked(checked).to_bytes(4, "little")
    return handle


def block(rows: list[tuple[bytes, bytes]]) -> bytes:
    """Every sixteenth key whole, the others without what they share with the one before."""
    data, before, restarts = bytearray(), b"", [0]
    for n, (key, value) in enumerate(rows):
        if n % 16 == 0:
            before, restarts = b"", restarts + [len(data)] * (n > 0)
        n_shared = 0
        while n_shared < min(len(key), len(before)) and key[n_shared] == before[n_shared]:
            n_shared += 1
        data += varint(n_shared) + varint(len(key) - n_shared) + varint(len(value)) + key[n_shared:] + value
        before = key
    numbers = [*restarts, len(restarts)]
    return bytes(data) + b"".join(n.to_bytes(4, "little") for n in numbers)


def masked(data: bytes) -> int:
    checksum = crc32c.crc32c(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) % 2**32


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def fixed32(field: int, value: int) -> bytes:
    return varint(field << 3 | 5) + value.to_bytes(4, "little")


def varint(value: int) -> bytes:
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])
