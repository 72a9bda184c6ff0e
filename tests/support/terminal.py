"""A pseudo-terminal with `gpt2` in it, as a person has it: keys go in, what would be shown comes out."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

PATIENCE = 60.0  # seconds
STEERING = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")  # what the program itself sends to place and colour text
PASTES_ON = b"\x1b[?2004h"


class Terminal:
    """A context manager: the program runs in a session of its own whose terminal this is.

    `piped` names the streams, of 0, 1 and 2, that are a pipe instead.
    """

    def __init__(
        self, arguments: Sequence[str], *, columns: int = 80, piped: Sequence[int] = (), **environment: str
    ) -> None:
        self._parent, self._child = pty.openpty()
        fcntl.ioctl(self._child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.settings = termios.tcgetattr(self._child)
        streams = [subprocess.PIPE if number in piped else self._child for number in range(3)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpt2cli", *arguments],
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(self._child, termios.TIOCSCTTY, 0),
        )
        self.seen = b""  # everything
        self._start = 0  # of what `until` has not passed yet

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._parent)
        os.close(self._child)

    def type(self, keys: str | bytes) -> None:
        data = keys.encode() if isinstance(keys, str) else keys
        while data:
            data = data[os.write(self._parent, data[:1000]) :]

    def until(self, text: str) -> str:
        """What is shown up to and with `text`, of all that came since the call before; without colours."""
        wanted, end = text.encode().replace(b"\n", b"\r\n"), time.monotonic() + PATIENCE
        while True:
            shown = STEERING.sub(b"", self.seen[self._start :])
            if wanted in shown:
                found = shown[: shown.index(wanted) + len(wanted)]
                # Steering codes stay where they are, so the place is found by counting without them.
                self._start = self._place_after(len(found))
                return found.decode("utf-8", "replace").replace("\r\n", "\n")
            assert time.monotonic() < end, f"{text!r} does not come after {shown.decode()!r}"
            self._read()

    def ready(self) -> str:
        """The same, up to where the line editor waits for keys; it then asks for pastes to be marked."""
        end = time.monotonic() + PATIENCE
        while (place := self.seen.find(PASTES_ON, self._start)) < 0:
            assert time.monotonic() < end, f"no prompt after {self.seen[self._start :]!r}"
            self._read()
        shown, self._start = self.seen[self._start : place], place + len(PASTES_ON)
        return STEERING.sub(b"", shown).decode().replace("\r\n", "\n")

    def ended(self) -> int:
        """The exit code."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, f"goes on after {self.seen!r}"
            self._read()
        while self._read(0.0):
            pass
        return self.process.returncode

    def is_as_before(self) -> bool:
        """Whether the terminal has the settings that it had before the program."""
        return termios.tcgetattr(self._child) == self.settings

    def continued_by_a_shell(self) -> None:
        """What a shell does at `fg`: the terminal is as it was before, and the program goes on. Returns
        once the program has set it for itself again.
        """
        termios.tcsetattr(self._child, termios.TCSANOW, self.settings)
        self.process.send_signal(signal.SIGCONT)
        end = time.monotonic() + PATIENCE
        while self.is_as_before():
            assert time.monotonic() < end, "the terminal stays as the shell has left it"
            self._read()

    def _read(self, seconds: float = 0.05) -> bool:
        if not select.select([self._parent], [], [], seconds)[0]:
            return False
        self.seen += os.read(self._parent, 1 << 16)
        return True

    def _place_after(self, n: int) -> int:
        place = self._start
        while n:
            code = STEERING.match(self.seen, place)
            if code:
                place = code.end()
            else:
                place, n = place + 1, n - 1
        return place
