"""An HTTP server on loopback that serves given files and misbehaves on script.

Each request takes the next fault of the script; after the last one everything is in order. Every
request is kept with its headers, so that a test can see what was asked for.
"""

import contextlib
import gzip
import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from loopback import serving_on_loopback

ETAG = '"first"'


@dataclass(frozen=True)
class Fault:
    """`kind` is one of FAULTS, or "hold", which waits in the middle of a body. `at` is the byte of the
    body at which it strikes, or a number that it needs."""

    kind: str
    at: int = 0
    text: str = ""


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]

    @property
    def start(self) -> int | None:
        """Where the asked Range begins."""
        value = self.headers.get("range", "")
        return int(value.removeprefix("bytes=").split("-")[0]) if value else None


@dataclass
class Site:
    """What is served, under which headers, and what goes wrong. Change it while it runs."""

    files: dict[str, bytes]
    script: list[Fault] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)  # of one path, before the script
    moved: dict[str, str] = field(default_factory=dict)  # paths that redirect, with their own headers
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    address: str = ""
    etag: str | None = ETAG
    refusal: dict[str, str] = field(default_factory=dict)  # headers of answers that are no file
    closing: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)  # what lets a "hold" go on
    lock: threading.Lock = field(default_factory=threading.Lock)

    def starts(self) -> list[int | None]:
        return [request.start for request in self.requests]


@contextlib.contextmanager
def serving(
    files: dict[str, bytes], *script: Fault | str, etag: str | None = ETAG, certificate: Path | None = None
) -> Iterator[Site]:
    """A running site; with a certificate and its key in one file, it speaks TLS. A fault may be given
    by its kind alone."""
    faults = [Fault(item) if isinstance(item, str) else item for item in script]
    site = Site(dict(files), faults, etag=etag)
    handler = type("Handler", (_Handler,), {"site": site})
    with serving_on_loopback(handler, site.closing, certificate) as port:
        site.address = f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
        yield site


# Answers instead of the file: status, headers, body.
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "503": (503, {}, b"busy"),
    "503-now": (503, {"Retry-After": "0"}, b"busy"),
    "429-now": (429, {"Retry-After": "0"}, b"slow down"),
    "503-late": (503, {"Retry-After": "99999"}, b"busy"),
    "404": (404, {}, b"no"),
    "403": (403, {}, b"no"),
    "401": (401, {"X-Error-Message": "Invalid credentials"}, b"no"),
    "500": (500, {}, b"oops"),
    "204": (204, {}, b""),
    "416": (416, {"Content-Range": "bytes */0"}, b""),
    "html": (200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><html>Please sign in</html>"),
    "xml": (200, {}, b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>BlobNotFound</Code></Error>"),
    "pointer": (200, {}, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    "brotli": (200, {"Content-Encoding": "br"}, b"\x0b\x02\x80hello\x03"),
    "loop": (302, {"Location": "?again"}, b""),
    "to-file": (302, {"Location": "file:///etc/passwd"}, b""),
    "to-ftp": (307, {"Location": "ftp://127.0.0.1/x"}, b""),
    "to-nowhere": (302, {"Location": "http://"}, b""),
    "not-http": (0, {}, b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
}
# What goes wrong with the body of an otherwise right answer.
BODIES = (
    *("ok", "cut", "reset", "stall", "no-answer", "redirect"),
    *(
        "wrong",
        "other-version",
        "no-range",
        "wrong-range",
        "short-range",
        "other-total",
        "endless",
        "too-long",
    ),
    *("gzip", "gzip-cut", "chunked", "chunked-cut", "unmarked", "unmarked-whole", "unmarked-cut"),
)
FAULTS = (*ANSWERS, *BODIES)


class _Handler(http.server.BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.site.lock:
            request = Request(self.path, headers)
            self.site.requests.append(request)
            script = self.site.faults.get(path) or self.site.script
            fault = script.pop(0) if script else Fault("ok")
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client has left
            if fault.kind in ANSWERS:
                self._answer(*ANSWERS[fault.kind])
            elif path in self.site.moved:
                self._answer(302, {"Location": self.site.moved[path], **self.site.headers.get(path, {})}, b"")
            elif path not in self.site.files:
                self._answer(*ANSWERS["404"])
            else:
                self._serve(self.site.files[path], request, fault)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        if status:
            self._head(status, {"Content-Length": str(len(body)), **headers, **self.site.refusal})
        self.wfile.write(body)

    def _serve(self, content: bytes, request: Request, fault: Fault) -> None:
        kind, start = fault.kind, request.start or 0
        if kind == "redirect":
            self._answer(302, {"Location": fault.text or request.path}, b"")
            return
        if kind == "no-answer":
            self.site.closing.wait(20)
            return
        if start >= len(content) and start:
            self._answer(*ANSWERS["416"])
            return
        if kind == "wrong":
            content = bytes(byte ^ 0x55 for byte in content)
        headers = {} if self.site.etag is None else {"ETag": self.site.etag}
        headers |= self.site.headers.get(request.path.partition("?")[0], {})
        if kind == "other-version":
            headers["ETag"] = f'"version {fault.at}"'
            content = content[::-1]
        ranged = request.start is not None and kind not in ("no-range", "gzip", "gzip-cut", "unmarked-whole")
        body = content[start:] if ranged else content
        if ranged:
            begin = start + (7 if kind == "wrong-range" else 0)
            total = len(content) + (5 if kind == "other-total" else 0)
            if kind == "short-range":
                body = body[: max(1, len(body) // 2)]
            headers["Content-Range"] = f"bytes {begin}-{start + len(body) - 1}/{total}"
        self._body(206 if ranged else 200, headers, body, fault)

    def _body(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        kind, at = fault.kind, min(fault.at, len(body))
        if kind.startswith("gzip"):
            body = gzip.compress(body)
            headers["Content-Encoding"] = "gzip"
            at = min(at, len(body) - 1)
        if kind == "endless":
            self._head(status, headers)
            while not self.site.closing.is_set():
                self.wfile.write(body)
        elif kind.startswith(("chunked", "too-long")):
            self._head(status, {**headers, "Transfer-Encoding": "chunked"})
            for block in (body[:at], body[at:]) if kind != "too-long" else (body, b"more"):
                if block:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
                if kind == "chunked-cut":
                    return
            self.wfile.write(b"0\r\n\r\n")
        elif kind.startswith("unmarked") or (kind == "gzip-cut" and at % 2):
            self._head(status, headers)
            self.wfile.write(body if kind in ("unmarked", "unmarked-whole") else body[:at])
        else:
            self._head(status, {**headers, "Content-Length": str(len(body))})
            if kind == "hold":
                self.wfile.write(body[:at])
                self.wfile.flush()
                self.site.released.wait(20)
                self.wfile.write(body[at:])
            elif kind in ("cut", "reset", "stall", "gzip-cut"):
                self.wfile.write(body[:at])
                self.wfile.flush()
                if kind == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif kind == "stall":
                    self.site.closing.wait(20)
            else:
                self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass
