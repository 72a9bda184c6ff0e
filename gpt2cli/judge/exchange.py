"""Owns one HTTP exchange with a judge's server: bounded in time and size, and cut from outside.

Whatever another attempt may mend is `LostError`. What the body means is not known here. Nothing that
leaves this file holds the key: a server, or a library that quotes what it was sent, may say it back.
"""

import ipaddress
import json
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from socket import SHUT_RDWR, socket
from typing import Any

import httpx

from gpt2cli.errors import UsageError
from gpt2cli.patience import Guard, Patience

LARGEST = 1 << 20  # bytes of a body; an answer has some hundreds
SHORTEST_KEY = 8  # characters: a shorter one guards nothing, and "1" or "none" stands in every answer


class LostError(Exception):
    """An exchange that brought nothing. `wait` is the pause in seconds that the server asks for."""

    def __init__(
        self, why: str, wait: float | None = None, *, is_down: bool = False, is_slow: bool = False
    ) -> None:
        super().__init__(why, wait)
        self.why, self.wait = why, wait
        self.is_down = is_down  # there was not even a connection
        self.is_slow = is_slow  # a time-out: another attempt may cost as much again


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
    secret: str | None = None,
) -> Received:
    """Send a request, read the whole answer. Redirects are not followed.

    Raises LostError, and UsageError where the environment's proxy or certificates are of no use.
    """
    until = time.monotonic() + patience.total if patience.total else None
    # A connection each: one that was kept may have died since, and a guard watches from the first byte on.
    with Guard(patience, until) as guard, hangup.listening(), _client(url, patience) as client:

        def trace(event: str, info: Mapping[str, Any]) -> None:
            guard.trace(event, info)
            hangup.trace(event, info)

        def lost(why: str, **kind: bool) -> LostError:
            return LostError(guard.why or _scrubbed(why, secret), is_slow=bool(guard.why), **kind)

        asked = {"accept-encoding": "identity", "connection": "close", **headers}
        try:
            with client.stream(
                method, url, headers=asked, content=content, extensions={"trace": trace}
            ) as response:
                body = _body(response)
        except httpx.ConnectTimeout:
            why = f"no connection within {patience.connect:g} seconds"
            raise LostError(why, is_down=True, is_slow=True) from None
        except httpx.ConnectError as error:
            raise lost(_plain(str(error)), is_down=True) from None
        except httpx.TimeoutException:
            why = guard.why or f"timed out: nothing came for {patience.stall:g} seconds"
            raise LostError(why, is_slow=True) from None
        except httpx.ProxyError as error:
            raise lost(f"the proxy does not let us through ({error})") from None
        except httpx.TransportError as error:
            raise lost(f"the answer ended early ({error or type(error).__name__})") from None
        if guard.why:  # a body without a marked end seems to be whole when the guard has cut it
            raise lost("")
        named = {k.lower(): _scrubbed(v, secret) for k, v in response.headers.items()}
        return Received(
            response.status_code, named, _scrubbed(body.decode("latin-1"), secret).encode("latin-1")
        )


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


def _client(url: str, patience: Patience) -> httpx.Client:
    """Raises UsageError for what the environment says of proxies and certificates, where it is of no use."""
    target = httpx.URL(url)
    has_proxies = not is_loopback(target.host)  # a proxy cannot reach our own machine for us
    schemes = [target.scheme, *(urllib.request.getproxies().values() if has_proxies else ())]
    is_secret = any(scheme.lower().startswith("https") for scheme in schemes)
    verify = _trust() if is_secret else False
    timeout = httpx.Timeout(patience.stall, connect=patience.connect)
    try:
        return httpx.Client(timeout=timeout, verify=verify, trust_env=has_proxies)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise UsageError(
            f"the proxy that the environment names is of no use for {target.host}",
            re.sub("//[^/@]*@", "//", str(error)),  # its address may hold a password
            f"unset HTTP_PROXY HTTPS_PROXY ALL_PROXY, or export NO_PROXY={target.host}",
        ) from None


@cache
def _trust() -> ssl.SSLContext:
    """Whom to believe over TLS; reading the certificates takes longer than a short exchange."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # an SSLError is one, too
        raise UsageError(
            "the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read",
            str(error),
            "unset SSL_CERT_FILE SSL_CERT_DIR, or name a file of certificates",
        ) from None


def _plain(why: str) -> str:
    """Why there is no connection, for people."""
    if "refused" in why.lower():
        return "nothing listens there: the connection was refused"
    return re.sub(r"^\[Errno[^\]]*\] ", "", why) or "no connection"


def _scrubbed(text: str, secret: str | None) -> str:
    """The text without the key, also where it stands in JSON, or in a string that Python has quoted."""
    if not secret or len(secret) < SHORTEST_KEY:
        return text
    quoted = json.dumps(secret)[1:-1]
    forms = {secret, quoted, json.dumps(quoted)[1:-1], repr(secret)[1:-1]}
    forms |= {form.replace("/", "\\/") for form in forms}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "(the key)")
    return text


def _cut(stream: Any) -> None:
    # The plain method: an SSL socket's own would take its state from the reading thread.
    with suppress(OSError):
        socket.shutdown(stream.get_extra_info("socket"), SHUT_RDWR)
