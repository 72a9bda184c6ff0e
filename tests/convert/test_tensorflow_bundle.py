"""TensorFlow's checkpoints, read without it: files that it wrote, every kind of damage, and absurd claims.

tests/convert/tensorflow holds what TensorFlow wrote and, in .npz, what it was given.
"""

import os
import random
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_truth import bits_of, require_truth, truth_of
from bundle_writer import (
    BFLOAT16,
    DOUBLE,
    FLOAT,
    HALF,
    INT32,
    MAGIC,
    add,
    block,
    data_file,
    entry,
    header,
    index_of,
    masked,
    number,
    text,
    varint,
    write_bundle,
)
from openai_checkpoint import COMMITTED

from gpt2cli.convert.tensorflow_bundle import DTYPES, read_index, read_tensor
from gpt2cli.errors import Gpt2Error, InputError

MIXED = COMMITTED / "mixed"
Rows = dict[bytes, bytes]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """The prefix of a copy to damage."""
    return Path(shutil.copytree(MIXED, tmp_path / "mixed")) / "mixed"


def test_what_tensorflow_wrote_is_read_bit_for_bit() -> None:
    truth = truth_of(MIXED)
    assert {dtype for dtype, _ in truth.values()} == {"float32", "float64", "float16", "bfloat16", "int64"}
    assert {entry.path.name for entry in read_index(MIXED / "mixed").values()} == {
        f"mixed.data-0000{shard}-of-00003" for shard in range(3)
    }
    require_truth(MIXED / "mixed", truth)


def refused(prefix: Path, name: str) -> InputError:
    """The error, which names the file."""
    with pytest.raises(InputError) as caught:
        for entry in read_index(prefix).values():
            if entry.dtype in DTYPES:
                read_tensor(entry)
    assert caught.value.what.startswith(f"{prefix.parent / name}: ")
    assert len(str(caught.value)) < 1_000
    return caught.value


def test_each_changed_byte_of_the_index_is_an_error_or_changes_nothing(mixed: Path) -> None:
    index, truth = mixed.with_name("mixed.index"), truth_of(MIXED)
    data, n_refused = index.read_bytes(), 0
    for at in range(0, len(data), 3):
        index.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            require_truth(mixed, truth)
        except InputError as error:
            assert error.what.startswith(f"{index}: ")
            n_refused += 1
    assert n_refused > (len(data) - 48) / 3  # the padding of the last 48 bytes means nothing


def test_an_index_cut_short_anywhere_is_refused(mixed: Path) -> None:
    index = mixed.with_name("mixed.index")
    data = index.read_bytes()
    for length in (*range(0, len(data), 9), len(data) - 1):
        index.write_bytes(data[:length])
        refused(mixed, "mixed.index")


@pytest.mark.parametrize("shard", range(3))
def test_a_changed_byte_of_data_is_refused_with_the_tensors_name(mixed: Path, shard: int) -> None:
    path = data_file(mixed, shard, 3)
    data = path.read_bytes()
    entries = [e for e in read_index(mixed).values() if e.path == path and e.n_bytes and e.dtype in DTYPES]
    assert len(entries) > 3
    for damaged in entries:
        at = damaged.offset + damaged.n_bytes // 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        assert f"{damaged.name} is damaged" in refused(mixed, path.name).what


@pytest.mark.parametrize("shard", range(3))
def test_data_that_is_short_missing_or_no_file_is_refused(mixed: Path, shard: int) -> None:
    path = data_file(mixed, shard, 3)
    os.truncate(path, path.stat().st_size - 1)
    assert "is shorter than mixed.index says" in refused(mixed, path.name).what
    path.unlink()
    assert "no such file" in refused(mixed, path.name).what
    os.mkfifo(path)
    assert "not a regular file" in refused(mixed, path.name).what


