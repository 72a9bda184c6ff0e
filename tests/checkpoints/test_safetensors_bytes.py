"""A file's bytes: whole, in order and aligned, read once; an error where the file ends or changes."""

import hashlib
import mmap
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from gpt2cli.checkpoints.safetensors_bytes import ALIGNMENT, PIECE, read_bytes, reading_ahead
from gpt2cli.checkpoints.safetensors_file import read_tensors, write_tensors
from gpt2cli.errors import InputError

N_BYTES = 3 * PIECE + 12_345  # more pieces than a small file has, and the last one short


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes((1000).to_bytes(8, "little") + os.urandom(N_BYTES - 8))
    return path


class Reads:
    """Counts the bytes that come from the disk; `then` is called after the first `n_bytes` of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_bytes = 0
        self.whole = os.preadv
        self.all_read = threading.Event()
        monkeypatch.setattr(os, "preadv", self.read)
        self.lock = threading.Lock()

    def read(self, descriptor: int, parts: list[memoryview], offset: int) -> int:
        n_read = self.whole(descriptor, parts, offset)
        with self.lock:
            self.n_bytes += n_read
        if self.n_bytes >= N_BYTES:
            self.all_read.set()
        return n_read


@pytest.mark.parametrize("lacking", ["nothing", "advice", "large pages"])
@pytest.mark.parametrize("header", [0, 1, 1000, 2**63])
def test_the_bytes_come_whole_in_order_and_aligned(
    header: int, lacking: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking == "advice":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    if lacking == "large pages":  # what a kernel without them answers is what it answers to nonsense
        monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12_345, raising=False)
    with open(path, "r+b") as file:
        file.write(header.to_bytes(8, "little"))
    whole = path.read_bytes()
    block = read_bytes(path, hashlib.sha256(whole).hexdigest(), remembered=False)
    assert block == whole
    data = torch.frombuffer(block, dtype=torch.uint8).data_ptr() + 8 + header
    assert data % ALIGNMENT == 0
    with pytest.raises(InputError, match="changed since it was written"):
        read_bytes(path, "0" * 64, remembered=False)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_the_smallest_files(size: int, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(size))
    assert read_bytes(tmp_path / "x", None, remembered=False) == bytes(size)
    with pytest.raises(InputError, match="not a safetensors file"):
        read_tensors(tmp_path / "x")


@pytest.mark.parametrize("end", [0, 1000, PIECE, 2 * PIECE + 5])
def test_a_file_that_is_cut_short_meanwhile_is_an_error(
    end: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.preadv

    def cut_and_read(descriptor: int, parts: list[memoryview], offset: int) -> int:
        os.truncate(path, end)
        return whole(descriptor, parts, offset)

    monkeypatch.setattr(os, "preadv", cut_and_read)
    with pytest.raises(InputError, match=f"ended at byte {end} of {N_BYTES}") as caught:
        read_bytes(path, None, remembered=False)
    assert caught.value.why == "it changed while it was read"


def test_a_read_may_bring_less_than_was_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, offset: whole(file, [parts[0][: 1 << 20]], offset))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_bytes(path, sha256, remembered=False) == path.read_bytes()


def test_a_failing_disk_is_not_taken_for_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    for _ in (1, 2):
        with pytest.raises(OSError, match="Input/output"), reading_ahead(path):
            read_bytes(path, None, remembered=False)


def test_what_was_read_ahead_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    with reading_ahead(path):
        assert read_bytes(path, None, remembered=False) == path.read_bytes()
        assert reads.n_bytes == N_BYTES
        read_bytes(path, None, remembered=False)  # it is there once
        assert reads.n_bytes == 2 * N_BYTES


@pytest.mark.parametrize("wrong", ["changed", "missing", "folder"])
def test_what_is_not_the_file_any_more_is_read_again(
    wrong: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    if wrong != "changed":
        path.unlink()
    if wrong == "folder":
        path.mkdir()
    with reading_ahead(path):
        if wrong == "changed":
            assert reads.all_read.wait(20)
        else:
            with pytest.raises(InputError):
                read_bytes(path, None, remembered=False)
        if wrong == "folder":
            path.rmdir()
        path.write_bytes(b"something else")
        assert read_bytes(path, None, remembered=False) == b"something else"


def test_a_program_that_ends_does_not_wait_for_the_rest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, goes_on, offsets, whole = threading.Event(), threading.Event(), [], os.preadv
    os.truncate(path, 64 * PIECE)  # half a gigabyte, of which nothing is stored

    def slowly(descriptor: int, parts: list[memoryview], offset: int) -> int:
        begun.set()
        assert goes_on.wait(20)
        offsets.append(offset)
        return whole(descriptor, parts, offset)

    monkeypatch.setattr(os, "preadv", slowly)
    before = set(threading.enumerate())
    with reading_ahead(path):
        assert begun.wait(20)
    goes_on.set()
    over = time.monotonic() + 20
    while set(threading.enumerate()) - before and time.monotonic() < over:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
    assert len(offsets) < 32


def test_tensors_come_from_what_was_read_ahead_and_are_hashed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tensors = tmp_path / "weights", {"a": torch.randn(300, 200), "b": torch.arange(7)}
    sha256 = write_tensors(path, tensors, {})
    reads = Reads(monkeypatch)
    with reading_ahead(path):
        found = read_tensors(path, sha256, remembered=True)
    assert reads.n_bytes == path.stat().st_size
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert found["a"].data_ptr() % ALIGNMENT == 0
    with reading_ahead(path), pytest.raises(InputError, match="changed"):
        read_tensors(path, "0" * 64, remembered=True)
