"""Whole or not at all; and no hanging on what is no file."""

import concurrent.futures
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpt2cli import files, locks
from gpt2cli.errors import InputError, ResourceError, UsageError


def test_a_failed_write_leaves_the_old_file_and_no_orphan(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_file(path, "old")
    with pytest.raises(RuntimeError), files.replacing_file(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in ("old", "new"):
        with files.new_folder(path) as folder:
            files.write_file(folder / "f", content)
    assert (path / "f").read_text() == "new"
    with pytest.raises(RuntimeError), files.new_folder(path) as folder:
        files.write_file(folder / "f", "third")
        raise RuntimeError
    assert (path / "f").read_text() == "new" and os.listdir(tmp_path) == ["a"]


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files.write_file(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_pointer_moves_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "all" / name).mkdir(parents=True)
        files.point(tmp_path / "last", tmp_path / "all" / name)
        assert (tmp_path / "last").resolve().name == name
    assert os.readlink(tmp_path / "last") == "all/two", "relative, so that the folder can be moved"


def test_sweep_takes_temporary_names_only(tmp_path: Path) -> None:
    (tmp_path / f"{files.TEMPORARY}x-1").mkdir()
    (tmp_path / f"{files.TEMPORARY}y-1").write_text("half")
    (tmp_path / "kept").write_text("whole")
    assert len(files.sweep(tmp_path)) == 2
    assert os.listdir(tmp_path) == ["kept"]


def test_one_process_sweeps_while_another_asks_whether_it_can_write(tmp_path: Path) -> None:
    """As the ranks of a training do that open one prepared folder at the same moment."""
    over = threading.Event()

    def keep_sweeping() -> None:
        while not over.is_set():
            files.sweep(tmp_path)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        swept = pool.submit(keep_sweeping)
        try:
            for _ in range(2000):
                files.require_writable(tmp_path)
        finally:
            over.set()
        swept.result()


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
        files.open_regular(tmp_path / name)


def test_the_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    holding = (
        "import sys; from gpt2cli import locks\nwith locks.lock(locks.Path(sys.argv[1])): input(print())"
    )
    command = [sys.executable, "-c", holding, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        with pytest.raises(ResourceError, match=f"pid {other.pid}") as caught, locks.lock(tmp_path):
            pass
        assert caught.value.fix.endswith(f"kill {other.pid}")
        other.kill()
    with locks.lock(tmp_path), pytest.raises(ResourceError, match="by this process"), locks.lock(tmp_path):
        pass
    with locks.lock(tmp_path):
        pass


def test_an_unwritable_folder_is_found_out_at_once() -> None:
    with pytest.raises(ResourceError, match="cannot write here"):
        files.require_writable(Path("/proc/nothing"))


def as_left_by(mark: str, name: str, pid: int, machine: str | None = None) -> str:
    return f"{mark}{name}-{machine or files.machine()}-{pid}"


@pytest.fixture(scope="module")
def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def folder_with(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "f").write_text(content)
    return path


def save_over(path: Path, content: str, *, replace: bool = True) -> None:
    with files.new_folder(path, replace=replace) as folder:
        files.write_file(folder / "f", content)


def killed_at(n: int, path: Path) -> bool:
    """Whether replacing `path` died by its n-th rename or deletion, counted from one."""
    child = os.fork()
    if child == 0:
        seen: list[str] = []

        def die_at_the_nth(event: str, arguments: object) -> None:
            if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
                seen.append(event)
                if len(seen) == n:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            with files.new_folder(path) as folder:
                files.write_file(folder / "f", "new")
                sys.addaudithook(die_at_the_nth)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_replacement_killed_at_any_call_is_mended_by_the_next(tmp_path: Path) -> None:
    n, seen = 1, set()
    while True:
        place = tmp_path / str(n)
        path = folder_with(place / "m", "old")
        if not killed_at(n, path):
            break
        seen.add((path.exists(), len(list(place.glob(f"{files.REPLACED}*")))))
        files.recover(path)
        assert (path / "f").read_text() in ("old", "new") and os.listdir(place) == ["m"], n
        shutil.rmtree(place)
        folder_with(place / "m", "old")
        assert killed_at(n, path)
        for content in ("third", "fourth"):
            save_over(path, content)
            assert (path / "f").read_text() == content and os.listdir(place) == ["m"], n
        n += 1
    assert {(True, 0), (False, 1), (True, 1)} <= seen, "it died before, between and after the two renames"


def test_a_folder_put_aside_gets_its_name_back(tmp_path: Path, dead_pid: int) -> None:
    aside = tmp_path / as_left_by(files.REPLACED, "m", dead_pid)
    folder_with(aside, "old")
    with pytest.raises(RuntimeError), files.new_folder(tmp_path / "m"):
        assert (tmp_path / "m/f").read_text() == "old"
        raise RuntimeError
    assert os.listdir(tmp_path) == ["m"]
    folder_with(aside, "older")
    files.recover(tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"] and (tmp_path / "m/f").read_text() == "old"


def test_sweep_settles_folders_put_aside(tmp_path: Path, dead_pid: int) -> None:
    folder_with(tmp_path / as_left_by(files.REPLACED, "step-000006", dead_pid), "six")
    folder_with(tmp_path / "step-000009", "nine")
    folder_with(tmp_path / as_left_by(files.REPLACED, "step-000009", dead_pid), "older nine")
    files.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["step-000006", "step-000009"]
    assert (tmp_path / "step-000009/f").read_text() == "nine"


def test_only_orphans_of_the_same_name_are_deleted(tmp_path: Path, dead_pid: int) -> None:
    living = os.getppid()
    kept = {
        as_left_by(files.TEMPORARY, "m-2", dead_pid),
        as_left_by(files.TEMPORARY, "m", living),
        as_left_by(files.TEMPORARY, "m", dead_pid, "00000000"),  # another machine's process may live
        as_left_by(files.REPLACED, "m", living),
        f"{files.TEMPORARY}m",
    }
    for name in kept | {as_left_by(files.TEMPORARY, "m", dead_pid)}:
        folder_with(tmp_path / name, "half")
    (tmp_path / as_left_by(files.TEMPORARY, "m", os.getpid())).write_text("of a process of the same number")
    save_over(tmp_path / "m", "new")
    assert set(os.listdir(tmp_path)) == kept | {"m"}
    (tmp_path / as_left_by(files.TEMPORARY, "n", dead_pid)).write_text("half")
    files.write_file(tmp_path / "n", "new")
    assert set(os.listdir(tmp_path)) == kept | {"m", "n"}


def test_what_cannot_be_cleared_up_hinders_nobody(
    tmp_path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: object, **named: object) -> None:
        if not named.get("ignore_errors"):
            raise PermissionError

    folder_with(tmp_path / "m", "old")
    for mark in (files.TEMPORARY, files.REPLACED):
        folder_with(tmp_path / as_left_by(mark, "m", dead_pid), "left")
    monkeypatch.setattr(shutil, "rmtree", forbidden)
    save_over(tmp_path / "m", "new")
    assert (tmp_path / "m/f").read_text() == "new"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_appeared_meanwhile_is_not_replaced_unasked(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    with (
        pytest.raises(ResourceError, match="exists now"),
        files.new_folder(path, replace=kind == "file") as folder,
    ):
        files.write_file(folder / "f", "mine")
        folder_with(path, "theirs") if kind == "folder" else path.write_text("theirs")
    assert (path / "f" if kind == "folder" else path).read_text() == "theirs"
    assert os.listdir(tmp_path) == ["m"]


def test_a_failed_second_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = folder_with(tmp_path / "m", "old"), os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).name.startswith(files.TEMPORARY):
            raise OSError(errno.EIO, "broken")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="broken"):
        save_over(path, "new")
    assert (path / "f").read_text() == "old" and os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("is_there", [True, False], ids=["link", "dangling"])
def test_a_link_stays_one_and_its_target_is_written(is_there: bool, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    for name in ("m", "n"):
        (tmp_path / name).symlink_to(f"far/{name}")
    if is_there:
        folder_with(tmp_path / "far/m", "old")
        (tmp_path / "far/n").write_text("old")
    save_over(tmp_path / "m", "new")
    files.write_file(tmp_path / "n", "new")
    assert (tmp_path / "m").is_symlink() and (tmp_path / "far/m/f").read_text() == "new"
    assert (tmp_path / "n").is_symlink() and (tmp_path / "far/n").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["far", "m", "n"]
    assert sorted(os.listdir(tmp_path / "far")) == ["m", "n"]


@pytest.mark.parametrize(("leads_to", "said"), [("nowhere/m", "no folder"), ("m", "leads to itself")])
def test_a_link_to_nowhere_is_said(leads_to: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to(leads_to)
    for write in (save_over, files.write_file):
        with pytest.raises(UsageError, match=said):
            write(tmp_path / "m", "new")
    assert os.listdir(tmp_path) == ["m"]


def test_a_pointer_in_a_folder_behind_a_link(tmp_path: Path) -> None:
    folder_with(tmp_path / "deep/er/run/all/one", "one")
    (tmp_path / "run").symlink_to("deep/er/run")
    for link, target in (
        ("run/last", "deep/er/run/all/one"),
        ("deep/er/run/best", "run/all/one"),
        ("run/far", "deep"),
    ):
        files.point(tmp_path / link, tmp_path / target)
        assert (tmp_path / link).resolve() == (tmp_path / target).resolve()
    assert os.readlink(tmp_path / "run/last") == "all/one"
