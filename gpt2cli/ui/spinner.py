"""Owns what a terminal does while its person waits: a sign that something is under way of which
nothing is known yet, and keys that do not show.

Imports nothing heavy: the first thing to wait for is such an import.
"""

import contextlib
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from gpt2cli.ui.console import is_terminal, printable

SHOWING = termios.ECHO | termios.ICANON  # by lines, the system would keep 4,096 bytes of each
PATIENCE = 0.5  # seconds; what is quicker would only flicker


@contextlib.contextmanager
def waiting(console: Console, text: str, patience: float = PATIENCE) -> Iterator[Callable[[], None]]:
    """Shows `text` once the block has taken `patience` seconds. Gives what takes the sign away early."""
    if not is_terminal(console):
        if console.is_terminal and not patience:  # a dumb one: a line cannot be taken away again
            console.print(printable(text))
        yield lambda: None
        return
    sign = Progress(
        SpinnerColumn(),
        TextColumn(printable(text).replace("\n", "␊"), markup=False, style="faint"),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    sign.add_task("", total=None)
    timer = threading.Timer(patience, sign.start)
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


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """What is typed inside the block does not show between the lines of a reply; whoever reads keys
    next gets it. Ctrl-C and Ctrl-Z mean what they always do.
    """
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    quiet = [*before]
    quiet[3] &= ~SHOWING
    termios.tcsetattr(stdin, termios.TCSADRAIN, quiet)

    def renew(number: int, frame: FrameType | None) -> None:
        """A shell sets the terminal back as it was; not while a line editor has it, nor in the background."""
        with contextlib.suppress(OSError, termios.error):  # it may have gone, or be nobody's
            if os.tcgetpgrp(stdin) == os.getpgrp() and termios.tcgetattr(stdin)[3] & SHOWING:
                termios.tcsetattr(stdin, termios.TCSANOW, quiet)

    handler = signal.signal(signal.SIGCONT, renew)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, handler)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
