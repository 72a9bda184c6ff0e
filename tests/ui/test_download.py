"""What a person sees of a download, on a terminal and off it."""

import io
import re
from collections.abc import Generator
from pathlib import Path

import pytest
from rich.console import Console

from gpt2cli.hub.collecting import Fetched, Fetching
from gpt2cli.ui import download
from gpt2cli.ui.console import THEME
from gpt2cli.ui.download import show_fetching

DONE = Fetched("openai", Path("folder"), "http://x", "")


def steps() -> Generator[Fetching, None, None]:
    yield Fetching("vocab.bpe", note="here already: checking")
    yield Fetching("small", 10, 10, 10, 1_500_010)
    yield Fetching("la\x1brge[/x]", 0, 1_500_000, 10, 1_500_010)
    yield Fetching("la\x1brge[/x]", 750_000, 1_500_000, 750_010, 1_500_010, "connection lost\x1b; again")
    yield Fetching("la\x1brge[/x]", 1_500_000, 1_500_000, 1_500_010, 1_500_010, "checking")
    yield Fetching(all_done=1_500_010, all_total=1_500_010, fetched=DONE)


def shown(terminal: bool) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=120, force_terminal=terminal, theme=THEME, markup=False, highlight=False,
        color_system=None, legacy_windows=False, _environ={"TERM": "xterm"},
    )  # fmt: skip
    assert show_fetching(steps(), console) is DONE
    return file.getvalue()


def test_plain_lines_name_each_file_once_and_every_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(terminal=False).splitlines() == [
        "small  10 bytes",
        "la␛rge[/x]  1.5 MB",
        "la␛rge[/x]: connection lost␛; again",
    ]
    monkeypatch.setattr(download, "LINE_SECONDS", 0.0)
    assert "la␛rge[/x]   50%" in shown(terminal=False).splitlines()


def test_a_terminal_gets_a_bar_a_file_and_one_in_all() -> None:
    text = shown(terminal=True)
    assert "connection lost␛; again" in text
    last = text[text.rindex("in all") :]
    plain = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", last)
    assert "1.5/1.5 MB" in plain
    assert re.search(r"small +━+ 10/10 bytes", plain)
    assert re.search(r"la␛rge\[/x\] +━+ 1.5/1.5 MB", plain)


def test_an_error_closes_the_steps() -> None:
    closed = []

    def failing() -> Generator[Fetching, None, None]:
        try:
            yield Fetching("x", note="trouble")
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    with pytest.raises(KeyboardInterrupt):
        show_fetching(failing(), Console(file=io.StringIO(), theme=THEME))
    assert closed == [True]