def test_data_files_of_another_number_are_refused(mixed: Path) -> None:
    for shard in range(3):
        data_file(mixed, shard, 3).rename(data_file(mixed, shard, 4))
    with pytest.raises(InputError, match=r"mixed\.data-0000\d-of-00003: no such file"):
        read_index(mixed)


def test_data_that_is_cut_short_after_the_index_was_read_is_refused(mixed: Path) -> None:
    found = next(e for e in read_index(mixed).values() if e.dtype == "float32" and e.n_bytes)
    os.truncate(found.path, found.offset + 1)
    with pytest.raises(InputError, match="is damaged"):
        read_tensor(found)


RAW = np.arange(6, dtype="<f4").tobytes()
SOUND = {b"": header(1), b"w": entry(FLOAT, (2, 3), 0, 0, 24, masked(RAW))}
# (what an index with right checksums says, a part of why it is refused)
ABSURD: dict[str, tuple[Rows, str]] = {
    "no header": ({b"w": SOUND[b"w"]}, "how many data files"),
    "no data files": (SOUND | {b"": header(0)}, "how many data files"),
    "big-endian": (SOUND | {b"": header(1, endianness=1)}, "other way round"),
    "a second data file": (SOUND | {b"w": entry(FLOAT, (2, 3), 1, 0, 24, 0)}, "data file 1 of 1"),
    "a negative data file": (SOUND | {b"w": entry(FLOAT, (2, 3), 2**64 - 1, 0, 24, 0)}, "data file"),
    "fewer bytes": (SOUND | {b"w": entry(FLOAT, (2, 3), 0, 0, 20, 0)}, "[2, 3] of float32, but 20 bytes"),
    "halves": (SOUND | {b"w": entry(HALF, (2, 3), 0, 0, 24, masked(RAW))}, "[2, 3] of float16, but 24"),
    "doubles": (SOUND | {b"w": entry(DOUBLE, (2, 3), 0, 0, 24, masked(RAW))}, "[2, 3] of float64, but 24"),
    "a negative size": (SOUND | {b"w": entry(FLOAT, (2**64 - 2, 3), 0, 0, 24, 0)}, "but 24 bytes"),
    "many dimensions": (SOUND | {b"w": entry(FLOAT, [1] * 9, 0, 0, 4, 0)}, "9 dimensions"),
    "slices": (SOUND | {b"w": SOUND[b"w"] + text(7, b"")}, "slices"),
    "a row that ends early": (SOUND | {b"w": SOUND[b"w"][:-1]}, "not a protobuf message"),
    "a text longer than its row": (SOUND | {b"w": text(2, b"abc")[:-1]}, "not a protobuf message"),
    "a number that ends early": (SOUND | {b"w": b"\x80"}, "ends within a number"),
    "a number without end": (SOUND | {b"w": b"\x08" + b"\x80" * 30 + b"\0"}, "more than 64 bits"),
    "a group, which is of protobuf's past": (SOUND | {b"w": varint(1 << 3 | 3)}, "not a protobuf message"),
    "a name of 300 bytes": (SOUND | {b"w" * 300: SOUND[b"w"]}, "a name of more than 256 bytes"),
    "a name that is no text": (SOUND | {b"\xff": SOUND[b"w"]}, "utf-8"),
}


@pytest.mark.parametrize(("rows", "why"), ABSURD.values(), ids=list(ABSURD))
def test_absurd_claims_with_right_checksums_are_refused(rows: Rows, why: str, tmp_path: Path) -> None:
    (tmp_path / "x.data-00000-of-00001").write_bytes(RAW)
    (tmp_path / "x.index").write_bytes(index_of(SOUND.items()))
    assert torch.equal(read_tensor(read_index(tmp_path / "x")["w"]), torch.arange(6.0).view(2, 3))
    (tmp_path / "x.index").write_bytes(index_of(rows.items()))
    error = refused(tmp_path / "x", "x.index")
    assert why in error.why and error.fix


HANDLE = varint(0) + varint(30)


