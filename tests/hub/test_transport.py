"""Where an exchange may lead, what it may carry, and when it is not tried again."""

import os
import threading
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import httpx
import pytest
from downloads import CONTENT, QUICK, UNKNOWN, failure, get
from faulty_server import Fault, serving

from gpt2cli.errors import ServiceError, UsageError
from gpt2cli.hub import fetch as download
from gpt2cli.hub import transport
from gpt2cli.hub.fetch import fetch


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "file"


@pytest.mark.parametrize("value", ["1", "date"])
def test_retry_after_is_waited_for(value: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(download.time, "sleep", slept.append)
    wait = formatdate(time.time() + 1.9, usegmt=True) if value == "date" else value
    with serving({"/file": CONTENT}) as site:
        fault = Fault("503")
        site.script.append(fault)
        site.refusal = {"Retry-After": wait}
        get(site, out)
    assert len(slept) == 1
    assert 0 < slept[0] <= 2
    assert value == "date" or slept == [1.0]


def test_a_server_that_wants_to_be_left_alone_for_long_is(out: Path) -> None:
    with serving({"/file": CONTENT}, "503-late") as site:
        error = failure(site, out)
    assert isinstance(error, ServiceError)
    assert "99999 seconds" in error.why
    assert len(site.requests) == 1


def test_another_compression_is_refused(out: Path) -> None:
    with serving({"/file": CONTENT}, "brotli") as site:
        assert "compressed (br)" in failure(site, out, UNKNOWN).what


@pytest.mark.parametrize(("kind", "message"), [("to-file", "file://"), ("to-ftp", "ftp://127.0.0.1")])
def test_redirects_leave_the_web_never(kind: str, message: str, out: Path) -> None:
    with serving({"/file": CONTENT}, kind) as site:
        error = failure(site, out)
    assert isinstance(error, ServiceError)
    assert message in error.what
    assert len(site.requests) == 1


def test_https_is_never_left_for_http() -> None:
    with pytest.raises(ServiceError, match="redirects to http://other") as caught:
        transport._join(httpx.URL("https://one.org/file"), "http://other.org/file")
    assert caught.value.why == "only https may follow https"
    assert str(transport._join(httpx.URL("http://one.org/a/b"), "https://two.org/c")) == "https://two.org/c"


def test_redirects_in_circles_end(out: Path) -> None:
    with serving({"/file": CONTENT}, *["loop"] * 50) as site:
        error = failure(site, out)
    assert "circles" in error.what
    assert len(site.requests) == transport.MAX_REDIRECTS + 1


def test_the_token_stays_with_its_host(out: Path) -> None:
    with serving({"/file": CONTENT}) as other, serving({"/file": CONTENT}) as site:
        site.script += [Fault("redirect", text="/file?here"), Fault("redirect", text=f"{other.address}/file")]
        for _ in fetch(f"{site.address}/file", out, headers={"Authorization": "Bearer x"}, patience=QUICK):
            pass
    assert [request.headers.get("authorization") for request in site.requests] == ["Bearer x"] * 2
    assert [request.headers.get("authorization") for request in other.requests] == [None]
    assert out.read_bytes() == CONTENT


@pytest.mark.parametrize("address", ["ftp://one.org/x", "nonsense", "http://[::1", "http://"])
def test_an_address_must_be_one(address: str, out: Path) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        list(fetch(address, out, patience=QUICK))


def test_a_token_that_http_cannot_carry_is_an_error_of_the_user(out: Path) -> None:
    with serving({"/file": CONTENT}) as site, pytest.raises(UsageError) as caught:
        list(fetch(f"{site.address}/file", out, headers={"authorization": "Bearer ☃"}, patience=QUICK))
    assert "HF_TOKEN" in caught.value.fix


def test_messages_show_neither_password_nor_signature(out: Path) -> None:
    with serving({"/file": CONTENT}, "404") as site, pytest.raises(ServiceError) as caught:
        address = site.address.replace("http://", "http://me:secret@")
        list(fetch(f"{address}/file?signature=abc", out, patience=QUICK))
    assert "secret" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_no_server_and_no_name_end_soon(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({}) as site:
        pass  # nobody answers there any more
    assert isinstance(failure(site, out), ServiceError)
    release = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: release.wait(20))
    with pytest.raises(ServiceError) as caught:
        list(fetch("http://nowhere.invalid/file", out, patience=replace(QUICK, connect=0.1)))
    release.set()
    assert "no answer to the look-up" in caught.value.why
