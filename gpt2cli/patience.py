"""Owns how long an exchange may take, how long to wait before another, and the guard that ends a long one."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds, and how often to try."""

    connect: float = 10.0
    stall: float = 30.0  # without a byte
    window: float = 30.0  # in each window at least `slowest` bytes a second have to come
    slowest: float = 1000.0
    total: float | None = None  # for the whole file
    attempts: int = 6  # in a row that bring less than `progress` bytes
    progress: int = 1 << 20
    first_pause: float = 0.5  # doubles from attempt to attempt
    longest_pause: float = 30.0
    longest_wait: float = 120.0  # that a server may ask for with Retry-After


def retry_after(value: str) -> float | None:
    """Seconds to wait, from a Retry-After header: a number of them, or a date."""
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


class Guard:
    """Cuts a connection that brings too little, or that goes on for too long.

    httpx limits each single read, which a byte a second passes for ever, in the head of a response
    as well as between the chunks of a body. A thread looks at each window, and shuts the socket.
    """

    def __init__(self, patience: Patience, until: float | None) -> None:
        self.why = ""
        self._patience, self._until = patience, until
        self._n_bytes = 0
        self._stream: Any = None  # httpcore's, as its trace gives it
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """What httpcore calls at each step of a request."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._stream = info["return_value"]

    def fed(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        patience, before = self._patience, 0
        while True:
            left = self._until - time.monotonic() if self._until is not None else patience.window
            if self._over.wait(max(0.0, min(patience.window, left))):
                return
            if left <= patience.window and self._until is not None:
                self.why = f"not finished within {patience.total or 0:.0f} seconds"
            elif self._n_bytes - before < patience.slowest * patience.window:
                n_new = self._n_bytes - before
                self.why = f"timed out: only {n_new} bytes came in {patience.window:g} seconds"
            before = self._n_bytes
            if self.why:
                break
        while self._stream is None:  # still connecting, which has a limit of its own
            if self._over.wait(0.1):
                return
        # The plain method: an SSL socket's own would take its state from the reading thread.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._stream.get_extra_info("socket"), socket.SHUT_RDWR)
