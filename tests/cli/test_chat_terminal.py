"""`gpt2 chat` at a real pseudo-terminal, and its processes: keys, signals, streams of two kinds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from speaking import save_model_that_says
from terminal import Terminal

from gpt2cli.paths import shown_path
from gpt2cli.templates import write_template
from gpt2cli.tokenizer.bpe import gpt2

HELLO = "/help lists the commands"
LONG = " word" * 50_000  # more than anybody waits for
OPTIONS = ("-t", "0", "--threads", "1", "--seed", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says " word" without end."""
    return save_model_that_says(tmp_path_factory.mktemp("long") / "model", LONG, n_positions=20_000)


def test_a_session_at_the_terminal(tmp_path: Path) -> None:
    """One process for many keys, because each process imports torch."""
    folder = save_model_that_says(tmp_path / "model", " red\x1b[2J" * 100, gpt2(), n_positions=256)
    home = tmp_path / "home"
    home.mkdir()
    (home / "chat_history").write_text('"an older message"\n')
    command = ["chat", str(folder), *OPTIONS, "-n", "4"]
    with Terminal(command, GPT2_HOME=str(home)) as terminal:
        shown = terminal.until(HELLO)
        assert f"loading {folder}"[:60] in shown
        greeting = f"{shown_path(folder)}: 1.6 million parameters, context 256 tokens a base model"
        assert greeting in " ".join(shown.split())
        terminal.ready()

        terminal.type("hallo\x7f\x7f\x7f\x7fello\r")  # four backspaces
        assert "red␛[2" in terminal.until("4 tokens, ")
        assert terminal.ready().endswith(" tokens/s; cut at max_new_tokens\n")

        terminal.type("first\x1b\rsecond\\\rthird\r")  # Alt-Enter; a backslash before Enter
        terminal.until("4 tokens, ")
        terminal.ready()
        terminal.type("\x1b[200~pasted one\rpasted two\x1b[201~ and typed\r")
        terminal.until("4 tokens, ")
        terminal.ready()
        terminal.type(b"no \xff UTF-8 \r")
        terminal.until("4 tokens, ")
        terminal.ready()
        terminal.type("forgotten\x03")
        terminal.until("Ctrl-D or /exit leaves")
        terminal.ready()
        terminal.type("/udno\r")
        assert "did you mean /undo?" in terminal.until("fix: ")
        terminal.ready()
        terminal.type("/tok\t hi\r")  # Tab completes it
        assert "/tokens" in terminal.until(" hi")
        terminal.ready()
        terminal.type("\x1b[A\x1b[A\x1b[A\x1b[A\x1b[A\r")  # up: the last five, of which one has two lines
        terminal.until("4 tokens, ")
        terminal.ready()
        terminal.type("/save it.json\r")
        terminal.until("saved 5 turns in it.json")
        terminal.type("\x1b[B\x12older\r\r")  # Ctrl-R searches
        terminal.until("4 tokens, ")
        terminal.ready()
        terminal.type("\x04")
        assert terminal.ended() == 0
        assert terminal.is_as_before()
        assert b"\x1b[2J" not in terminal.seen  # the model's
        assert b"\x1b[6n" not in terminal.seen  # nor was the terminal asked where its cursor is
    questions = [turn["question"] for turn in json.loads((tmp_path / "it.json").read_text())["turns"]]
    assert questions[:4] == [
        "hello",
        "first\nsecond\nthird",
        "pasted one\npasted two and typed",
        "no \ufffd UTF-8 ",
    ]
    assert questions[4] in questions[:4]
    history = home / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    entries = [json.loads(line) for line in history.read_text().splitlines()]
    assert entries[:3] == ["an older message", "hello", "first\nsecond\nthird"]
    assert entries[-1] == "an older message"


