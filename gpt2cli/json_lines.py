"""Append-only files of JSON lines: one object per line, every line complete however the writing ends.

The caller gives the lines their meaning: `parse` turns a line's object into a value, and raises
ValueError, TypeError or KeyError for a line that is not one.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from gpt2cli import files
from gpt2cli.errors import InputError, ResourceError, require_format

T = TypeVar("T")
Parse = Callable[[dict[str, Any]], T]
FORMAT = 1  # of the lines, which name it only if it is a later one


@dataclass(frozen=True)
class Content(Generic[T]):
    """The content of a file. `tail` is the text after the last line end, unless it is a whole value."""

    values: tuple[T, ...]
    strays: tuple[int, ...]  # numbers, from 1, of lines that are not valid records
    tail: bytes
    n_bytes: int  # up to the tail
    lacks_end: bool  # the last value is whole, but for its line's end


@dataclass(frozen=True)
class Ledger(Generic[T]):
    """An open file. `values` is what it holds, in the order of its lines."""

    path: Path
    descriptor: int = field(repr=False)
    values: list[T]

    def add(self, value: T) -> None:
        """Append a line and hand it to the system: a killed process loses none.

        Where the disk is full the line is taken back whole, and OSError raised.
        """
        end = os.fstat(self.descriptor).st_size
        try:
            with files.naming(self.path):
                _write(self.descriptor, line_of(value))
        except BaseException:
            os.ftruncate(self.descriptor, end)
            raise
        self.values.append(value)


def read_ledger(path: Path, parse: Parse[T]) -> Content[T]:
    """The values of a file that need not be there. Raises InputError if it is not a regular file,
    NewerFormatError for lines of a later version.
    """
    if not os.path.lexists(path):
        return Content((), (), b"", 0, False)
    with files.open_regular(path) as file:
        return _content(path, file.read(), parse)


@contextmanager
def appending(path: Path, parse: Parse[T], *, fresh: bool = False) -> Iterator[Ledger[T]]:
    """Open a file to add to it, made if it is missing, and held for this process alone.

    Its torn last line is cut off, or with `fresh` all of it. Raises ResourceError if another
    process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        files.open_regular(path).close()
    # The file itself is the lock: it is never replaced by another, and nothing is left beside it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(
                f"{path}: another process writes in it",
                "two writers in one file would do everything twice",
                "wait for it, or name another file",
            ) from None
        with open(descriptor, "rb", closefd=False) as file:
            content = _content(path, file.read(), parse)
        if fresh:
            content = Content((), (), b"", 0, False)
        os.ftruncate(descriptor, content.n_bytes)
        if content.lacks_end:
            _write(descriptor, b"\n")
        yield Ledger(path, descriptor, list(content.values))
    finally:
        os.close(descriptor)


def rewrite(path: Path, values: Sequence[T]) -> None:
    """Replace a file by these values, at once or not at all. The caller holds the lock of its folder."""
    files.write_file(path, b"".join(map(line_of, values)))


def line_of(value: Any) -> bytes:
    text = json.dumps(asdict(value), ensure_ascii=False, allow_nan=False) + "\n"
    # Half a surrogate pair has no UTF-8; what Python writes for it is just JSON's own escape.
    return text.encode("utf-8", "backslashreplace")


def digest_of(value: Any) -> str:
    """The key of a line: 64 bits of a digest of its JSON value."""
    return hashlib.sha256(json.dumps(value).encode("ascii")).hexdigest()[:16]


def _content(path: Path, data: bytes, parse: Parse[T]) -> Content[T]:
    *lines, tail = data.split(b"\n")
    values, strays = [], []
    for number, line in enumerate(lines, 1):
        value = _value(line, parse, f"{path}:{number}")
        if value is None:
            strays.append(number)
        else:
            values.append(value)
    last = _value(tail, parse, str(path))  # a prefix of an object is never one
    if last is None:
        return Content(tuple(values), tuple(strays), tail, len(data) - len(tail), False)
    return Content((*values, last), tuple(strays), b"", len(data), True)


def _value(line: bytes, parse: Parse[T], where: str) -> T | None:
    try:
        value = json.loads(line.decode("utf-8"))
        if not isinstance(value, dict):
            return None
        require_format(where, value.pop("format", FORMAT), FORMAT)
        return parse(value)
    except (InputError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