def table_of(*blocks: bytes, n_times: int = 1) -> bytes:
    """A table of blocks as they are, each listed so many times."""
    file = bytearray()
    handles = [add(file, content) for content in blocks]
    listed = [(bytes([n]), handle) for n, handle in enumerate(handles * n_times)]
    footer = add(file, block([])) + add(file, block(listed))
    return bytes(file) + footer.ljust(40, b"\0") + MAGIC


def row(n_shared: int, own: bytes, n_value: int, value: bytes) -> bytes:
    """A block of one row, which says of itself what it likes."""
    return varint(n_shared) + varint(len(own)) + varint(n_value) + own + value + bytes(4) + b"\1\0\0\0"


TABLES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "does not end as"),
    "the wrong end": (index_of(SOUND.items())[:-1] + b"\0", "does not end as"),
    "an end alone": (bytes(40) + MAGIC, "CRC-32C"),
    "compressed": (index_of(SOUND.items(), compression=1), "compressed"),
    "one block, many times": (table_of(block([]), n_times=9), "two of its blocks share byte 0"),
    "a value longer than its block": (table_of(row(0, b"", 9, header(1))), "a row is longer"),
    "a key that shares what is not there": (table_of(row(5, b"", 8, header(1))), "a row is longer"),
    "blocks beyond the end": (
        bytes(9) + (HANDLE + varint(2**63) + varint(2**63)).ljust(40, b"\0") + MAGIC,
        "ends beyond it",
    ),
    "an endless number": (b"\xff" * 40 + MAGIC, "more than 64 bits"),
}


@pytest.mark.parametrize(("data", "why"), TABLES.values(), ids=list(TABLES))
def test_tables_that_cannot_be_are_refused(data: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "x.data-00000-of-00001").write_bytes(RAW)
    (tmp_path / "x.index").write_bytes(data)
    assert why in refused(tmp_path / "x", "x.index").why


def test_many_blocks_are_one_table(tmp_path: Path) -> None:
    arrays = {f"w{n:03}": np.array([n], "f4") for n in range(100)}
    write_bundle(tmp_path / "x", arrays)
    raw = [array.tobytes() for array in arrays.values()]
    rows = [(b"", header(1))] + [
        (name.encode(), entry(FLOAT, (1,), 0, 4 * n, 4, masked(raw[n]))) for n, name in enumerate(arrays)
    ]
    for rows_per_block in (1, 7, 100):
        (tmp_path / "x.index").write_bytes(index_of(rows, rows_per_block))
        found = read_index(tmp_path / "x")
        assert [float(read_tensor(entry)) for entry in found.values()] == list(range(100))


def test_a_type_that_no_model_has_is_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.data-00000-of-00001").write_bytes(RAW)
    rows = {b"": header(1), b"a": entry(INT32, (6,), 0, 0, 24, 0), b"b": entry(23, (), 0, 0, 8, 0)}
    (tmp_path / "x.index").write_bytes(index_of(rows.items()))
    assert [entry.dtype for entry in read_index(tmp_path / "x").values()] == ["int32", "number 23"]


