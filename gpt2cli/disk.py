"""Owns how bytes reach the disk: whole or not at all, hashed, and by one writer at a time.

Every file and folder that gpt2cli leaves behind is built under a temporary name in the same
directory, flushed to the device, and renamed. A crash between any two system calls leaves
either the old content or the new, plus an orphan with a name that `sweep` recognises.
What the files mean is not known here.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gpt2cli.errors import InputError, ResourceError

TEMPORARY = ".partial-"  # marks what an interrupted write left behind
REPLACED = ".replaced-"  # marks a whole folder that was about to be replaced
CHUNK = 1 << 20


def write_file(path: Path, content: bytes | str) -> None:
    """Replace `path` with `content` atomically; text is stored as UTF-8."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing_file(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with `value` as indented JSON; NaN is refused because JSON has none."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends without an exception."""
    temporary = _temporary_for(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            flush(file)
        os.replace(temporary, path)
        flush_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends; an existing `path` is replaced.

    The files in it must be flushed by whoever writes them (`write_file` does). Replacing a folder
    takes two renames; after a crash between them `sweep` puts the old one back.
    """
    temporary = _temporary_for(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        flush_directory(temporary)
        if path.exists():
            old = path.with_name(f"{REPLACED}{path.name}")
            os.rename(path, old)
            try:
                os.rename(temporary, path)
            except OSError:
                os.rename(old, path)
                raise
            discard(old)
        else:
            os.rename(temporary, path)
        flush_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def point(link: Path, target: Path) -> None:
    """Make the symbolic link `link` name `target`, which lies in the same directory or below."""
    temporary = _temporary_for(link)
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    os.symlink(os.path.relpath(target, link.parent), temporary)
    os.replace(temporary, link)
    flush_directory(link.parent)


def discard(folder: Path) -> None:
    """Delete a folder so that, cut short, no half of it is left under its own name."""
    doomed = _temporary_for(folder)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def sweep(folder: Path) -> list[Path]:
    """Delete what interrupted writes left in `folder`; a folder whose replacement did not come in
    time gets its name back. Only for the holder of the folder's lock.
    """
    for old in folder.glob(f"{REPLACED}*"):
        path = folder / old.name.removeprefix(REPLACED)
        if path.exists():
            discard(old)
        else:
            os.rename(old, path)
    orphans = sorted(folder.glob(f"{TEMPORARY}*"))
    for orphan in orphans:
        shutil.rmtree(orphan) if orphan.is_dir() and not orphan.is_symlink() else orphan.unlink()
    return orphans


def flush(file: BinaryIO) -> None:
    """Push the file's content through Python's and the kernel's buffers to the device."""
    file.flush()
    os.fsync(file.fileno())


def flush_directory(folder: Path) -> None:
    """Make the renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file, in hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading, refusing what would hang or never end.

    Raises InputError for a directory, a FIFO, a device, a symlink loop or a missing file.
    """
    try:
        # O_NONBLOCK: opening a FIFO with no writer would otherwise block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path}: {_reason(error)}", fix=f"ls -l {path.parent}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise InputError(f"{path}: is {kind}", why="a regular file is needed here")
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")


def require_writable(folder: Path) -> None:
    """Create `folder` if it is missing and prove that a file can be made in it, before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary_for(folder / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot write here", _reason(error), "choose another place, or free some space"
        ) from None


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the kernel frees it when the process dies, however it dies.

    Raises ResourceError naming the holder's pid where another process has it.
    """
    path = folder / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "unknown"
            raise ResourceError(
                f"{folder}: in use by another process (pid {holder})",
                "two runs that write in one folder would destroy each other's files",
                f"wait for it, or stop it: kill {holder}",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(descriptor)


def _temporary_for(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
