"""Owns one HTTP exchange: where it may lead, how long it may take, and what came back.

Everything that another attempt may mend is `TransientError`; everything else is an error for the user.
It knows no files: `download.py` decides what is done with the bytes.
"""

import base64
import binascii
import contextlib
import re
import socket
import ssl
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from urllib.request import getproxies

import httpx

from gpt2cli import __version__
from gpt2cli.errors import ServiceError, UsageError
from gpt2cli.patience import Guard, Patience, retry_after

AGENT = f"gpt2cli/{__version__}"
MAX_REDIRECTS = 10
_REDIRECTS = {301, 302, 303, 307, 308}
_BUSY = {408, 429, 500, 502, 503, 504}  # worth another attempt
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\s*$")
_HINTS = {
    401: "the server wants to know who asks",
    403: "the server refuses it",
    404: "there is no such file",
    410: "the file is gone",
}
_SIGNED_IN = {401, 403}


class TransientError(Exception):
    """An exchange failed in a way that another attempt may mend.

    `wait` is the pause before it in seconds; None leaves it to whoever tries again.
    """

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why, wait)
        self.why, self.wait = why, wait


@dataclass(frozen=True)
class Reply:
    """The answer 200, 206 or 416. `blocks` gives the body once, and raises TransientError."""

    status: int
    start: int  # where in the file the body begins
    n_total: int | None  # bytes of the whole file
    validator: str  # changes when the file changes; "" where the server says nothing
    hashes: Mapping[str, str]  # of the whole file, in hex, as far as the server tells: {kind: digits}
    has_marked_end: bool  # else a lost connection looks like the end
    is_packed: bool  # compressed on the way: positions in it are not positions in the file
    blocks: Iterator[bytes] = field(repr=False)


def shown(address: str) -> str:
    """An address for people: without password and without the signature of a temporary link."""
    url = httpx.URL(address)
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))


@contextlib.contextmanager
def ask(
    address: str, headers: Mapping[str, str], start: int, patience: Patience, until: float | None
) -> Iterator[Reply]:
    """GET `address` from byte `start` on; `until` is the end of all patience on the monotonic clock.

    Raises TransientError, or ServiceError where another attempt would be of no use.
    """
    asked = {"user-agent": AGENT, "accept-encoding": "identity", **headers}
    if start:
        asked["range"] = f"bytes={start}-"
    limits = httpx.Timeout(patience.stall, connect=patience.connect)
    with Guard(patience, until) as guard, httpx.Client(timeout=limits, verify=_trust()) as client:
        told: dict[str, str] = {}
        response = _follow(client, address, asked, guard, patience, told)
        try:
            yield _read_head(response, guard, told)
        finally:
            response.close()


@cache
def _trust() -> ssl.SSLContext:
    """Whom to believe over TLS; reading the certificates takes longer than a small file."""
    return httpx.create_ssl_context()


def _follow(
    client: httpx.Client,
    address: str,
    headers: dict[str, str],
    guard: Guard,
    patience: Patience,
    told: dict[str, str],
) -> httpx.Response:
    """The response at the end of the redirects. The Authorization header never leaves its host.

    Adds to `told` the hash that the hub gives on the way to the store where the bytes lie.
    """
    url = _parse(address)
    for _ in range(MAX_REDIRECTS + 1):
        with _as_broken(guard):
            _look_up(url.host, patience.connect)
            try:
                request = client.build_request("GET", url, headers=headers)
            except (UnicodeEncodeError, ValueError):
                raise UsageError(
                    "the access token or the address has characters that HTTP cannot carry",
                    fix="look at HF_TOKEN and --base-url",
                ) from None
            request.extensions["trace"] = guard.trace
            response = client.send(request, stream=True)
        told |= _hub_hash(response.headers)
        if response.status_code not in _REDIRECTS or "location" not in response.headers:
            return _checked(response, patience)
        response.close()
        following = _join(url, response.headers["location"])
        if _origin(following) != _origin(url):
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        url = following
    raise ServiceError(f"{shown(address)}: redirects in circles", f"after {MAX_REDIRECTS} of them")


