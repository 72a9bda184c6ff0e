"""metrics.jsonl: a long run has millions of lines, so it is read line by line, or from its end."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gpt2cli import files


def cut_after(path: Path, step: int) -> None:
    """Cut off what comes after the last record of at most `step`; -1 cuts all. Makes a missing file."""
    with files.naming(path), open(path, "a+b") as file:
        file.truncate(_end_of(file, step))
        files.flush(file)


def records_of(path: Path, event: str) -> list[dict[str, Any]]:
    """All records of one kind of event; none if there is no file."""
    if not path.exists():
        return []
    name = event.encode()
    found = each_record(path, lambda line: name in line)
    return [record for record in found if record.get("event") == event]


def each_record(path: Path, is_wanted: Callable[[bytes], bool]) -> Iterator[dict[str, Any]]:
    """The records of a file, oldest first; only the lines that `is_wanted` takes are parsed.

    Skips a line that is not a whole record: a kill tears the last one. Raises InputError without a file.
    """
    with files.open_regular(path) as file:
        for line in file:
            if is_wanted(line) and (record := _record(line)):
                yield record


def last_records(path: Path, n_bytes: int = 1 << 16) -> list[dict[str, Any]]:
    """The whole records in the last `n_bytes` of a file, oldest first; none if there is no file."""
    if not path.exists():
        return []
    with files.open_regular(path) as file:
        start = max(0, file.seek(0, os.SEEK_END) - n_bytes)
        file.seek(start)
        lines = file.read(n_bytes).splitlines(keepends=True)[1 if start else 0 :]
    return [record for line in lines if (record := _record(line))]


def _end_of(file: BinaryIO, step: int) -> int:
    """The offset after the last record of at most `step`, found from the end, a block at a time."""
    end, rest = file.seek(0, os.SEEK_END), b""  # `rest`: the end of a line that begins further up
    while end:
        start = max(0, end - files.CHUNK)
        file.seek(start)
        block = file.read(end - start) + rest
        lines = block.splitlines(keepends=True)
        rest = lines.pop(0) if start else b""
        place = start + len(block)
        for line in reversed(lines):
            if (record := _record(line)) and record["step"] <= step:
                return place
            place -= len(line)
        end = start
    return 0


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line of metrics.jsonl; None for a torn one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    has_step = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if has_step and line.endswith(b"\n") else None
