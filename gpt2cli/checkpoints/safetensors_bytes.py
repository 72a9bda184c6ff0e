"""A safetensors file's bytes, copied into our own memory and verified by SHA-256.

A file that is mapped instead, and then cut short, kills the process with SIGBUS; and the format has no
checksum. Nothing here imports torch: that import takes a second, in which `reading_ahead` reads.

SHA-256 is three quarters of the time of loading a 124M model, so GPT2_HOME/verified remembers a hash
with the file's device, inode, size, mtime and ctime, and for generating text it counts while all five
agree. The kernel sets ctime at every change, and no program can put it back. Its clock ticks in steps,
so a file is remembered only if it had been unchanged for SETTLED_NS when the hashing began. A disk that
returns corrupted bytes goes unnoticed this way, so resuming a run, convert, download --verify, evaluate
and inspect always hash.
"""

import contextlib
import hashlib
import io
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gpt2cli import paths
from gpt2cli.errors import InputError, ResourceError, UsageError
from gpt2cli.files import open_regular, write_file

ALIGNMENT = 64  # bytes, at which the data of tensors begins
PIECE = 8 << 20  # bytes a thread reads at a time
SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system in use, FAT's, ticks every two seconds
MOST = 256  # files; the one whose hash was computed longest ago is forgotten first
_READERS = 4
_LARGEST_TABLE = 1 << 20  # bytes; a line has some 150


@dataclass(frozen=True)
class Status:
    """The status of an open file. Two of an unchanged file are equal."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    seen_ns: int = field(compare=False)


_under_way: dict[Path, "Future[tuple[Status, memoryview]]"] = {}


def read_bytes(path: Path, sha256: str | None, *, remembered: bool) -> memoryview:
    """The whole file, so placed that the tensors in it are aligned.

    With `remembered`, a file that had this hash before and is unchanged since is not hashed again.
    Raises InputError if the hash differs from `sha256`.
    """
    with open_regular(path) as file:
        status = look(file)
        is_known = remembered and sha256 is not None and is_verified(status, sha256)
        digest = None if is_known or sha256 is None else hashlib.sha256()
        block = _read_ahead(path, status)
        if block is None:
            block = _read(path, file, status.size, digest.update if digest else None)
        elif digest:
            digest.update(block)
        is_same = look(file) == status
    if is_known and not is_same:
        digest = hashlib.sha256(block)
    if digest is not None and sha256 is not None:
        require_sha256(path, digest.hexdigest(), sha256)
        if remembered and is_same:
            remember(status, sha256)
    return block


@contextlib.contextmanager
def reading_ahead(path: Path) -> Iterator[None]:
    """Read the file during the block, for `read_bytes`. Bytes not requested by its end are freed."""
    is_over = threading.Event()

    def stop_when_over(part: memoryview) -> None:
        if is_over.is_set():  # the program ends, and must not wait for gigabytes
            raise InputError(f"{path}: not needed any more")

    def read() -> tuple[Status, memoryview]:
        with open_regular(path) as file:
            status = look(file)
            return status, _read(path, file, status.size, stop_when_over)

    reader = ThreadPoolExecutor(1)
    _under_way[path] = reader.submit(read)
    try:
        yield
    finally:
        is_over.set()
        _under_way.pop(path, None)
        reader.shutdown(wait=False, cancel_futures=True)


def require_sha256(path: Path, found: str, wanted: str) -> None:
    """Raises InputError if a file's hash is not the recorded one."""
    if found != wanted:
        raise InputError(
            f"{path}: the content has changed since it was written",
            f"SHA-256 is {found[:16]}..., the manifest says {wanted[:16]}...",
            "restore the file from a copy, or use another checkpoint",
        )


def private_memory(size: int) -> mmap.mmap:
    """Zeroed memory that begins with a page, in large pages where the system has them.

    Its first touch is the larger part of reading a file that the kernel has at hand: page by page,
    4 KiB each, a 124M model's 500 MB take three times as long as in pages of 2 MiB.
    """
    # Python's own choice is shared memory, for which systems seldom give large pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel may be built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def look(file: io.BufferedReader) -> Status:
    """The current status of the file, to be taken before it is hashed and passed to `remember`."""
    seen_ns, found = time.time_ns(), os.fstat(file.fileno())
    return Status(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, seen_ns)


def is_verified(status: Status, sha256: str) -> bool:
    """Whether a file of this status had this hash. False also if that is unknown."""
    return _line(status, sha256) in _lines()


def remember(status: Status, sha256: str) -> None:
    """Record this hash for the file, if it still has the status from before it was hashed.

    Does nothing if the file changed too recently or the table is not writable: it is then hashed again.
    """
    if status.seen_ns - status.ctime_ns < SETTLED_NS:
        return
    others = [line for line in _lines() if not line.startswith(f"{status.device} {status.inode} ")]
    lines = [*others[1 - MOST :], _line(status, sha256)]
    # Two programs that write at once: one line is lost, and that file is hashed once more.
    with contextlib.suppress(OSError, UsageError, ResourceError):
        _table().parent.mkdir(parents=True, exist_ok=True)
        write_file(_table(), "".join(f"{line}\n" for line in lines))


def _read_ahead(path: Path, status: Status) -> memoryview | None:
    """The bytes that `reading_ahead` read from the file of this status; waits for the rest."""
    reading = _under_way.pop(path, None)
    if reading is None:
        return None
    try:
        before, block = reading.result()
    except (InputError, OSError):  # the file is read again, and then the error is told
        return None
    return block if before == status else None


def _read(
    path: Path, file: io.BufferedReader, size: int, use: Callable[[memoryview], object] | None
) -> memoryview:
    """The first `size` bytes, by several threads; `use` gets one part after another while the next
    ones are read. InputError if the file ends before.
    """

    def read(start: int) -> memoryview:
        part = block[start : start + PIECE]
        done = 0
        while done < len(part):
            n = os.preadv(file.fileno(), [part[done:]], start + done)
            if not n:
                what = f"{path}: ended at byte {start + done} of {size}"
                raise InputError(what, "it changed while it was read")
            done += n
        return part

    # The tensors shall begin aligned, and other programs' headers before them have any length.
    lead = -(8 + int.from_bytes(os.pread(file.fileno(), 8, 0), "little")) % ALIGNMENT
    block = memoryview(private_memory(max(1, lead + size)))[lead : lead + size]
    readers = ThreadPoolExecutor(_READERS)
    try:
        for part in readers.map(read, range(0, size, PIECE)):
            if use:
                use(part)
    finally:  # an interruption does not wait for the rest of a cold disk
        readers.shutdown(cancel_futures=True)
    return block


def _table() -> Path:
    """A line per file: device, inode, size, mtime_ns, ctime_ns, SHA-256."""
    return paths.gpt2_home() / "verified" / "files.txt"


def _lines() -> list[str]:
    try:
        with open_regular(_table()) as file:
            return file.read(_LARGEST_TABLE).decode("ascii", "replace").splitlines()
    except (InputError, ResourceError, OSError):
        return []


def _line(status: Status, sha256: str) -> str:
    return f"{status.device} {status.inode} {status.size} {status.mtime_ns} {status.ctime_ns} {sha256}"
