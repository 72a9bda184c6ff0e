"""The two consoles, their styles, and the one sanitiser of text for a terminal.

stdout is data, stderr is messages and progress. Markup is never interpreted: `[/x]` in a path is four
characters and not a tag; a style is given as `style="good"`.
"""

import errno
import io
import json
import os
import re
import select
import stat
import sys
from collections.abc import Container, Iterable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TextIO, cast

from gpt2cli.errors import Gpt2Error

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from rich.theme import Theme

# Rich is imported in bodies: help and shell completion do without it, and answer sooner.
STYLES = {
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "faint": "dim",
    "strong": "bold",
    "bar.complete": "cyan",
    "bar.finished": "green",
}


def theme() -> "Theme":
    """The names of styles in Rich's form."""
    from rich.theme import Theme

    return Theme(STYLES)


def out() -> "Console":
    """stdout: data, which a script may read."""
    return _console(stderr=False)


def err() -> "Console":
    """stderr: progress, notices, errors."""
    return _console(stderr=True)


def say(text: str, style: str = "") -> None:
    """Print a line to stderr, safe for a terminal whatever it contains, and apart from generated text."""
    from rich.text import Text

    end_line()
    print_message(err(), Text(printable(text), style=style))


def print_message(console: "Console", text: "Text") -> None:
    """Print it; on a terminal a sentence breaks between words, and a long path nowhere.

    A line with a command is left to the terminal, which pastes it whole; so are columns.
    """
    if is_terminal(console) and not re.search(r"gpt2 |\s\s|[\n\t]|^\s|\s$", text.plain):
        # As long as before: a line feed for a space.
        text.plain = "\n".join(wrapped(text.plain, console.width))
    console.print(text, soft_wrap=True)


def stream(text: str, exact: bool = False) -> None:
    """Print a piece of generated text to stdout, which may end inside a line; `exact`: as it is, in UTF-8."""
    global _line_is_open
    if exact:
        sys.stdout.buffer.write(text.encode("utf-8"))
    else:
        sys.stdout.write(printable(text))
    sys.stdout.flush()
    _line_is_open = not text.endswith("\n") if text else _line_is_open


def end_line() -> None:
    """End the line that generated text has left open, if a message is about to appear on the same screen."""
    global _line_is_open
    if _line_is_open and sys.stdout.isatty() and sys.stderr.isatty():
        sys.stderr.write("\n")
        _line_is_open = False


_line_is_open = False  # whether what `stream` has printed last ends inside a line


def printable(text: str) -> str:
    """The text with everything that could control a terminal made visible.

    Newline and tab pass. Other C0 controls and DEL become their Unicode pictures (ESC is ␛), and
    C1 controls, direction marks and overrides, line and paragraph separators and lone surrogates
    become <U+009B>. Works character by character, so pieces of a stream may be passed one at a time.
    """
    return text.translate(_VISIBLE)


def amount(n_bytes: float) -> str:
    """For people: 548.1 MB."""
    units = (("GB", 1e9), ("MB", 1e6), ("KB", 1e3))
    for unit, size in units:
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {unit}"
    return f"{n_bytes:.0f} bytes"


def aligned(rows: Iterable[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """A line per row, of any length, with its cells in columns; those in `right` are set to the right.

    A row of a single cell widens no column.
    """
    from rich.cells import cell_len

    rows = list(rows)
    columns = zip_longest(*(row for row in rows if len(row) > 1), fillvalue="")
    widths = [max(map(cell_len, column)) for column in columns]

    def line(row: Sequence[str]) -> str:
        cells = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=False)):
            gap = " " * (width - cell_len(cell))
            cells.append(gap + cell if i in right else cell + gap)
        return "  ".join(cells).rstrip()

    return [line(row) if len(row) > 1 else "".join(row) for row in rows]


def definitions(rows: Sequence[tuple[str, str]], width: int | None, longest: int = 26) -> list[str]:
    """Lines of terms with their meanings beside them, or below them where a term is longer than `longest`.

    They break between words, and nowhere without a `width`.
    """
    widest = max((len(term) for term, _ in rows), default=0)
    column = 2 + min(widest, longest) + 2
    lines = []
    for term, meaning in rows:
        first = f"  {term}"
        if width is None:
            lines.append(f"{term:<{widest}}  {meaning}".rstrip())
            continue
        if len(first) + 2 > column:
            lines.append(first)
            first = ""
        lines += wrapped(meaning, width, first.ljust(column), later=column) or [first]
    return lines


