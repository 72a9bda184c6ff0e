"""What is seen while questions are answered: every item passes, bar and lines tell how many."""

import io

import pytest
from rich.console import Console

from gpt2cli.ui import answers
from gpt2cli.ui.answers import show_answering


@pytest.mark.parametrize("terminal", [False, True])
def test_every_item_passes_and_the_count_is_seen(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LINE_SECONDS", 0.0)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, _environ={"TERM": "xterm"})
    assert list(show_answering("abc", console, 2, 5)) == ["a", "b", "c"]
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    if terminal:
        assert "5/5" in shown and "\x1b" in shown
    else:
        lines = ["answering 3 test prompts, 2 are answered", "answered 3 of 5", "answered 4 of 5"]
        assert shown.splitlines() == lines
