"""HTTP responses: whether they have content, how much, of which version, and where they redirect."""

import contextlib
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from gpt2cli.errors import ServiceError

if TYPE_CHECKING:
    import httpx2

OTHER_SERVER = "take another server, with --source or --base-url"  # a fix
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\s*")
_BUSY = (408, 429, 500, 502, 503, 504)  # worth another attempt
_NEEDS_TOKEN = "for a private or gated repository set HF_TOKEN"
_REFUSALS = {
    401: ("the server requires a login", _NEEDS_TOKEN),
    403: ("the server refuses it", _NEEDS_TOKEN),
    404: ("there is no such file", "check the name"),
}
# What a server sends with status 200 in the place of a file. No file of a GPT-2 begins like this.
_PAGES = {
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML document, which is how storage servers report errors",
    b"<error": "an XML error message",
    b"version https://git-lfs": "a Git LFS pointer; that mirror never fetched the file itself",
}


class TransientError(Exception):
    """An attempt failed, but a retry may succeed; `wait` is the pause before it in seconds."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.why, self.wait = why, wait


def shown(url: str) -> str:
    """A URL to print: without password and without the signature of a temporary link."""
    import httpx2

    with contextlib.suppress(httpx2.InvalidURL):
        return str(httpx2.URL(url).copy_with(userinfo=b"", query=None, fragment=None))
    return url


def require_content(response: "httpx2.Response", longest_wait: float) -> None:
    """Raise for a response without content, or with an unsupported content encoding."""
    code, coding = response.status_code, response.headers.get("content-encoding", "identity")
    answer = f"the server answers {code} {response.reason_phrase}".rstrip()
    if code in _BUSY:
        wait = _retry_after(response.headers.get("retry-after", ""))
        if (wait or 0) <= longest_wait:
            raise TransientError(answer, wait)
        why, fix = f"it asks to wait {wait:.0f} seconds", "try again then"
    elif code not in (200, 206, 416):
        why, fix = _REFUSALS.get(code, ("", "check the name"))
        why = response.headers.get("x-error-message") or why
    elif coding not in ("identity", "gzip", "deflate"):
        answer, why, fix = f"the server sends it compressed ({coding})", "it was asked not to", OTHER_SERVER
    else:
        return
    raise ServiceError(f"{shown(str(response.url))}: {answer}", why, fix)


def require_web(response: "httpx2.Response") -> None:
    """Refuse a redirect from https to http, or to something that is neither."""
    import httpx2

    if response.has_redirect_location:
        here = response.request.url
        with contextlib.suppress(httpx2.InvalidURL):  # httpx2 reports it in a moment
            target = here.join(response.headers["location"])
            allowed = ("https",) if here.scheme == "https" else ("http", "https")
            if target.scheme not in allowed:
                raise ServiceError(
                    f"{shown(str(here))}: redirects to {target.scheme}://{target.host}",
                    f"only {' and '.join(allowed)} may follow {here.scheme}",
                    OTHER_SERVER,
                )


def validator(response: "httpx2.Response") -> str:
    """ETag or Last-Modified: changes when the bytes change. "" if the server sends neither."""
    etag = str(response.headers.get("etag", ""))
    # A weak ETag stands for the same meaning, not the same bytes.
    return "" if etag.startswith("W/") else etag or str(response.headers.get("last-modified", ""))


def size(response: "httpx2.Response") -> int | None:
    """Bytes of the body, if the server says how many."""
    length = response.headers.get("content-length", "")
    return int(length) if length.isdecimal() and "content-encoding" not in response.headers else None


def content_range(response: "httpx2.Response") -> tuple[int, int, int | None] | None:
    """First and last position in the file of a partial body, and the size of the file if it is known."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if response.status_code != 206 or not match or "content-encoding" in response.headers:
        return None
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])


def has_marked_end(response: "httpx2.Response") -> bool:
    """Whether a lost connection can be told from the end of the body."""
    headers = response.headers
    return "content-length" in headers or "chunked" in headers.get("transfer-encoding", "")


def page(first: bytes) -> str:
    """The kind of page that begins like this; "" if unknown."""
    start = first[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((f"it is {what}" for mark, what in _PAGES.items() if start.startswith(mark)), "")


def _retry_after(value: str) -> float | None:
    """Seconds to wait, from a Retry-After header: a number of them, or a date."""
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
