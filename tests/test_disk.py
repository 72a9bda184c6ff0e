"""Whole or not at all; and no hanging on what is no file."""

import os
from pathlib import Path

import pytest

from gpt2cli import disk
from gpt2cli.errors import InputError, ResourceError


def test_a_failed_write_leaves_the_old_file_and_no_orphan(tmp_path: Path) -> None:
    path = tmp_path / "a"
    disk.write_file(path, "old")
    with pytest.raises(RuntimeError), disk.replacing_file(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in ("old", "new"):
        with disk.new_folder(path) as folder:
            disk.write_file(folder / "f", content)
    assert (path / "f").read_text() == "new"
    with pytest.raises(RuntimeError), disk.new_folder(path) as folder:
        disk.write_file(folder / "f", "third")
        raise RuntimeError
    assert (path / "f").read_text() == "new" and os.listdir(tmp_path) == ["a"]


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        disk.write_file(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_pointer_moves_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "all" / name).mkdir(parents=True)
        disk.point(tmp_path / "last", tmp_path / "all" / name)
        assert (tmp_path / "last").resolve().name == name
    assert os.readlink(tmp_path / "last") == "all/two", "relative, so that the folder can be moved"


def test_sweep_takes_temporary_names_only(tmp_path: Path) -> None:
    (tmp_path / f"{disk.TEMPORARY}x-1").mkdir()
    (tmp_path / f"{disk.TEMPORARY}y-1").write_text("half")
    (tmp_path / "kept").write_text("whole")
    assert len(disk.sweep(tmp_path)) == 2
    assert os.listdir(tmp_path) == ["kept"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fifo", "not a regular file"),
        ("loop", "symbolic links"),
        ("/dev/zero", "not a regular"),
        (".", "directory"),
    ],
)
def test_what_is_no_file_is_refused_without_hanging(name: str, said: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(InputError, match=said):
        disk.open_regular(tmp_path / name)


def test_the_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    with disk.lock(tmp_path), pytest.raises(ResourceError, match=f"pid {os.getpid()}"), disk.lock(tmp_path):
        pass
    with disk.lock(tmp_path):
        pass


def test_an_unwritable_folder_is_found_out_at_once() -> None:
    with pytest.raises(ResourceError, match="cannot write here"):
        disk.require_writable(Path("/proc/nothing"))
