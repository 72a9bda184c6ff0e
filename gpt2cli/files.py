"""Atomic files and folders: complete or absent, hashed, written by one process at a time.

Everything that gpt2cli leaves behind is built under a temporary name in the same directory,
flushed to the device, and renamed. A crash between any two system calls leaves the old content
or the new, plus an orphan whose name says which process left it: the next write of the same
name, or `sweep`, removes it. What the files mean is not known here.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from gpt2cli.errors import InputError, ResourceError, UsageError

TEMPORARY = ".partial-"  # marks what an interrupted write left behind
REPLACED = ".replaced-"  # marks a whole folder that was about to be replaced
# mark, name, machine, pid
_LEFTOVER = re.compile(r"(\.partial-|\.replaced-)(.+)-([0-9a-f]{8})-([0-9]{1,9})(?:-old)?")
CHUNK = 1 << 20
# How a file begins that git put in the place of a large one, and what its specification allows in bytes.
_POINTER, _LARGEST_POINTER = b"version https://git-lfs.github.com/spec/", 1024
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


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
    """A binary file that takes the place of `path`, or of what that links to, when the block ends without
    an exception. Raises UsageError as `place_of`.
    """
    with replacing_path(path) as temporary, naming(path), open(temporary, "wb") as file:
        yield file
        flush(file)


@contextlib.contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """As `replacing_file`, with the path of a file that the block writes and flushes."""
    _drop_orphans(path := place_of(path))
    temporary = _temporary_for(path)
    try:
        yield temporary
        os.replace(temporary, path)
        flush_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends, or what the link `path` points to.

    A folder that is there then is replaced; without `replace`, or where a file is there, ResourceError
    is raised. The caller must flush the files in the folder (`write_file` does). Replacing takes two
    renames; after a crash between them `recover` or `sweep` puts the old folder back.
    """
    path = place_of(path)
    recover(path)
    temporary = _temporary_for(path)
    temporary.mkdir(parents=True)
    try:
        with naming(path):
            yield temporary
        flush_directory(temporary)
        _install(temporary, path, replace)
        flush_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """A failed write to the disk does not say which file it was: the OSError gets the name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _WRITE_ERRORS:
            error.filename = str(path)
        raise


def place_of(path: Path) -> Path:
    """`path`, or where it leads if it is a symbolic link: a link stays one, and its target is written.

    Raises UsageError for a link whose target is not there and could not be made.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise UsageError(f"{path}: is a symbolic link that leads to itself", fix=f"rm {path}")
    if not target.parent.is_dir():
        raise UsageError(
            f"{path}: is a symbolic link to {target}",
            f"there is no folder {target.parent}",
            f"mkdir -p {target.parent}, or choose another place",
        )
    return target


def recover(path: Path) -> None:
    """Remove what interrupted writes of `path` left beside it, unless a living process owns it.

    A folder whose replacement did not come in time gets its name back. What cannot be removed
    stays: nothing is raised.
    """
    _drop_orphans(path)
    for aside in _leftovers(path, REPLACED):
        _settle(aside, path)


def point(link: Path, target: Path) -> None:
    """Make the symbolic link `link` name `target`, relative to where the link really lies."""
    temporary = _temporary_for(link)
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    # Both resolved: the system follows "..", beginning at the link, through no other links. But not
    # the target's own name, which may be a link that will lead elsewhere.
    goal = target.parent.resolve() / target.name
    os.symlink(os.path.relpath(goal, link.parent.resolve()), temporary)
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
    for aside in folder.glob(f"{REPLACED}*"):
        if match := _LEFTOVER.fullmatch(aside.name):
            _settle(aside, folder / match[2])
    orphans = sorted(folder.glob(f"{TEMPORARY}*"))
    for orphan in orphans:
        _remove(orphan)
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


def listing_near(path: Path) -> str:
    """The command that lists the nearest folder above a missing path that exists."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path("/"))
    return f"ls -l {shlex.quote(str(folder))}"


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading. Raises InputError for a missing file, for what would hang or never end (a
    directory, a FIFO, a device, a symlink loop), and for a pointer of Git LFS in a file's place.
    """
    try:
        # O_NONBLOCK: opening a FIFO with no writer would otherwise block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path}: {_reason(error)}", fix=listing_near(path)) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise InputError(f"{path}: is {kind}", why="a regular file is needed here")
    os.set_blocking(descriptor, True)
    file = os.fdopen(descriptor, "rb")
    if status.st_size < _LARGEST_POINTER and file.peek(len(_POINTER)).startswith(_POINTER):
        file.close()
        pull = shlex.join(["git", "-C", str(path.parent), "lfs", "pull"])
        raise InputError(f"{path}: is a Git LFS pointer, not the file itself", "git-lfs fetches that", pull)
    return file


def require_writable(folder: Path) -> None:
    """Create `folder` if it is missing and check that it is writable, before any work."""
    import tempfile  # 5 ms, which `gpt2 --help` should not take

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # without a name another process could sweep away
            pass
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot write here", _reason(error), "choose another place, or free some space"
        ) from None


def _install(temporary: Path, path: Path, replace: bool) -> None:
    """Give the folder `temporary` the name `path`. Whatever happens, a whole folder keeps that name."""
    aside = path.with_name(f"{REPLACED}{path.name}-{_me()}")
    if replace and path.is_dir():
        os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        what, why = f"{path}: exists now", "another process made it meanwhile"
        raise ResourceError(what, why, "choose another place, or remove it first") from None
    finally:
        _settle(aside, path)


def _settle(aside: Path, path: Path) -> None:
    """Give a folder put aside its name back, or delete it where the name is taken."""
    with contextlib.suppress(OSError):
        if not path.exists():
            os.rename(aside, path)
            flush_directory(path.parent)
            return
        # Renamed first: cut short, no half of it is there to be given its name back.
        doomed = path.with_name(f"{_temporary_for(path).name}-old")
        os.rename(aside, doomed)
        shutil.rmtree(doomed)


def _drop_orphans(path: Path) -> None:
    for orphan in _leftovers(path, TEMPORARY):
        with contextlib.suppress(OSError):
            _remove(orphan)


def _remove(orphan: Path) -> None:
    shutil.rmtree(orphan) if orphan.is_dir() and not orphan.is_symlink() else orphan.unlink()


def _leftovers(path: Path, mark: str) -> list[Path]:
    """The leftovers next to `path` with this mark and its name that belong to no living process.

    Without an owner in its name, as a download's, it is not ours to judge.
    """
    found = []
    for name in os.listdir(path.parent) if path.parent.is_dir() else ():
        match = _LEFTOVER.fullmatch(name)
        if match and match[1] == mark and match[2] == path.name and not _is_alive(match[3], int(match[4])):
            found.append(path.with_name(name))
    return found


def _is_alive(place: str, pid: int) -> bool:
    """Whether another process may still be at work. One of another machine cannot be asked."""
    if place != machine():
        return True
    if pid == os.getpid():  # of an earlier process of this number: this one has just begun
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:  # EPERM: it is another user's
        return error.errno != errno.ESRCH
    return True


def _temporary_for(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{path.name}-{_me()}")


def _me() -> str:
    return f"{machine()}-{os.getpid()}"


@cache
def machine() -> str:
    """A digest of this machine's name: several may share a disk, and each has a process 7."""
    namespace = ""  # containers may share a host's name
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    name = f"{os.uname().nodename}\n{namespace}"
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