def _parse(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise UsageError(f"{address}: is not an address", str(error)) from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(f"{address}: is not an address of the web", "http:// or https:// is needed")
    return url


def _join(url: httpx.URL, location: str) -> httpx.URL:
    try:
        following = url.join(location)
    except httpx.InvalidURL:
        raise ServiceError(f"{shown(str(url))}: redirects to a broken address") from None
    allowed = ("https",) if url.scheme == "https" else ("http", "https")
    if following.scheme not in allowed or not following.host:
        raise ServiceError(
            f"{shown(str(url))}: redirects to {following.scheme}://{following.host}",
            f"only {' and '.join(allowed)} may follow {url.scheme}",
        )
    return following


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _checked(response: httpx.Response, patience: Patience) -> httpx.Response:
    """The response if it has something to give."""
    code = response.status_code
    if code in (200, 206, 416):
        return response
    response.close()
    answer = f"the server answers {code} {response.reason_phrase}".rstrip()
    wait = retry_after(response.headers.get("retry-after", ""))
    where = shown(str(response.url))
    if code in _BUSY and (wait or 0) <= patience.longest_wait:
        raise TransientError(answer, wait)
    if code in _BUSY:
        raise ServiceError(f"{where}: {answer}", f"it asks to wait {wait:.0f} seconds", "try again then")
    raise ServiceError(
        f"{where}: {answer}",
        response.headers.get("x-error-message") or _HINTS.get(code, ""),
        "for a private or gated repository set HF_TOKEN" if code in _SIGNED_IN else "check the name",
    )


def _hub_hash(headers: httpx.Headers) -> dict[str, str]:
    """The hub's ETag is git's SHA-1 of a small file, and the SHA-256 of one in Git LFS."""
    if "x-repo-commit" not in headers:
        return {}
    etag = (headers.get("x-linked-etag") or headers.get("etag", "")).removeprefix("W/").strip('"')
    kind = {40: "git's SHA-1", 64: "SHA-256"}.get(len(etag), "")
    return {kind: etag} if kind and re.fullmatch("[0-9a-f]+", etag) else {}


def _read_head(response: httpx.Response, guard: Guard, told: dict[str, str]) -> Reply:
    headers = response.headers
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "", "gzip", "x-gzip"):
        raise ServiceError(
            f"{shown(str(response.url))}: the server sends it compressed ({coding})",
            "it was asked to send it as it is",
        )
    is_packed = "gzip" in coding
    place, length = headers.get("content-range", ""), headers.get("content-length", "")
    n_total: int | None = int(length) if length.isdecimal() and not is_packed else None
    begins = 0
    if response.status_code == 206:
        match = _RANGE.match(place)
        begins = int(match[1]) if match else -1
        n_total = int(match[3]) if match and match[3] != "*" else None
        if match and (int(match[2]) < begins or (n_total is not None and int(match[2]) >= n_total)):
            begins = -1
    etag = headers.get("etag", "")
    if etag.startswith("W/"):
        etag = ""  # weak: the same meaning, not the same bytes
    whole = headers.get("x-ms-blob-content-md5") or (
        headers.get("content-md5", "") if response.status_code == 200 and not is_packed else ""
    )
    return Reply(
        status=response.status_code,
        start=begins,
        n_total=n_total,
        validator=etag or headers.get("last-modified") or "",
        hashes=told or _md5(whole),
        has_marked_end=is_packed or bool(length) or "chunked" in headers.get("transfer-encoding", ""),
        is_packed=is_packed,
        blocks=_unpacked(response, guard) if is_packed else _blocks(response, guard),
    )


def _md5(value: str) -> dict[str, str]:
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return {}
    return {"MD5": raw.hex()} if len(raw) == 16 else {}


def _blocks(response: httpx.Response, guard: Guard) -> Iterator[bytes]:
    with _as_broken(guard):
        for block in response.iter_raw():
            guard.fed(len(block))
            yield block
    if guard.why:  # a body without a marked end seems to be whole when the guard has cut it
        raise TransientError(guard.why)


def _unpacked(response: httpx.Response, guard: Guard) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(31)
    for block in _blocks(response, guard):
        try:
            while block and not unpacker.eof:
                yield unpacker.decompress(block, 1 << 20)  # in parts: a little may unpack to a lot
                block = unpacker.unconsumed_tail
        except zlib.error as error:
            raise TransientError(f"the compressed body is damaged ({error})") from None
    if not unpacker.eof:
        raise TransientError("the compressed body ended early")


@contextlib.contextmanager
def _as_broken(guard: Guard) -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, socket.gaierror, _LookUpError) as error:
        raise TransientError(guard.why or str(error) or type(error).__name__) from None


class _LookUpError(Exception):
    pass


def _look_up(host: str, seconds: float) -> None:
    """Fail in time where names cannot be resolved: httpx's time-out leaves that out."""
    if getproxies():
        return  # the proxy resolves
    failure: list[OSError] = []

    def resolve() -> None:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise _LookUpError(f"no answer to the look-up of {host}")
    if failure:
        raise _LookUpError(f"{host}: {failure[0].strerror or failure[0]}")
