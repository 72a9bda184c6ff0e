"""`gpt2 generate` in a process of its own: signals, pipes that close, terminals."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from speaking import CONTEXT, save_model_that_says
from terminal import Terminal

MANY = "1000000"  # tokens: more than are waited for


def start(folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "gpt2cli", "generate", "--model", str(folder), "--threads", "1"]
    return subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )


def test_ctrl_c_keeps_the_text_so_far(tmp_path: Path) -> None:
    """As SIGTERM does in process/test_ignored_interrupt.py."""
    process = start(save_model_that_says(tmp_path / "model", " word" * CONTEXT), "go", "-t", "0", "-n", MANY)
    assert process.stdout
    first = process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in err and b"bug" not in err
    assert re.fullmatch(rb"( word)+\n", first + rest)


def test_sigterm_keeps_the_object_so_far(tmp_path: Path) -> None:
    folder = save_model_that_says(tmp_path / "model", " word" * CONTEXT)
    process = start(folder, "go", "--json", "-t", "0", "-n", MANY)
    assert process.stderr
    process.stderr.readline()  # the window has moved, so there is text
    process.send_signal(signal.SIGTERM)
    rest, err = process.communicate(timeout=30)
    assert process.returncode == 143 and b"Traceback" not in err and b"bug" not in err
    value = json.loads(rest)
    assert value["finish_reason"] == "interrupted" and value["text"].startswith(" word word word")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    folder = save_model_that_says(tmp_path / "model", " word" * CONTEXT)
    process = start(folder, "go", "-t", "0", "-n", "1000000")
    assert process.stdout and process.stderr
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=30) == 128 + signal.SIGPIPE
    assert b"Broken" not in process.stderr.read()


def test_an_ascii_terminal_gets_escapes_instead_of_a_crash(tmp_path: Path) -> None:
    folder = save_model_that_says(tmp_path / "model", "joy 😂\x1b")
    process = start(folder, "", "-t", "0", PYTHONIOENCODING="ascii", COLUMNS="20")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == b"joy \\U0001f602\\u241b\n"
    assert b"\x1b" not in err


def test_on_a_terminal_the_prompt_comes_before_and_the_pace_after(tmp_path: Path) -> None:
    import pty

    folder = save_model_that_says(tmp_path / "model", " one two\x1b")
    parent, child = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "gpt2cli",
        "generate",
        "--model",
        str(folder),
        " zero[/x]\x1b",
        "-t",
        "0",
    ]
    process = subprocess.Popen(
        [*command, "--seed", "5"], stdin=child, stdout=child, stderr=child,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(child)
    shown = b""
    while True:
        try:
            shown += os.read(parent, 4096)
        except OSError:  # what Linux says when the other side has closed
            break
    assert process.wait(timeout=60) == 0
    waited = r"\x1b\[\?25l.*loading PyTorch.*\x1b\[\?25h(\x1b\[1A|\r|\x1b\[2K)*"  # and the sign is gone again
    text = re.sub(r"\x1b\[[0-9;]*m", "", re.sub(f"(?s){waited}", "", shown.decode()))
    assert "\x1b" not in text
    assert re.match(r"(?s) zero\[/x\]␛.*\r\n\d+ tokens, \d+ tokens/s, seed 5\r\n$", text)


def test_a_notice_never_shares_a_line_with_generated_text(tmp_path: Path) -> None:
    """In a terminal the context fills in the middle of a line; what is told of it has its own."""
    folder = save_model_that_says(tmp_path / "model", " word" * CONTEXT)
    words = ["generate", "go", "--model", str(folder), "-t", "0", "-n", str(CONTEXT + 8), "--seed", "1"]
    with Terminal([*words, "--threads", "1"], GPT2_HOME=str(tmp_path)) as terminal:
        shown = terminal.until("tokens/s, seed 1").split("\n")
    notice = "the context is full: continuing from its last half"
    at = shown.index(notice)
    assert "word" in shown[at - 1] and "word" in shown[at + 1]
    assert shown[-1].startswith(f"{CONTEXT + 8} tokens, ")
