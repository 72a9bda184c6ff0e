"""The spinner for waits of unknown length, and a terminal that does not echo keys meanwhile.

Imports nothing heavy: the first wait is for a heavy import.
"""

import contextlib
import importlib
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from gpt2cli.ui.console import err, is_terminal, printable

if TYPE_CHECKING:
    from rich.console import Console

ECHO_FLAGS = termios.ECHO | termios.ICANON  # line mode would keep only 4,096 bytes of a line
DELAY = 0.5  # seconds; a shorter wait would only flicker


@contextlib.contextmanager
def waiting(console: "Console", text: str, delay: float = DELAY) -> Iterator[Callable[[], None]]:
    """Shows `text` once the block has taken `delay` seconds. Yields a function that removes it early."""
    if not is_terminal(console):
        if console.is_terminal and not delay:  # a dumb one cannot erase a line
            console.print(printable(text))
        yield lambda: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn

    sign = Progress(
        SpinnerColumn(),
        TextColumn(printable(text).replace("\n", "␊"), markup=False, style="faint"),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    sign.add_task("", total=None)
    timer = threading.Timer(delay, sign.start)
    timer.daemon = True

    def end() -> None:
        timer.cancel()
        timer.join()  # else it might start what has been stopped
        sign.stop()

    timer.start()
    try:
        yield end
    finally:
        end()


def load_torch() -> None:
    """Import torch, the longest part of a start; what follows has it at once."""
    with waiting(err(), "loading PyTorch"):
        importlib.import_module("torch")


@contextlib.contextmanager
def echo_off() -> Iterator[None]:
    """Keys typed in the block do not show between the lines of a reply; the next reader gets them.

    Ctrl-C and Ctrl-Z work as always.
    """
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    quiet = [*before]
    quiet[3] &= ~ECHO_FLAGS
    termios.tcsetattr(stdin, termios.TCSADRAIN, quiet)

    def renew(number: int, frame: FrameType | None) -> None:
        """After Ctrl-Z and fg; not while a line editor has the terminal, nor in the background."""
        with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
            if os.tcgetpgrp(stdin) == os.getpgrp() and termios.tcgetattr(stdin)[3] & ECHO_FLAGS:
                termios.tcsetattr(stdin, termios.TCSANOW, quiet)

    handler = signal.signal(signal.SIGCONT, renew)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, handler)
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(stdin, termios.TCSADRAIN, before)
