"""Reading in threads: the same bytes, whatever the platform lacks, and an error where the file ends."""

import hashlib
import mmap
import os
from pathlib import Path

import pytest

from gpt2cli.checkpoints import file_block
from gpt2cli.checkpoints.file_block import PIECE, read_block
from gpt2cli.errors import InputError
from gpt2cli.files import open_regular

N_BYTES = 3 * PIECE + 12_345  # more pieces than a small file has, and the last one short


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("block") / "file"
    path.write_bytes(os.urandom(N_BYTES))
    return path


def read_and_hash(path: Path, size: int, lead: int = 0) -> tuple[memoryview, str]:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        return read_block(path, file, size, lead=lead, use=digest.update), digest.hexdigest()


@pytest.mark.parametrize("lacking", ["nothing", "preadv", "advice", "large pages"])
@pytest.mark.parametrize("lead", [0, 37])
def test_the_bytes_come_whole_and_in_order(
    lead: int, lacking: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking == "preadv":
        monkeypatch.delattr(os, "preadv")
    if lacking == "advice":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    if lacking == "large pages":  # what a kernel without them answers is what it answers to nonsense
        monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12_345, raising=False)
    block, sha256 = read_and_hash(path, N_BYTES, lead)
    whole = path.read_bytes()
    assert block == whole
    assert sha256 == hashlib.sha256(whole).hexdigest()
    with open_regular(path) as file:
        assert read_block(path, file, 100, lead=lead, use=None) == whole[:100]


@pytest.mark.parametrize("lacking", ["nothing", "preadv"])
@pytest.mark.parametrize("end", [0, 1000, PIECE, 2 * PIECE + 5])
def test_a_file_that_was_cut_short_is_an_error(
    end: int, lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking == "preadv":
        monkeypatch.delattr(os, "preadv")
    path = tmp_path / "short"
    path.write_bytes(bytes(end))
    with pytest.raises(InputError, match=f"ended at byte {end} of {N_BYTES}") as caught:
        read_and_hash(path, N_BYTES)
    assert caught.value.why == "it changed while it was read"


def test_a_read_may_bring_less_than_was_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, preadv = path.read_bytes(), os.preadv

    def a_part(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(descriptor, [buffers[0][: 1 << 20]], offset)

    monkeypatch.setattr(file_block.os, "preadv", a_part)
    block, sha256 = read_and_hash(path, N_BYTES)
    assert block == whole and sha256 == hashlib.sha256(whole).hexdigest()


def test_a_failing_disk_is_not_taken_for_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(file_block.os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output"):
        read_and_hash(path, N_BYTES)
