"""The line editor of the chat: its keys, messages of several lines, and the history file.

Built on prompt_toolkit; imported only at a terminal.
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from gpt2cli.errors import InputError
from gpt2cli.files import open_regular, replacing_file
from gpt2cli.tokenizer.base import without_surrogates
from gpt2cli.ui.console import say

PROMPT = "> "
MORE = "  "  # before the further lines of a message
LONGEST_ENTRY = 20_000  # characters; a longer message is not kept
MOST_HISTORY, MOST_ENTRIES = 1 << 20, 10_000  # bytes and entries that are kept, the newest


class LineEditor:
    """Reads messages, each of one or more lines, and keeps them in the file `history`.

    Enter ends a message; Alt-Enter, or a backslash before Enter, adds a line to it. A paste is one
    message, however many lines it has. Other keys are those of Emacs.
    """

    def __init__(self, history: Path | None, terminal: TextIO, words: Sequence[str] = ()) -> None:
        """`terminal` is the stream on which the typed text appears; keys come from stdin. Tab completes a
        message that begins one of `words`.
        """
        self._history = _Entries(history)
        output = Vt100_Output.from_pty(terminal, os.environ.get("TERM"))
        # Asked for its cursor position, a terminal may answer late, into the next message, or never.
        output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=MORE,
            key_bindings=_keys(),
            history=self._history,
            completer=WordCompleter(words, sentence=True),
            complete_style=CompleteStyle.READLINE_LIKE,
            complete_while_typing=False,
            enable_suspend=True,
            output=output,
        )

    def read(self) -> str:
        """The next message. Raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C."""
        try:
            with _ending_on_signals(self._session.app) as begin:
                text = self._session.prompt(pre_run=begin)
        finally:  # only now is the line free
            if notice := self._history.take_notice():
                say(notice, "warn")
        return without_surrogates(text)  # bytes that are not UTF-8 arrive as such


@contextlib.contextmanager
def _ending_on_signals(app: Application[str]) -> Iterator[Callable[[], None]]:
    """SIGTERM and SIGHUP end the editor like Ctrl-D, and then the program.

    An exception inside its event loop would be reported as a crash. Yields a function to call when the
    editor starts.
    """
    received = 0

    def leave() -> None:
        if received and app.future is not None and not app.future.done():
            app.exit(exception=EOFError)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        if app.loop is not None:
            app.loop.call_soon_threadsafe(leave)

    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield leave
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            raise SystemExit(128 + received)


def _keys() -> KeyBindings:
    keys = KeyBindings()
    writing = has_focus(DEFAULT_BUFFER)  # and not, say, searching the history

    @keys.add("enter", filter=writing)
    def _end_or_continue(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=writing)
    def _another_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


class _Entries(History):
    """A JSON string per line, so that a message of several lines is one entry. Readable only by its owner.

    A history that cannot be read or written is one notice; the messages of this session are kept.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self._path, self._is_broken, self._notice = path or Path(os.devnull), path is None, ""

    def take_notice(self) -> str:
        """Return the pending notice, once."""
        notice, self._notice = self._notice, ""
        return notice

    def load_history_strings(self) -> Iterable[str]:
        """Newest first. Entries that are too old are removed from the file too."""
        if self._is_broken:
            return []
        try:
            if not os.path.lexists(self._path):
                return []
            with open_regular(self._path) as file:
                start = max(0, file.seek(0, os.SEEK_END) - MOST_HISTORY)
                file.seek(start)
                lines = file.read(MOST_HISTORY).split(b"\n")[1 if start else 0 :]
            kept = [(line, entry) for line in lines if (entry := _entry(line))][-MOST_ENTRIES:]
            if start or len(lines) > MOST_ENTRIES + 1:
                with replacing_file(self._path) as rest:
                    os.fchmod(rest.fileno(), 0o600)
                    rest.writelines(line + b"\n" for line, _ in kept)
        except (InputError, OSError) as error:
            self._fail(error)
            return []
        return [entry for _, entry in reversed(kept)]

    def store_string(self, string: str) -> None:
        if self._is_broken or len(string) > LONGEST_ENTRY:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # O_NONBLOCK: opening a FIFO with no reader would otherwise block for ever.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
                size = os.fstat(descriptor).st_size
                is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, b"\n" * is_torn + json.dumps(string).encode("ascii") + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: InputError | OSError) -> None:
        self._is_broken = True
        why = error.what if isinstance(error, InputError) else f"{self._path}: {error.strerror}"
        self._notice = f"the history is not kept: {why}"


def _entry(line: bytes) -> str:
    """The entry of a line; "" for a torn line, or one of another program."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return value if isinstance(value, str) else ""
