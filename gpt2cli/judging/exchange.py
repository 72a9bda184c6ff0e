"""Owns one HTTP exchange with a judge's server: bounded in time and size, and cut from outside.

Whatever another attempt may mend is `LostError`. What the body means is not known here.
"""

import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from socket import SHUT_RDWR, socket
from typing import Any

import httpx

from gpt2cli.weights.patience import Guard, Patience

LARGEST = 1 << 20  # bytes of a body; an answer has some hundreds


class LostError(Exception):
    """An exchange that brought nothing. `wait` is the pause in seconds that the server asks for."""

    def __init__(self, why: str, wait: float | None = None, *, is_down: bool = False) -> None:
        super().__init__(why, wait)
        self.why, self.wait = why, wait
        self.is_down = is_down  # there was not even a connection


@dataclass(frozen=True)
class Received:
    status: int
    headers: Mapping[str, str]  # names in small letters
    body: bytes


@dataclass
class Hangup:
    """Cuts the exchanges of other threads, and ends their pauses."""

    over: threading.Event = field(default_factory=threading.Event)
    _streams: dict[int, Any] = field(default_factory=dict)  # httpcore's, by thread
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hang_up(self) -> None:
        self.over.set()
        with self._lock:
            for stream in self._streams.values():
                _cut(stream)

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """What httpcore calls at each step of a request."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._streams[threading.get_ident()] = info["return_value"]
                if self.over.is_set():
                    _cut(info["return_value"])

    @contextmanager
    def listening(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._lock:
                self._streams.pop(threading.get_ident(), None)


def exchange(
    method: str,
    url: str,
    headers: Mapping[str, str],
    content: bytes | None,
    patience: Patience,
    hangup: Hangup,
) -> Received:
    """Send a request, read the whole answer. Redirects are not followed. Raises LostError."""
    until = time.monotonic() + patience.total if patience.total else None
    host = httpx.URL(url).host
    # A connection each: one that was kept may have died since, and a guard watches from the first byte on.
    with (
        Guard(patience, until) as guard,
        hangup.listening(),
        httpx.Client(
            timeout=httpx.Timeout(patience.stall, connect=patience.connect),
            verify=_trust(),
            trust_env=not is_loopback(host),  # a proxy cannot reach our own machine for us
        ) as client,
    ):

        def trace(event: str, info: Mapping[str, Any]) -> None:
            guard.trace(event, info)
            hangup.trace(event, info)

        asked = {"accept-encoding": "identity", "connection": "close", **headers}
        try:
            with client.stream(
                method, url, headers=asked, content=content, extensions={"trace": trace}
            ) as response:
                body = _body(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise LostError(str(error) or "no connection in time", is_down=True) from None
        except httpx.TimeoutException:
            raise LostError(guard.why or f"timed out: nothing came for {patience.stall:g} seconds") from None
        except httpx.TransportError as error:
            raise LostError(
                guard.why or f"the answer ended early ({error or type(error).__name__})"
            ) from None
        if guard.why:  # a body without a marked end seems to be whole when the guard has cut it
            raise LostError(guard.why)
        return Received(response.status_code, {k.lower(): v for k, v in response.headers.items()}, body)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with suppress(ValueError):
        address = ipaddress.ip_address(host.strip("[]"))
        return address.is_loopback or address.is_unspecified
    return False


def _body(response: httpx.Response) -> bytes:
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise LostError("the answer is compressed, though it was asked for as it is")
    body = bytearray()
    for block in response.iter_raw():
        body += block
        if len(body) > LARGEST:
            raise LostError(f"the answer has more than {LARGEST >> 20} MiB")
    return bytes(body)


@cache
def _trust() -> ssl.SSLContext:
    """Whom to believe over TLS; reading the certificates takes longer than a short exchange."""
    return httpx.create_ssl_context()


def _cut(stream: Any) -> None:
    # The plain method: an SSL socket's own would take its state from the reading thread.
    with suppress(OSError):
        socket.shutdown(stream.get_extra_info("socket"), SHUT_RDWR)
