"""What is seen while a judge is at work: what counts, how fast it goes, how long it will take."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from gpt2cli.ui import judge
from gpt2cli.ui.judge import duration, show_judging


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, _environ={"TERM": "xterm"})


def shown(on: Console) -> str:
    return on.file.getvalue()  # type: ignore[attr-defined,no-any-return]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def every(self, seconds: float, items: str) -> Iterator[str]:
        for item in items:
            self.now += seconds
            yield item


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(judge, "time", clock)
    return clock


def test_lines_tell_the_rate_and_what_is_left_and_what_does_not_count_is_not_in_it(clock: Clock) -> None:
    plain = console(False)
    answers = clock.every(6.0, "xxabcd")
    assert "".join(show_judging(answers, plain, 2, 8, "responses", lambda answer: answer != "x")) == "xxabcd"
    assert shown(plain).splitlines() == [
        "2 of 8 responses, waiting for the first answer",
        "4 of 8 responses, 6.0 s each, 24 s left",
        "6 of 8 responses, 6.0 s each, 12 s left",
    ]


def test_what_was_not_asked_counts_but_is_not_in_the_rate(clock: Clock) -> None:
    plain = console(False)
    answers = clock.every(6.0, "xeeab")
    assert list(show_judging(answers, plain, 0, 4, "responses", lambda a: a != "x", lambda a: a != "e"))
    assert shown(plain).splitlines() == [
        "1 of 4 responses, waiting for the first answer",
        "3 of 4 responses, 6.0 s each, 6 s left",
    ]


def test_quick_answers_make_no_lines(clock: Clock) -> None:
    plain = console(False)
    assert len(list(show_judging(clock.every(0.1, "a" * 50), plain, 0, 50, "responses"))) == 50
    assert shown(plain) == ""


def test_a_bar_tells_the_same(clock: Clock) -> None:
    terminal = console(True)
    assert list(show_judging(clock.every(0.25, "abcd"), terminal, 1, 5, "responses")) == list("abcd")
    text = shown(terminal)
    assert "1/5" in text and "waiting for the first answer" in text
    assert "5/5" in text and "4.0/s, 0 s left" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (4321, "1 h 12 min")],
)
def test_a_duration_is_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
