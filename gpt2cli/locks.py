"""Locks: a folder that one process at a time may write in, and who that is.

The lock is on the file `.lock` in the folder. The kernel frees it when its process dies, however it dies.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from gpt2cli.errors import ResourceError

LOCK = ".lock"


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process.

    Raises ResourceError naming the holder's pid where another process has it, or this one.
    """
    path = folder / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "unknown"
            if holder == str(os.getpid()):  # from Python: neither ended nor closed
                raise ResourceError(
                    f"{folder}: in use by this process",
                    "two runs that write in one folder would destroy each other's files",
                    "end what was begun there; events of a training are ended by close()",
                ) from None
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


def is_locked(folder: Path) -> bool:
    """Whether another process holds the folder; False where that cannot be asked."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
