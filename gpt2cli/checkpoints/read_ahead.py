"""Owns reading a file of weights before anybody can use it: while torch is imported.

That takes a second of one core, and the file's bytes need none of it. Nothing here imports torch. What
is read is only believed by tensor_file.py, which asks for it with the file's status.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from gpt2cli.checkpoints.file_block import lead_of, read_block
from gpt2cli.checkpoints.verified import Status, look
from gpt2cli.errors import InputError
from gpt2cli.files import open_regular

_under_way: dict[Path, "_Reading"] = {}


@contextlib.contextmanager
def reading_ahead(path: Path) -> Iterator[None]:
    """Read the file during the block; `take` gets it. What nobody has taken by its end is let go."""
    reading = _under_way[path] = _Reading(path)
    reading.start()
    try:
        yield
    finally:
        reading.is_wanted = False
        _under_way.pop(path, None)


def take(path: Path, status: Status) -> memoryview | None:
    """The whole file, if it was read ahead and had this status before and after; waits for the rest of it."""
    reading = _under_way.pop(path, None)
    if reading is None:
        return None
    reading.join()
    return reading.block if reading.status == status else None


class _Reading(threading.Thread):
    """Whatever goes wrong leaves nothing behind: whoever wants the file reads it again, and says it."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.is_wanted = True
        self.status: Status | None = None
        self.block: memoryview | None = None
        self._path = path

    def run(self) -> None:
        with contextlib.suppress(InputError, OSError, _UnwantedError), open_regular(self._path) as file:
            before = look(file)
            block = read_block(self._path, file, before.size, lead=lead_of(file), use=self._go_on)
            if look(file) == before:
                self.status, self.block = before, block

    def _go_on(self, part: memoryview) -> None:
        if not self.is_wanted:
            raise _UnwantedError


class _UnwantedError(Exception):
    """The program ends; it must not wait for gigabytes."""
