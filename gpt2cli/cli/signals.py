"""Owns what Ctrl-C and SIGTERM mean while a run is under way: the first asks, the second leaves."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType


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

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