def test_claims_of_a_petabyte_cost_no_memory(tmp_path: Path) -> None:
    (tmp_path / "x.data-00000-of-00001").write_bytes(RAW)
    long = [bytes([97 + n // 26 % 26, 97 + n % 26]) * 120 for n in range(600)]
    claims: list[bytes] = [
        index_of((SOUND | {b"w": entry(BFLOAT16, (2**24, 2**25), 0, 0, 2**50, 0)}).items()),
        index_of((SOUND | {b"w": entry(FLOAT, (2, 3), 0, 2**62, 24, 0)}).items()),
        index_of([(b"", number(1, 2**63)), *((name, SOUND[b"w"]) for name in sorted(set(long)))]),
        bytes(2 << 20),
    ]
    tracemalloc.start()
    try:
        for claim in claims:
            (tmp_path / "x.index").write_bytes(claim)
            with pytest.raises(InputError, match=str(tmp_path)):
                read_index(tmp_path / "x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_an_index_without_end_is_not_read_to_its_end(mixed: Path) -> None:
    os.truncate(mixed.with_name("mixed.index"), 1 << 40)  # a hole
    assert "more than 1,048,576 bytes" in refused(mixed, "mixed.index").why


def hurt(generator: random.Random, folder: Path) -> str:
    """Change an index in one of many ways and set its checksums right; returns which."""
    rows = {b"": header(3)} | {
        e.name.encode(): entry(
            {"float32": FLOAT, "float64": DOUBLE, "float16": HALF, "bfloat16": BFLOAT16, "int64": 9}[e.dtype],
            e.shape,
            int(e.path.name[-14:-9]),
            e.offset,
            e.n_bytes,
            e.checksum,
        )
        for e in read_index(folder / "mixed").values()
    }
    name = generator.choice(list(rows))
    row = bytearray(rows[name])
    at = generator.randrange(len(row))
    ways: dict[str, Callable[[], bytes]] = {
        "a bit": lambda: bytes(row[:at] + bytes([row[at] ^ 1 << generator.randrange(8)]) + row[at + 1 :]),
        "noise": lambda: bytes(row[:at] + generator.randbytes(4) + row[at + 4 :]),
        "ones": lambda: bytes(row[:at] + b"\xff" * generator.randrange(1, 9) + row[at:]),
        "cut": lambda: bytes(row[:at]),
        "twice": lambda: bytes(row + row[at:]),
        "another": lambda: rows[generator.choice(list(rows))],
    }
    how = generator.choice(list(ways))
    rows[name] = ways[how]()
    (folder / "mixed.index").write_bytes(index_of(sorted(rows.items()), generator.choice([3, 1000])))
    return f"{how} at {at} of {name!r}"


def require_sense(folder: Path, what: str) -> bool:
    """Whether the index was accepted; then each tensor is what its checksum says."""
    try:
        entries = read_index(folder / "mixed")
        for found in entries.values():
            if found.dtype in DTYPES:
                raw = bits_of(read_tensor(found))
                assert masked(raw) == found.checksum and len(raw) == found.n_bytes, what
                assert raw == found.path.read_bytes()[found.offset :][: found.n_bytes], what
    except Gpt2Error as error:
        assert error.exit_code == 3 and len(str(error)) < 1_000, what
        return False
    except Exception as error:
        raise AssertionError(what) from error
    return True


def require_survival(n_inputs: int, seed: int, mixed: Path) -> None:
    generator = random.Random(seed)
    index = mixed.with_name("mixed.index")
    whole, accepted = index.read_bytes(), 0
    for n in range(n_inputs):
        index.write_bytes(whole)
        accepted += require_sense(mixed.parent, f"seed {seed}, {n}: {hurt(generator, mixed.parent)}")
    assert 0.02 * n_inputs < accepted < 0.6 * n_inputs  # both sides are tried


def test_two_hundred_indexes_that_lie_under_right_checksums(mixed: Path) -> None:
    require_survival(200, 11, mixed)


@pytest.mark.proofs
def test_five_thousand_indexes_that_lie_under_right_checksums(mixed: Path) -> None:
    require_survival(5_000, 12, mixed)


def test_without_tensorflow_a_checkpoint_becomes_a_model_that_generates(
    gpt2: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With None there, an import fails as that of a package that is not installed.
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    done = gpt2("convert", COMMITTED / "gpt2", "--out", tmp_path / "model")
    assert done.code == 0 and "PASS" in done.err, done.err
    said = gpt2("generate", "abc", "--model", tmp_path / "model", "-n", "4", "--temperature", "0")
    assert said.code == 0 and said.out.strip(), said.err
    back = gpt2("convert", tmp_path / "model", "--to", "tensorflow", "--out", tmp_path / "back")
    assert back.code == 2 and "pip install tensorflow" in back.err
    assert not (tmp_path / "back").exists()