def test_ctrl_c_ends_a_reply_however_often_and_the_next_works(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Terminal(
        ["chat", str(folder), *OPTIONS, "-n", "999999"], columns=20, GPT2_HOME=str(home)
    ) as terminal:
        terminal.ready()
        terminal.type("/help\r")
        terminal.until("/exit\n  leave the chat, like Ctrl-D\n")  # narrow: under each other
        terminal.ready()
        for question in ("one", "two"):
            terminal.type(f"{question}\r")
            terminal.until(" word word word")
            terminal.continued_by_a_shell()
            terminal.type("typed ahead\x03\x03\x03")
            shown = terminal.until("stopped, and kept as it is\n")
            assert "typed ahead" not in shown  # nothing comes between the words of a reply
            assert "^C" not in shown
            terminal.ready()
            terminal.type("\x15/show\r")  # Ctrl-U takes away what was typed, if the signal has not
            terminal.until("turns\n  ")
        assert terminal.until("\n").strip() == "2"
        terminal.type("/set max_new_tokens=2\r")
        terminal.until("max_new_tokens is 2")
        terminal.type("/retry\r")
        terminal.until("2 tokens, ")
        terminal.ready()
        terminal.type("/set max_new_tokens=999999\rgo\r")
        terminal.until(" word word word")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == 143
        assert terminal.is_as_before() and b"Traceback" not in terminal.seen
    assert (home / "chat_history").stat().st_mode & 0o777 == 0o600


def test_a_dumb_terminal_gets_lines_alone(folder: Path) -> None:
    command = ["chat", str(folder), *OPTIONS, "-n", "2"]
    with Terminal(command, TERM="dumb", NO_COLOR="1") as terminal:
        assert terminal.until("\n") == f"loading {folder}\n"
        assert "a backslash adds a line" in terminal.until("> ")
        terminal.type("one\\\n")
        terminal.until("one\\\n  ")
        terminal.type("two\n")
        assert terminal.until("2 tokens, ").startswith("two\n word word\n")
        terminal.until("> ")
        terminal.type("half a line\x03")
        terminal.until("Ctrl-D or /exit leaves\n> ")
        terminal.type("last\\\n")
        terminal.until("last\\\n  ")
        terminal.type("\x04")
        terminal.until(" word word\n")
        terminal.until("2 tokens, ")
        assert terminal.ended() == 0
        assert b"\x1b" not in terminal.seen


def test_with_stdout_in_a_pipe_only_replies_are_in_it(tmp_path: Path) -> None:
    """At the terminal a history that cannot be kept is said behind the line that was typed."""
    (tmp_path / "home" / "chat_history").mkdir(parents=True)
    taught = tmp_path / "taught"
    save_model_that_says(taught, LONG, n_positions=64)
    write_template(taught, "chat", gpt2())
    command = ["chat", str(taught), *OPTIONS, "-n", "2"]
    with Terminal(command, piped=[1], GPT2_HOME=str(tmp_path / "home")) as terminal:
        assert "chat template: chat" in terminal.ready()
        terminal.type("hello\r")
        shown = terminal.until("2 tokens, ")
        assert shown.index("hello") < shown.index("\nthe history is not kept:") < shown.index("2 tokens, ")
        terminal.ready()
        terminal.type("/show\r")
        terminal.ready()
        terminal.process.send_signal(signal.SIGTERM)  # at the prompt
        assert terminal.ended() == 143
        assert terminal.is_as_before() and b"Traceback" not in terminal.seen
        assert terminal.process.stdout and terminal.process.stdout.read() == b" word word\n"


def test_with_stdin_a_pipe_a_terminal_gets_replies_alone(folder: Path) -> None:
    with Terminal(["chat", str(folder), *OPTIONS, "-n", "2"], piped=[0]) as terminal:
        terminal.process.stdin.write(b"one\n/undo\n")  # type: ignore[union-attr]
        terminal.process.stdin.close()  # type: ignore[union-attr]
        assert terminal.ended() == 0
        terminal.until("(continuation mode)\n")
        assert terminal.until("forgotten: one\n") == " word word\nforgotten: one\n"
        assert b"> " not in terminal.seen


def test_ctrl_c_in_a_pipe_ends_it_after_the_text_so_far(folder: Path) -> None:
    """prompt_toolkit is shut away: a pipe needs no line editor, and must not pay for one."""
    program = "import sys; sys.modules['prompt_toolkit'] = None; from gpt2cli.cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "chat", str(folder), *OPTIONS, "-n", "999999"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(b"one\ntwo\n")
    process.stdin.flush()
    first = process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err
    text = first + rest
    assert text.endswith(b"\n") and text.strip().split() == [b"word"] * (len(text) // 5)
