"""Our safetensors reader and writer against the library's, and against damage."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from gpt2cli.checkpoints.safetensors_bytes import ALIGNMENT
from gpt2cli.checkpoints.safetensors_file import DTYPES, read_tensors, write_tensors
from gpt2cli.errors import InputError


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    every = {f"a.{name}": torch.randn(3, 5).mul(50).to(dtype) for name, dtype in DTYPES.items()}
    return every | {"scalar": torch.tensor(3.5), "turned": torch.randn(4, 6).T, "long": torch.randn(100_003)}


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.safetensors", some_tensors()
    digest = write_tensors(path, tensors, {"format": "pt"})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    theirs = safetensors.torch.load_file(path)
    assert theirs.keys() == tensors.keys()
    assert all(
        torch.equal(theirs[name], tensor) and theirs[name].dtype == tensor.dtype
        for name, tensor in tensors.items()
    )
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    safetensors.torch.save_file(tensors, path)
    ours = read_tensors(path)
    assert ours.keys() == tensors.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in tensors.items())


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    digest = write_tensors(path, some_tensors(), {})
    whole = bytearray(path.read_bytes())
    whole[-7] ^= 4
    path.write_bytes(whole)
    with pytest.raises(InputError, match="changed since it was written"):
        read_tensors(path, digest)
    read_tensors(path)  # the format itself has no checksum: without the manifest nobody would know


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{nonsense", "not JSON"),
        ([1, 2], "not a JSON object"),
        ({"w": 5}, "broken header entry"),
        ({"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, "broken header entry"),
        ({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}, "does not fit"),
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "does not fit"),
        ({"w": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}, "does not fit"),
        ({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, "does not fit"),
        ({"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "does not fit"),
        ({"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, "is empty"),
    ],
)
def test_a_header_that_lies_is_refused(header: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read_tensors(raw(tmp_path / "x.safetensors", header, b"\0" * 8))


def test_a_huge_header_and_a_short_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="header claims"):
        read_tensors(path)
    path.write_bytes(b"123")
    with pytest.raises(InputError, match="not a safetensors file"):
        read_tensors(path)
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "absent")
    with pytest.raises(InputError, match="directory"):
        read_tensors(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="not a regular file"):
        read_tensors(tmp_path / "fifo")


@pytest.mark.parametrize("excess", range(0, 66, 3))
def test_tensors_are_aligned_views_of_one_block(excess: int, tmp_path: Path) -> None:
    entries = {
        "a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},
        "b": {"dtype": "F32", "shape": [3], "data_offsets": [64, 76]},
        "c": {"dtype": "F32", "shape": [1], "data_offsets": [76, 80]},
    }
    header = json.dumps(entries).encode() + b" " * excess  # other programs' headers have any length
    values = torch.arange(20.0)
    a, b, c = read_tensors(raw(tmp_path / "x", header, values.numpy().tobytes())).values()
    assert torch.equal(torch.cat([a, b, c]), values)
    assert {tensor.data_ptr() % ALIGNMENT for tensor in (a, b, c)} == {0}
    assert b.data_ptr() - a.data_ptr() == 64  # no copy; c cannot be a view


def test_a_file_that_is_cut_or_removed_later_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.arange(1_000_000.0)}, {})
    found = read_tensors(path)["a"]
    os.truncate(path, 0)  # a mapped file would kill this process here
    assert torch.equal(found, torch.arange(1_000_000.0))
    assert str(path) not in Path("/proc/self/maps").read_text()
