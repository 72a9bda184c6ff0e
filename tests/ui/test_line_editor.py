"""The history of what was typed: whose it is, what survives, and what happens where it cannot be kept.
The keys are tried at a real terminal, in tests/cli/test_chat_terminal.py."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from gpt2cli.ui import line_editor
from gpt2cli.ui.line_editor import _Entries


def entries(path: Path) -> list[str]:
    return list(_Entries(path).load_history_strings())


def test_messages_come_back_newest_first_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "history"
    typed = ["one", "two\nlines", "😂 \x1b \udc80", '"quoted"\\', "one"]
    for message in typed:
        _Entries(path).store_string(message)
    assert entries(path) == typed[::-1]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes().isascii()


def test_lines_that_are_no_entries_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b'"first"\n\n{"a": 1}\n' + b"[" * 9999 + b'\n\xff\xfe\n17\n""\n"torn\n"last"')
    assert entries(path) == ["last", "first"]


def test_only_the_newest_of_a_long_history_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history"
    for number in range(100):
        _Entries(path).store_string(f"message {number:02}")
    monkeypatch.setattr(line_editor, "MOST_HISTORY", 50)
    assert entries(path) == ["message 99", "message 98", "message 97"]


def test_a_long_paste_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = _Entries(path)
    history.store_string("x" * (line_editor.LONGEST_ENTRY + 1))
    history.store_string("x" * line_editor.LONGEST_ENTRY)
    assert [len(entry) for entry in entries(path)] == [line_editor.LONGEST_ENTRY]


def test_a_torn_line_costs_itself_alone_and_the_file_becomes_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b'"first"\n"to')
    path.chmod(0o644)
    _Entries(path).store_string("next")
    assert entries(path) == ["next", "first"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_too_old_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history"
    for number in range(9):
        _Entries(path).store_string(f"message {number}")
    before = path.read_bytes()
    assert len(entries(path)) == 9 and path.read_bytes() == before
    monkeypatch.setattr(line_editor, "MOST_ENTRIES", 2)
    for _ in range(2):
        assert entries(path) == ["message 8", "message 7"]
        assert path.read_bytes() == b'"message 7"\n"message 8"\n'
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_history_that_cannot_be_kept_is_said_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("")
    for place, reason in {
        tmp_path / "fifo": "is not a regular file",
        tmp_path: "is a directory",
        tmp_path / "file" / "history": "File exists",
        Path("/dev/full"): "is not a regular file",
    }.items():
        history = _Entries(place)
        assert list(history.load_history_strings()) == []
        for _ in range(2):
            history.append_string("message")
        assert history.take_notice() == f"the history is not kept: {place}: {reason}"
        assert history.take_notice() == ""
        assert history.get_strings() == ["message", "message"]


def test_a_disk_that_fills_later_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    history = _Entries(tmp_path / "history")

    async def load() -> list[str]:
        return [entry async for entry in history.load()]

    assert asyncio.run(load()) == []
    history.append_string("kept")
    monkeypatch.setattr(os, "write", full)
    history.append_string("lost")
    history.append_string("lost too")
    assert "No space left on device" in history.take_notice()
    assert history.take_notice() == ""
    assert json.loads((tmp_path / "history").read_text()) == "kept"
