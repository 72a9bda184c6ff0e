"""What a chat shows: where notices stand between the words of a reply, and the sign of waiting."""

import io
import sys
import time

import pytest
from rich.console import Console

from gpt2cli.generation.chat_session import ChatEvent, ReplyDone, TextDelta, TurnsDropped
from gpt2cli.ui.chat import ReplyView, quoted
from gpt2cli.ui.spinner import waiting


def done(reason: str, n_new: int = 3, *, is_kept: bool = True) -> ReplyDone:
    return ReplyDone("text", reason, 1, 0, 5, 5, n_new, 0, 3.0, 1.0, float(n_new > 1), is_kept)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (done("end_of_text"), "3 tokens, 1 tokens/s"),
        (done("stop", 1), "1 token"),
        (done("length"), "3 tokens, 1 tokens/s; cut at max_new_tokens"),
        (done("context"), "3 tokens, 1 tokens/s; the reply fills the context"),
        (done("interrupted"), "3 tokens, 1 tokens/s; stopped, and kept as it is"),
        (
            done("interrupted", 0, is_kept=False),
            "stopped before the first token; the conversation is as before",
        ),
    ],
)
def test_the_line_after_a_reply(event: ReplyDone, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    ReplyView(seed=1, is_terminal=True, as_json=False).show(event)
    shown = capsys.readouterr()
    assert shown.err == f"{line}\n"
    assert shown.out == ("\n" if event.is_kept else "")


EVENTS: tuple[ChatEvent, ...] = (
    TurnsDropped(1), TextDelta("one"), TurnsDropped(2), TextDelta(" two\n"), TextDelta("three"), done("stop"),
)  # fmt: skip


def test_notices_in_a_reply_get_lines_of_their_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "dumb")
    view = ReplyView(seed=1, is_terminal=True, as_json=False)
    for event in EVENTS:
        view.show(event)
    assert screen.getvalue() == (
        "the context is full: the oldest turn is dropped\n"
        "one\n"
        "the context is full: the 2 oldest turns are dropped\n"
        " two\n"
        "three\n"
        "3 tokens, 1 tokens/s\n"
    )


def test_a_pipe_gets_the_reply_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    view = ReplyView(seed=1, is_terminal=False, as_json=False)
    for event in EVENTS:
        view.show(event)
    shown = capsys.readouterr()
    assert shown.out == "one two\nthree\n"
    assert shown.err.count("\n") == 2


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("is_shown", [True, False])
def test_what_is_said_of_a_reply_that_was_stopped_is_what_has_become_of_it(
    capsys: pytest.CaptureFixture[str], is_kept: bool, is_shown: bool
) -> None:
    view = ReplyView(seed=1, is_terminal=True, as_json=True)
    if is_shown:
        view.show(done("interrupted", is_kept=is_kept))
    view.break_off()
    view.say_stopped(is_kept)
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert ("stopped, and kept as it is" if is_kept else "the conversation is as before") in shown.err
    assert shown.out.count("interrupted") == (is_kept and is_shown)


def test_a_quotation_is_one_safe_line() -> None:
    assert quoted(" a\n\tb \x1b ") == "a b ␛"
    assert quoted("x" * 61) == "x" * 59 + "…"


def screen(*, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=80, _environ={"TERM": "xterm"})


def shown_on(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_sign_of_waiting_comes_late_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    console = screen(is_terminal=True)
    with waiting(console, "reading\x1b", delay=0.0) as end:
        limit = time.monotonic() + 20
        while "reading␛" not in shown_on(console):
            assert time.monotonic() < limit
            time.sleep(0.01)
        end()
        shown = shown_on(console)
        assert shown.endswith("\x1b[2K")  # its line is wiped
        console.print("news")
    assert shown_on(console) == f"{shown}news\n"


def test_what_is_quick_or_no_terminal_shows_no_sign() -> None:
    console = screen(is_terminal=True)
    with pytest.raises(KeyboardInterrupt), waiting(console, "reading", delay=60.0):
        raise KeyboardInterrupt
    assert "reading" not in shown_on(console)
    console = screen(is_terminal=False)
    with waiting(console, "reading", delay=0.0):
        pass
    assert shown_on(console) == ""
