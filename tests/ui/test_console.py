"""Nothing that reaches a terminal steers it, and no terminal is too poor."""

import errno
import io
import os
import pty
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gpt2cli.errors import UsageError
from gpt2cli.ui import console
from gpt2cli.ui.console import printable

BIDIRECTIONAL = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]

any_text = st.text(alphabet=st.characters(codec=None))  # lone surrogates included


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünï, 漢字 😀\n\tx", "plain, ünï, 漢字 😀\n\tx"),
        ("\x1b]52;c;aGk=\x07", "␛]52;c;aGk=␇"),
        ("\x1b[31mred", "␛[31mred"),
        ("over\rwrite\x08\x7f\0", "over␍write␈␡␀"),
        ("\x9b31m\x85", "<U+009B>31m<U+0085>"),
        ("a\u202eb\u2066c\u200fd\u061c", "a<U+202E>b<U+2066>c<U+200F>d<U+061C>"),
        ("a\u2028b\u2029", "a<U+2028>b<U+2029>"),
        ("\ud83d!\udc80", "<U+D83D>!<U+DC80>"),
        ("family 👨‍👩‍👧", "family 👨‍👩‍👧"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_printable_leaves_nothing_that_steers() -> None:
    """Every character there is."""
    steering = [
        char
        for char in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        or (unicodedata.category(char) == "Cf" and ord(char) in BIDIRECTIONAL)
    ]
    for char in steering:
        if char in "\n\t":
            assert printable(char) == char
        else:
            assert not set(printable(char)) & set(steering), hex(ord(char))


@given(any_text)
def test_printable_twice_is_printable_once(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    printable(text).encode("utf-8")


@given(any_text, any_text)
def test_printable_may_be_called_piece_by_piece(first: str, second: str) -> None:
    assert printable(first) + printable(second) == printable(first + second)


@given(st.text(alphabet=st.characters(exclude_categories=("C", "Z"))))
def test_printable_leaves_ordinary_text_alone(text: str) -> None:
    assert printable(text) == text


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, **environment}, timeout=60
    )


TALK = """
from gpt2cli.ui.console import make_streams_safe, out, err, printable, print_error
from gpt2cli.errors import UsageError
make_streams_safe()
out().print(printable('[/x] [bold]b[/bold] :smile: \\x1b[31m \\u2603 \\ud800 ') + 'long ' * 30, style='good')
err().print(printable('to stderr [/x]'), style='bad')
print_error(UsageError('[/x]\\x1b: bad\\nnews', 'because', 'gpt2 recipes'))
"""


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii", "COLUMNS": "20"},
        {"COLUMNS": "1", "FORCE_COLOR": "1"},
        {"NO_COLOR": "1", "TERM": "dumb"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_poor_streams_get_plain_whole_lines(environment: dict[str, str]) -> None:
    done = _run(TALK, **environment)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert done.stdout.startswith(b"[/x] [bold]b[/bold] :smile: ")
    assert done.stdout.count(b"\n") == 1  # never wrapped
    assert done.stderr.splitlines()[0] == b"to stderr [/x]"
    assert len(done.stderr.splitlines()) == 4
    if "ascii" in environment.values():
        assert done.stdout.isascii()
        assert b"\\u241b[31m \\u2603 <U+D800>" in done.stdout


def test_an_error_is_a_line_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    console.print_error(UsageError("a[/x]\x1b\nb", "because", "gpt2 recipes"))
    console.print_error(UsageError("only this"))
    assert stream.getvalue() == "error: a[/x]␛␊b\nwhy: because\nfix: gpt2 recipes\nerror: only this\n"


def test_what_is_closed_is_silent_on_stderr_and_an_error_on_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    console.make_streams_safe()
    console.err().print("nobody hears this")
    with sys.stderr, pytest.raises(OSError) as caught, sys.stdout:
        console.out().print("nor this")
    assert caught.value.errno == errno.EBADF


def _put_in_place_of(name: str, descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    console.make_streams_safe()


@pytest.mark.parametrize("make", [os.pipe, pty.openpty])
def test_without_a_reader_stdout_fails_unless_it_may_and_stderr_is_silent(
    make: Callable[[], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = make()
    os.close(reader)
    _put_in_place_of("stdout", writer, monkeypatch)
    with pytest.raises(BrokenPipeError):
        print("a result", flush=True)
    console.let_stdout_fail()
    print("a path", flush=True)
    _put_in_place_of("stderr", writer, monkeypatch)
    console.say("a message")
    os.close(writer)


def test_a_full_stream_that_does_not_block_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _put_in_place_of("stdout", writer, monkeypatch)
    read = bytearray()

    def read_all() -> None:
        with open(reader, "rb") as file:
            read.extend(file.read())

    thread = threading.Thread(target=read_all)
    print("x" * 60_000, flush=True)  # nearly what a pipe holds
    timer = threading.Timer(0.05, thread.start)
    timer.start()
    print("y" * 60_000, flush=True)
    os.close(writer)
    timer.join()
    thread.join()
    assert read.decode().split() == ["x" * 60_000, "y" * 60_000]


def _on_a_terminal(code: str, **environment: str) -> bytes:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=follower, stderr=follower, env={**os.environ, **environment}
    ) as process:
        os.close(follower)
        pieces = []
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # Linux says EIO where others say end of file
                break
            if not piece:
                break
            pieces.append(piece)
        os.close(leader)
    assert process.returncode == 0, pieces
    return b"".join(pieces)


def test_a_terminal_gets_colour_unless_told_otherwise() -> None:
    environment = {"TERM": "xterm-256color", "COLUMNS": "80"}
    os.environ.pop("NO_COLOR", None)
    assert b"\x1b[32m" in _on_a_terminal(TALK, **environment)
    assert b"\x1b[32m" not in _on_a_terminal(TALK, **environment, NO_COLOR="1")
    assert b"\x1b" not in _on_a_terminal(TALK, **environment | {"TERM": "dumb"})


def test_a_dumb_terminal_is_not_redrawn() -> None:
    def made(**options: str) -> Console:
        return Console(file=io.StringIO(), force_terminal=True, _environ=options)

    assert console.is_terminal(made(TERM="xterm"))
    assert not console.is_terminal(made(TERM="dumb"))
    assert not console.is_terminal(Console(file=io.StringIO()))
