"""What Ctrl-C and SIGTERM do to a reply of `gpt2 chat`, at moments that no keyboard can hit."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from speaking import save_model_that_says

from gpt2cli.cli import app
from gpt2cli.generation import chat_session, engine
from gpt2cli.ui.chat import BASE_MODEL as MODE

Chat = Callable[..., tuple[int, str, str]]
INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """What --threads sets is the process's own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def chat(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Chat, while the first reply is hit by each of `signals` after so many tokens. The model says
    " word", four times a reply.
    """
    folder = save_model_that_says(tmp_path / "model", " word" * 50)
    real = engine.continue_row

    def run(
        lines: str, signals: list[tuple[int, int]], *arguments: str, is_terminal: bool
    ) -> tuple[int, str, str]:
        due = list(signals)

        def hit(*given: Any, **named: Any) -> Iterator[int]:
            for n, token in enumerate(real(*given, **named)):
                while due and due[0][1] == n:
                    os.kill(os.getpid(), due.pop(0)[0])
                yield token

        (tmp_path / "stdin").write_text(lines)
        stdin = open(tmp_path / "stdin")  # noqa: SIM115 - it is the program's to read
        monkeypatch.setattr(stdin, "isatty", lambda: is_terminal)
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(chat_session, "continue_row", hit)
        before = [signal.getsignal(number) for number in (INT, TERM)]
        code = app.run(["chat", str(folder), "-t", "0", "-n", "4", "--threads", "1", *arguments])
        assert [signal.getsignal(number) for number in (INT, TERM)] == before
        assert not due
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


WHOLE = " word word word word\n"


@pytest.mark.parametrize("times", [1, 3])
def test_at_a_terminal_ctrl_c_ends_the_reply_and_no_more(chat: Chat, times: int) -> None:
    code, out, err = chat("one\ntwo\n/show\n", [(INT, 1)] * times, is_terminal=True)
    assert (code, out) == (0, f" word word\n{WHOLE}")
    assert "; stopped, and kept as it is\n" in err
    assert "turns               2\n" in err


def test_before_the_first_token_nothing_is_kept(chat: Chat) -> None:
    code, out, err = chat("one\n/show\ntwo\n", [(INT, 0)], is_terminal=True)
    assert (code, out) == (0, WHOLE)
    assert "stopped before the first token; the conversation is as before\n" in err
    assert "turns               0\n" in err


def test_in_a_pipe_ctrl_c_ends_the_program_after_the_text_so_far(chat: Chat) -> None:
    assert chat("one\ntwo\n", [(INT, 1)], is_terminal=False)[:2] == (130, " word word\n")
    assert chat("one\ntwo\n", [(INT, 0)], is_terminal=False)[:2] == (130, "")
    assert chat("one\ntwo\n", [(INT, 0)], "--json", is_terminal=False)[:2] == (130, "")
    code, out, _ = chat("one\ntwo\n", [(INT, 1)], "--json", is_terminal=False)
    turn = json.loads(out)
    assert code == 130
    assert (turn["reply"], turn["finish_reason"], turn["new_tokens"]) == (" word word", "interrupted", 2)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_sigterm_ends_the_program_after_the_text_so_far(chat: Chat, is_terminal: bool) -> None:
    assert chat("one\ntwo\n", [(TERM, 1)], is_terminal=is_terminal)[:2] == (143, " word word\n")
    assert chat("one\ntwo\n", [(TERM, 0)], is_terminal=is_terminal)[:2] == (143, "")
    # The second does not wait for a token, which may never come.
    assert chat("one\ntwo\n", [(TERM, 1), (TERM, 1)], is_terminal=is_terminal)[:2] == (143, " word\n")
    assert chat("one\ntwo\n", [(INT, 1), (TERM, 1)], is_terminal=is_terminal)[:2] == (143, " word word\n")


@pytest.mark.parametrize(("number", "code"), [(INT, 130), (TERM, 143)])
def test_a_signal_in_a_command_that_fails_is_not_forgotten(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    whole = os.open

    def hit(path: Any, *options: Any, **named: Any) -> int:
        if str(path) == "missing":
            os.kill(os.getpid(), number)
        return whole(path, *options, **named)

    monkeypatch.setattr(os, "open", hit)
    assert chat("/load missing\none\n", [], is_terminal=False) == (code, "", f"{MODE}\n")


@pytest.mark.parametrize("word", ["exit", "quit", " QUIT "])
def test_a_bare_farewell_leaves_at_a_terminal_and_is_a_message_in_a_pipe(chat: Chat, word: str) -> None:
    code, out, _ = chat(f"one\n{word}\nnot read\n", [], is_terminal=True)
    assert (code, out) == (0, WHOLE)
    code, out, _ = chat(f"{word}\nto the exit\n", [], is_terminal=False)
    assert (code, out) == (0, WHOLE * 2)
