"""The handling of Ctrl-C, SIGTERM and SIGHUP, a closed terminal, in all commands.

A process started with SIGINT or SIGHUP ignored leaves it ignored: shells start background jobs without
the first, and nohup without the second. SIGTERM always counts.
"""

import contextlib
import io
import os
import select
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import IO, NoReturn

from gpt2cli.ui.console import let_stdout_fail

Handler = Callable[[int, FrameType | None], None]


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does: by an exception, with their own exit codes."""
    install(_exit, (signal.SIGTERM, signal.SIGHUP))


def install(
    handle: Handler, numbers: tuple[int, ...] = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
) -> Callable[[], None]:
    """Send these signals, but for ignored ones, to `handle`; returns a function that undoes it."""
    heard = [n for n in numbers if n == signal.SIGTERM or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}

    def undo() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return undo


@contextlib.contextmanager
def stop_on_signal(message: str) -> Iterator[Callable[[], int]]:
    """In the block, the first signal sets a flag and prints `message`; a second one exits at once.

    SIGHUP counts neither as a first nor as a second one: the shell and the system send one each when a
    terminal is closed, and a shutdown adds SIGTERM.
    Yields a function that returns the number of the signal, 0 before it comes.
    """
    received, is_asked = 0, False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received, is_asked
        if is_asked and number != signal.SIGHUP:
            os._exit(128 + number)  # whatever is being written is under a temporary name
        is_asked = is_asked or number != signal.SIGHUP
        received = received or number
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
    try:
        number = stream.fileno()
    except io.UnsupportedOperation:  # in memory: always ready
        return
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        while number not in select.select([number, woken], [], [])[0]:
            os.read(woken, 1)  # a handler that has raised nothing
    finally:
        signal.set_wakeup_fd(before)
        os.close(woken)
        os.close(wake)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    if number == signal.SIGHUP:  # another one follows and would disturb the end
        signal.signal(number, signal.SIG_IGN)
    let_stdout_fail()
    raise SystemExit(128 + number)