def wrapped(text: str, width: int, first: str = "", later: int = 0) -> list[str]:
    """The text in lines of at most `width`, no word broken; the first line begins with `first`, the others
    at column `later`.
    """
    from textwrap import wrap

    return wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=" " * later,
        break_long_words=False,
        break_on_hyphens=False,
    )


def shortened(text: str, most: int) -> str:
    """The text, or of a longer one the beginning and "…": `most` characters in all."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def print_error(error: Gpt2Error) -> None:
    """Print what happened, why, and the fix to stderr: one line each, whatever the messages contain."""
    from rich.text import Text

    end_line()
    console = err()
    parts = (("error", error.what, "bad"), ("why", error.why, ""), ("fix", error.fix, ""))
    for label, text, style in parts:
        if text:
            line = printable(text).replace("\n", "␊").replace("\t", " ")
            message = Text.assemble((f"{label}:", style or "faint"), f" {line}")
            if label == "fix":
                console.print(message)
            else:
                print_message(console, message)


def print_json(value: object) -> None:
    """A line on stdout for a script; ASCII, so that nothing in it can control a terminal."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def print_result(as_json: bool, facts: object, line: object) -> None:
    """Print the result to stdout: with --json all the facts, else one line for scripts."""
    if as_json:
        print_json(facts)
    else:
        out().print(printable(str(line)))


def make_streams_safe() -> None:
    """Make stdout and stderr take any text, and stderr fail at none. Called once, before anything is printed.

    Characters that their encoding lacks are written as \\u2603. What stderr cannot take, because its
    terminal, its reader or its disk is gone, is dropped: no message is worth the work that it is about.
    If the parent process has closed them, stderr is silent and writing to stdout fails as on a bad disk.
    """
    for number in range(3):  # a closed one's number would go to a file, and what C code prints with it
        if not _is_open(number):
            os.open(os.devnull, os.O_RDONLY)
    sys.stdout = _safe(sys.stdout, may_fail=False)
    sys.stderr = _safe(sys.stderr, may_fail=True)


def let_stdout_fail() -> None:
    """From now on drop what stdout cannot take: the work is on the disk, or a signal ends the program."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Descriptor):
        raw.may_fail = True


def is_terminal(console: "Console") -> bool:
    """Whether lines can be redrawn there; a dumb terminal counts as a file."""
    return console.is_terminal and not console.is_dumb_terminal


class _Descriptor(io.FileIO):
    """The lowest layer of stdout or stderr, under all that prints: Rich, logging, the interpreter itself.

    Raises BrokenPipeError for a terminal that is gone as for a pipe without a reader.
    """

    may_fail = False  # what cannot be written is dropped

    def write(self, data: Any, /) -> int:
        try:
            while (n := cast("int | None", super().write(data))) is None:  # set not to block, and full
                select.select([], [self], [])
            return n
        except OSError as error:
            if self.may_fail:
                return len(data)
            if error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode):
                raise BrokenPipeError(errno.EPIPE, "the terminal is gone") from None
            raise


def _safe(stream: TextIO | None, *, may_fail: bool) -> TextIO:
    """The same stream over a `_Descriptor`."""
    if stream is None:  # closed by the parent process; a write fails with EBADF
        raw, encoding = _Descriptor(os.open(os.devnull, os.O_RDONLY), "wb"), "utf-8"
    else:
        stream.flush()
        try:
            number = stream.fileno()
        except io.UnsupportedOperation:  # in memory, such as a notebook's
            return stream
        raw, encoding = _Descriptor(number, "wb", closefd=False), stream.encoding
    raw.may_fail = may_fail
    is_read_at_once = may_fail or raw.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=is_read_at_once
    )


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        theme=theme(),
        markup=False,
        emoji=False,
        highlight=False,
        # Lines are wrapped by the terminal: a wrapped path in a log cannot be copied or found.
        soft_wrap=True,
        # Rich would also colour files when FORCE_COLOR is set. NO_COLOR and COLUMNS it respects.
        force_terminal=stream is not None and stream.isatty(),
    )


_BIDIRECTIONAL = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_NAMED = [*range(0x80, 0xA0), 0x2028, 0x2029, *_BIDIRECTIONAL, *range(0xD800, 0xE000)]
_VISIBLE = (
    {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
    | {0x7F: "␡"}
    | {code: f"<U+{code:04X}>" for code in _NAMED}
)
