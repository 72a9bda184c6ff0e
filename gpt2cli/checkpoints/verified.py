"""Owns the memory of which files were hashed before, so that the same file is not hashed each time.

SHA-256 is three quarters of the time of loading a 124M model: 0.3 of 0.4 s. GPT2_HOME/verified
remembers a hash with the file's device, inode, size, mtime and ctime, and it counts while all five
agree. Why that is enough for generating text:

- ctime is set by the kernel at every change and cannot be put back, as mtime can.
- Its clock ticks in steps: a change in the same tick as the hashing could not be seen. So a file is
  remembered only if it had been left alone for SETTLED_NS when the hashing began (git calls younger
  ones racily clean). A model that was just saved is hashed until it is that old: the hash in its
  manifest was computed from what was sent to the disk, which proves nothing of what lies there.
- Another file under the same name has another inode. A copy, even with its times, has another ctime.

It does not see what no clock records: a disk that returns other bytes than it was given, a file
system without a ctime of its own (FAT), or a program that keeps the file mapped for writing. So
whoever proves something hashes: resuming a run, convert, download --verify, evaluate, inspect. If
GPT2_HOME cannot be written, or the table is lost or damaged, everything is hashed each time.
"""

import contextlib
import io
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from gpt2cli import paths
from gpt2cli.errors import InputError, UsageError
from gpt2cli.files import open_regular, write_file

SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system in use, FAT's, ticks every two seconds
MOST = 256  # files; the one whose hash was computed longest ago is forgotten first
_LARGEST_TABLE, _LONGEST_LINE = 1 << 20, 256  # bytes; a line has some 150


@dataclass(frozen=True)
class Status:
    """What the system says of an open file. Two of an unchanged file are equal."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    seen_ns: int = field(compare=False)


def look(file: io.BufferedReader) -> Status:
    """The status of the file at this moment: before it is hashed, to be remembered."""
    seen_ns, found = time.time_ns(), os.fstat(file.fileno())
    return Status(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, seen_ns)


def is_verified(status: Status, sha256: str) -> bool:
    """Whether a file of this status had this hash. False also where nothing can be known."""
    return _line(status, sha256) in _lines()


def remember(status: Status, sha256: str) -> None:
    """The file that had this status before it was hashed, and has it still, has this hash.

    Nothing happens where it is too young, or the table cannot be written: it will be hashed again.
    """
    if status.seen_ns - status.ctime_ns < SETTLED_NS:
        return
    others = [line for line in _lines() if not line.startswith(_name(status))]
    lines = [*others[1 - MOST :], _line(status, sha256)]
    # Two programs that write at once: one line is lost, and that file is hashed once more.
    with contextlib.suppress(OSError, UsageError):
        _table().parent.mkdir(parents=True, exist_ok=True)
        write_file(_table(), "".join(f"{line}\n" for line in lines))


def _table() -> Path:
    """A line a file: device, inode, size, mtime_ns, ctime_ns, SHA-256."""
    return paths.gpt2_home() / "verified" / "files.txt"


def _lines() -> list[str]:
    data = b""
    with contextlib.suppress(InputError, OSError), open_regular(_table()) as file:
        data = file.read(_LARGEST_TABLE)
    lines = data.decode("ascii", "replace").split("\n")
    return [line for line in lines if 0 < len(line) <= _LONGEST_LINE]  # noise is not carried on


def _name(status: Status) -> str:
    return f"{status.device} {status.inode} "


def _line(status: Status, sha256: str) -> str:
    return f"{_name(status)}{status.size} {status.mtime_ns} {status.ctime_ns} {sha256}"
