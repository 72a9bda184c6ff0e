"""Owns bringing a file into memory quickly: by several threads, into large pages.

The memory is our own. A file that is mapped instead, and then cut short, kills the process with
SIGBUS. What is in the file, and whether it is the right file, is known to tensor_file.py.
"""

import contextlib
import io
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpt2cli.errors import InputError

PIECE = 8 << 20  # bytes a thread reads at a time
READERS = 4
ALIGNMENT = 64  # bytes, at which the data of tensors begins


def read_block(
    path: Path, file: io.BufferedReader, size: int, *, lead: int, use: Callable[[memoryview], object] | None
) -> memoryview:
    """The first `size` bytes of an open file, `lead` bytes after the beginning of a page.

    `use` is called with one part after another, in order, while the next ones are read.
    Raises InputError where the file ends before that.
    """

    def read(start: int) -> memoryview:
        part = block[start : start + PIECE]
        done = 0
        while done < len(part):
            n = _read_at(file, part[done:], start + done)
            if not n:
                raise InputError(
                    f"{path}: ended at byte {start + done} of {size}", "it changed while it was read"
                )
            done += n
        return part

    block, starts = memoryview(private_memory(lead + size))[lead:], range(0, size, PIECE)
    if len(starts) < 2 or not hasattr(os, "preadv"):  # one position in the file is for one thread
        for start in starts:
            part = read(start)
            if use:
                use(part)
        return block
    readers = ThreadPoolExecutor(READERS)
    try:
        for part in readers.map(read, starts):
            if use:
                use(part)
    finally:  # whoever interrupts a cold disk does not wait for the rest of the file
        readers.shutdown(cancel_futures=True)
    return block


def lead_of(file: io.BufferedReader) -> int:
    """The `lead` for a safetensors file: its tensors, not its header, shall begin aligned.

    Other programs' headers have any length.
    """
    lead = -(8 + int.from_bytes(file.read(8), "little")) % ALIGNMENT
    file.seek(0)
    return lead


def private_memory(size: int) -> mmap.mmap:
    """Zeroed memory that begins with a page, in large pages where the system has them.

    Unlike a bytearray it is not zeroed twice.

    Its first touch is the larger part of reading a file that the kernel has at hand: page by page,
    4 KiB each, a 124M model's 500 MB take three times as long as in pages of 2 MiB.
    """
    # Python's own choice is shared memory, for which systems seldom give large pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel may be built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _read_at(file: io.BufferedReader, part: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [part], offset)
    file.seek(offset)
    return file.readinto(part)
