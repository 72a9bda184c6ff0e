"""Room on a disk: a check before a large write, and the error for a disk that is full."""

import errno
import shutil
from pathlib import Path

from gpt2cli.errors import ResourceError

FULL = (errno.ENOSPC, errno.EDQUOT)


def require_room(path: Path, n_bytes: int, fix: str) -> None:
    """Raise ResourceError with `fix` unless the disk of `path`, which need not exist, has that many free."""
    free = free_bytes(path)
    if n_bytes > free:
        raise ResourceError(
            f"{path}: the disk has too little room",
            f"{n_bytes:,} bytes are needed, {free:,} are free",
            fix,
        )


def full_disk(path: Path, fix: str, n_bytes: int | None = None) -> ResourceError:
    """The error for a write of `n_bytes` to `path` that found no room."""
    free = f"{free_bytes(path):,} bytes are free"
    why = f"{n_bytes:,} bytes are needed, {free}" if n_bytes else free
    return ResourceError(f"{path}: the disk is full", why, fix)


def free_bytes(path: Path) -> int:
    """Free for this user, where `path` lies or its nearest parent that exists."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
