"""What Ctrl-C and SIGTERM mean, in every command.

A process that was started with SIGINT ignored leaves it ignored: shells start background jobs so, and
then the terminal's Ctrl-C is meant for another program. SIGTERM always counts.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

Handler = Callable[[int, FrameType | None], None]


def exit_on_sigterm() -> None:
    """Let SIGTERM end the program as Ctrl-C does: by an exception, with its own exit code."""
    signal.signal(signal.SIGTERM, _exit)


def install(handle: Handler) -> Callable[[], None]:
    """Let `handle` get Ctrl-C and SIGTERM; returns what undoes that."""
    heard = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        heard.append(signal.SIGINT)
    before = {number: signal.signal(number, handle) for number in heard}

    def undo() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return undo


@contextlib.contextmanager
def polite_stop(promise: str) -> Iterator[Callable[[], int]]:
    """Inside the block the first signal only sets a flag and prints `promise`; the second one exits.

    Gives a function that returns the signal's number, or 0 as long as none came.
    """
    received = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            os._exit(128 + number)  # whatever is being written is under a temporary name
        received = number
        with contextlib.suppress(OSError):
            os.write(2, f"\n{signal.Signals(number).name}: {promise}\n".encode())

    undo = install(handle)
    try:
        yield lambda: received
    finally:
        undo()


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
