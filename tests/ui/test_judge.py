"""What is seen while a judge is at work: what counts, how fast it goes, how long it will take."""

import io
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from gpt2cli.judge.results import Judgement, Status, Terms
from gpt2cli.ui.judge import JudgeProgress, duration

CANARY, EMPTY, SCORED = (-1, "scored"), (0, "empty"), (0, "scored")
Play = Callable[..., None]


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, _environ={"TERM": "xterm"})


def shown(on: Console) -> str:
    return on.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Plays judgements that come at equal distances, by a clock of its own."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def playing(on: Console, n_all: int, n_missing: int, seconds: float, *kinds: tuple[int, Status]) -> None:
        nonlocal now
        with JudgeProgress(on, n_all, "responses") as progress:
            progress.begin(n_missing)
            for index, status in kinds:
                now += seconds
                progress.add(judgement(index, status))

    return playing


def judgement(index: int, status: Status) -> Judgement:
    terms = Terms("m", "ollama", "p", "s", 0.0, 1)
    fields = {"why": "", "attempts": 1, "seconds": 0.1, "prompt_tokens": 9, "asked": ""}
    return Judgement(index=index, status=status, terms=terms, **fields)  # type: ignore[arg-type]


def test_lines_tell_the_rate_and_what_is_left_and_canaries_are_not_in_it(play: Play) -> None:
    plain = console(False)
    play(plain, 8, 6, 6.0, CANARY, CANARY, *[SCORED] * 4)
    assert shown(plain).splitlines() == [
        "judging  25%  2 of 8 responses, waiting for the first answer",
        "judging  50%  4 of 8 responses, 6.0 s each, 24 s left",
        "judging  75%  6 of 8 responses, 6.0 s each, 12 s left",
    ]


def test_what_was_not_asked_counts_but_is_not_in_the_rate(play: Play) -> None:
    plain = console(False)
    play(plain, 4, 4, 6.0, EMPTY, EMPTY, CANARY, SCORED, SCORED)
    assert shown(plain).splitlines() == [
        "judging  50%  2 of 4 responses, waiting for the first answer",
        "judging  75%  3 of 4 responses, 6.0 s each, 6 s left",
    ]


def test_quick_answers_make_no_lines(play: Play) -> None:
    plain = console(False)
    play(plain, 50, 50, 0.1, *[SCORED] * 50)
    assert shown(plain) == ""


def test_a_bar_tells_the_same(play: Play) -> None:
    terminal = console(True)
    play(terminal, 5, 4, 0.25, *[SCORED] * 4)
    assert "5 of 5 responses, 4.0/s, 0 s left" in shown(terminal)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (4321, "1 h 12 min")],
)
def test_a_duration_is_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
