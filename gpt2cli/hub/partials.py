"""Owns the unfinished files beside a download: whose they are, of which file, and who may continue one.

No lock is asked, because locks lie on some file systems. Each process writes only a file of its
own; what a dead one left is adopted by a rename, which has one winner. Everything that must be
known of a partial is in its name, so that no second file can disagree with it:

    .partial-NAME-IDENTITY-HOST-BOOT-PID

IDENTITY is a digest of the address and of what the server calls this version of the file.
"""

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpt2cli.files import TEMPORARY, is_running, machine

# A living download shows itself more often: time-outs and pauses end earlier.
SILENT_SECONDS = 15 * 60.0
# Written but perhaps not on the device when the power failed: `download.py` flushes in half such steps.
UNSURE_BYTES = 32 << 20


@dataclass(frozen=True)
class Partial:
    path: Path
    identity: str
    n_bytes: int  # from the beginning on, that can be relied on


def identity_of(address: str, validator: str) -> str:
    return hashlib.sha256(f"{address}\n{validator}".encode()).hexdigest()[:16]


def take(out: Path) -> Partial | None:
    """This process's own partial of `out`, or else the largest that nobody writes any more."""
    mine = [path for path in _of(out) if _owner(path) == _me()]
    if mine:
        return Partial(mine[0], _identity(mine[0]), mine[0].stat().st_size)
    for path, n_bytes in sorted(_orphans(out).items(), key=lambda item: item[1], reverse=True):
        own = _name(out, _identity(path))
        is_same_boot = _owner(path)[:2] == _me()[:2]
        try:
            os.rename(path, own)
        except FileNotFoundError:
            continue  # another process was quicker
        return Partial(own, _identity(own), n_bytes if is_same_boot else max(0, n_bytes - UNSURE_BYTES))
    return None


def n_begun(out: Path) -> int:
    """Bytes of `out` that are here already and need no space any more."""
    mine = [path.stat().st_size for path in _of(out) if _owner(path) == _me()]
    return max([0, *mine, *_orphans(out).values()])


def begin(out: Path, identity: str) -> Partial:
    """A new, empty partial, in the place of any other of this process."""
    for path in _of(out):
        if _owner(path) == _me():
            path.unlink()
    path = _name(out, identity)
    # Never an old file made empty: whoever still has that open must not write into this one.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    return Partial(path, identity, 0)


def drop(partial: Partial) -> None:
    with contextlib.suppress(FileNotFoundError):
        partial.path.unlink()


def clean(out: Path) -> None:
    """Delete the partials of `out` that are this process's own or nobody's."""
    for path in [*_orphans(out), *(path for path in _of(out) if _owner(path) == _me())]:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _of(out: Path) -> list[Path]:
    start = f"{TEMPORARY}{out.name}-"
    # Not glob: a name may hold brackets. The count of parts tells `a` from `a-b`.
    if not out.parent.is_dir():
        return []
    return [
        path
        for path in out.parent.iterdir()
        if path.name.startswith(start) and path.name.removeprefix(start).count("-") == 3
    ]


def _orphans(out: Path) -> dict[Path, int]:
    """{partial of a dead process: its size}"""
    found = {}
    for path in _of(out):
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            if _owner(path) != _me() and _is_orphan(path, facts.st_mtime):
                found[path] = facts.st_size
    return found


def _is_orphan(path: Path, written: float) -> bool:
    host, boot, pid = _owner(path)
    if host == _me()[0] and boot == _me()[1] and pid.isdecimal() and not is_running(int(pid)):
        return True
    return (host == _me()[0] and boot != _me()[1]) or time.time() - written > SILENT_SECONDS


def _name(out: Path, identity: str) -> Path:
    return out.with_name(f"{TEMPORARY}{out.name}-{'-'.join((identity, *_me()))}")


def _identity(path: Path) -> str:
    return path.name.rsplit("-", 4)[1]


def _owner(path: Path) -> tuple[str, str, str]:
    host, boot, pid = path.name.rsplit("-", 3)[1:]
    return host, boot, pid


def _me() -> tuple[str, str, str]:
    return (*_machine(), str(os.getpid()))


@cache
def _machine() -> tuple[str, str]:
    """Digests of this machine and of its start: numbers of processes begin anew with it."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return machine(), hashlib.sha256(boot.encode("ascii")).hexdigest()[:8]
