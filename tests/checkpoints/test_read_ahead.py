"""What was read ahead is the file, or it is read again."""

import os
import threading
from pathlib import Path

import pytest

from gpt2cli.checkpoints import read_ahead, safetensors_file
from gpt2cli.checkpoints.file_block import PIECE
from gpt2cli.checkpoints.read_ahead import reading_ahead, take
from gpt2cli.checkpoints.safetensors_file import read_tensors, write_tensors
from gpt2cli.checkpoints.verified import Status, look
from gpt2cli.errors import InputError
from gpt2cli.files import open_regular


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * PIECE + 5))
    return path


def status_of(path: Path) -> Status:
    with open_regular(path) as file:
        return look(file)


def test_the_file_is_there_once(path: Path) -> None:
    with reading_ahead(path):
        block = take(path, status_of(path))
        assert block == path.read_bytes()
        assert take(path, status_of(path)) is None
    with reading_ahead(path):
        pass
    assert take(path, status_of(path)) is None


@pytest.mark.parametrize("wrong", ["changed", "gone", "folder", "cut short"])
def test_what_is_not_the_file_any_more_is_not_given(
    wrong: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = status_of(path)
    if wrong == "gone":
        path.unlink()
    if wrong == "folder":
        path.unlink()
        path.mkdir()
    if wrong == "cut short":

        def shorter(path: Path, file: object, size: int, **options: object) -> memoryview:
            raise InputError("ended at byte 3")

        monkeypatch.setattr(read_ahead, "read_block", shorter)
    with reading_ahead(path):
        if wrong == "changed":
            read_ahead._under_way[path].join()
            path.write_bytes(b"something else")
            status = status_of(path)
        assert take(path, status) is None


def test_a_program_that_ends_does_not_wait_for_the_rest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, goes_on, seen = threading.Event(), threading.Event(), []
    whole = read_ahead.read_block

    def slowly(path: Path, file: object, size: int, *, lead: int, use: object) -> memoryview:
        def look_and_use(part: memoryview) -> None:
            first.set()
            assert goes_on.wait(20)
            seen.append(len(part))
            use(part)  # type: ignore[operator]

        return whole(path, file, size, lead=lead, use=look_and_use)  # type: ignore[arg-type]

    monkeypatch.setattr(read_ahead, "read_block", slowly)
    with reading_ahead(path):
        assert first.wait(20)
        thread = read_ahead._under_way[path]
    goes_on.set()
    thread.join(20)
    assert not thread.is_alive() and seen == [PIECE] and thread.block is None


def test_tensors_come_from_what_was_read_ahead_and_are_hashed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    path, tensors = tmp_path / "weights", {"a": torch.randn(300, 200), "b": torch.arange(7)}
    sha256 = write_tensors(path, tensors, {})
    monkeypatch.setattr(safetensors_file, "read_block", None)  # it would be called for a second reading
    with reading_ahead(path):
        found = read_tensors(path, sha256, remembered=True)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert found["a"].data_ptr() % 64 == 0
    with reading_ahead(path), pytest.raises(InputError, match="changed"):
        read_tensors(path, "0" * 64, remembered=True)
