"""Files that only grow: torn ends, full disks, other writers, and kills at any moment."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpt2cli.errors import InputError, NewerFormatError, ResourceError
from gpt2cli.json_lines import Content, appending, line_of, read_ledger

TEXTS = ["one", "", "two\n\u2028\x85three", "\x1b[31m", "half \ud83d", "x" * 5000]


@dataclass(frozen=True)
class Note:
    index: int
    text: str


def note(fields: dict[str, Any]) -> Note:
    return Note(int(fields["index"]), str(fields["text"]))


NOTES = [Note(index, text) for index, text in enumerate(TEXTS)]


def test_values_come_back_and_are_there_as_soon_as_they_are_added(tmp_path: Path) -> None:
    path = tmp_path / "new" / "notes.jsonl"
    with appending(path, note) as file:
        for number, value in enumerate(NOTES, 1):
            file.add(value)
            assert path.read_bytes().count(b"\n") == number
            assert read_ledger(path, note).values == tuple(NOTES[:number])
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == [
        {"index": n.index, "text": n.text} for n in NOTES
    ]
    assert read_ledger(tmp_path / "missing", note) == Content((), (), b"", 0, False)


def test_cut_at_any_byte_it_goes_on_with_all_that_was_whole(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    whole = b"".join(map(line_of, NOTES[:5]))
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        before = read_ledger(path, note)
        with appending(path, note) as file:
            assert tuple(file.values) == before.values
            assert len(file.values) >= whole[:cut].count(b"\n")
            for value in NOTES[len(file.values) : 5]:
                file.add(value)
        assert path.read_bytes() == whole, cut


def test_lines_of_others_are_reported_and_left(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    strange = [b"[1]", b'{"index": 1}', b"", b"\xff", b"[" * 100_000, b"7"]
    path.write_bytes(line_of(NOTES[0]) + b"\n".join(strange) + b"\n" + line_of(NOTES[1]) + b"torn")
    content = read_ledger(path, note)
    assert content.values == (NOTES[0], NOTES[1]) and content.strays == (2, 3, 4, 5, 6, 7)
    assert content.tail == b"torn" and content.n_bytes == path.stat().st_size - 4


def test_afresh_all_goes(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(line_of(NOTES[0]))
    with appending(path, note, fresh=True) as file:
        assert file.values == [] and path.read_bytes() == b""
        file.add(NOTES[1])
    assert read_ledger(path, note).values == (NOTES[1],)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    with appending(path, note) as file:
        file.add(NOTES[0])
        with pytest.raises(ResourceError, match="another process writes in it"), appending(path, note):
            pass
        assert read_ledger(path, note).values == (NOTES[0],)
        file.add(NOTES[1])
    with appending(path, note) as file:
        assert file.values == NOTES[:2]
    assert os.listdir(tmp_path) == ["notes.jsonl"], "nothing is left beside it"


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(InputError), appending(path, note):
            pass


def test_a_line_that_finds_no_room_is_taken_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with appending(path, note) as file:
            file.add(NOTES[0])
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, before[1]))
            with pytest.raises(OSError, match="File too large"):
                file.add(NOTES[5])
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert file.values == NOTES[:1] and path.read_bytes() == line_of(NOTES[0])
            file.add(NOTES[2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert read_ledger(path, note).values == (NOTES[0], NOTES[2])


# Appends numbered notes, each in two writes, so that a kill can fall between them; says which are done.
WRITER = """
import os, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from {module} import Note, note
from gpt2cli.json_lines import appending
write = os.write
def in_two(descriptor, data):
    half = len(data) // 2
    return write(descriptor, data[:half]) + write(descriptor, data[half:])
os.write = in_two
with appending(Path(sys.argv[1]), note) as file:
    for index in range(len(file.values), int(sys.argv[2])):
        file.add(Note(index, "x" * (index % 300)))
        print(index, flush=True)
"""


def kill_until_done(path: Path, n: int, generator: random.Random, delay: Callable[[], float]) -> int:
    """Run the writer again and again, killed at a random moment each time; returns the kills."""
    here = Path(__file__)
    command = [
        sys.executable,
        "-c",
        WRITER.format(here=str(here.parent), module=here.stem),
        str(path),
        str(n),
    ]
    for kills in range(1000):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline(), "it has begun"
        time.sleep(delay())
        process.kill()
        said = process.stdout.read().split()
        process.wait()
        content = read_ledger(path, note)
        assert [value.index for value in content.values] == list(range(len(content.values)))
        assert not content.strays
        if said:
            assert len(content.values) > int(said[-1]), "a line that was said to be there is there"
        if len(content.values) == n:
            return kills
    raise AssertionError("it does not come to an end")


def test_killed_while_it_appends(tmp_path: Path) -> None:
    generator = random.Random(5)
    n_kills = kill_until_done(tmp_path / "notes.jsonl", 6000, generator, lambda: generator.uniform(0, 0.02))
    assert n_kills >= 2


@pytest.mark.proofs
def test_killed_while_it_appends_often(tmp_path: Path) -> None:
    generator = random.Random(6)
    path = tmp_path / "notes.jsonl"
    n_kills = kill_until_done(path, 30_000, generator, lambda: generator.uniform(0, 0.03))
    assert n_kills >= 10


def test_lines_of_a_later_version_are_refused_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    later = line_of(NOTES[0]) + b'{"format": 2, "index": 1, "text": "a", "tone": "b"}\n' + line_of(NOTES[1])
    path.write_bytes(later)
    with pytest.raises(NewerFormatError, match=r"notes\.jsonl:2"):
        read_ledger(path, note)
    with pytest.raises(NewerFormatError), appending(path, note, fresh=True):
        pass
    assert path.read_bytes() == later
