"""The handling of Ctrl-C and SIGTERM in all commands.

A process started with SIGINT ignored leaves it ignored: shells start background jobs that way, and
the terminal's Ctrl-C is then meant for another program. SIGTERM always counts.
"""

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import IO, NoReturn

Handler = Callable[[int, FrameType | None], None]


def exit_on_sigterm() -> None:
    """Let SIGTERM end the program as Ctrl-C does: by an exception, with its own exit code."""
    signal.signal(signal.SIGTERM, _exit)


def install(handle: Handler) -> Callable[[], None]:
    """Send Ctrl-C and SIGTERM to `handle`; returns a function that undoes it."""
    heard = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        heard.append(signal.SIGINT)
    before = {number: signal.signal(number, handle) for number in heard}

    def undo() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return undo


@contextlib.contextmanager
def stop_on_signal(message: str) -> Iterator[Callable[[], int]]:
    """In the block, the first SIGINT or SIGTERM sets a flag and prints `message`; the second exits at once.

    Yields a function that returns the number of the signal, 0 before it comes.
    """
    received = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            os._exit(128 + number)  # whatever is being written is under a temporary name
        received = number
        with contextlib.suppress(OSError):
            os.write(2, f"\n{signal.Signals(number).name}: {message}\n".encode())

    undo = install(handle)
    try:
        yield lambda: received
    finally:
        undo()


@contextlib.contextmanager
def on_sigusr1() -> Iterator[Callable[[], bool]]:
    """In the block, SIGUSR1 asks for something: yields a function that returns True once after each."""
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    def was_asked() -> bool:
        nonlocal asked
        answer, asked = asked, False
        return answer

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        yield was_asked
    finally:
        signal.signal(signal.SIGUSR1, before)


def wait_for_input(stream: IO[bytes]) -> None:
    """Return when `stream` can be read, or raise what the handler of a signal raises.

    A plain read sleeps through a signal that comes just before it, or that another thread receives.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        while stream.fileno() not in select.select([stream.fileno(), woken], [], [])[0]:
            os.read(woken, 1)  # a handler that has raised nothing
    finally:
        signal.set_wakeup_fd(before)
        os.close(woken)
        os.close(wake)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
