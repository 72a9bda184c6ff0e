"""Where an exchange may lead, what it may send, and which answers are refused."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import CONTENT, KNOWN, QUICK, UNKNOWN, failure, get
from faulty_server import Fault, serving

from gpt2cli.errors import ServiceError, UsageError
from gpt2cli.hub.fetch import fetch


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


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that it has signed itself, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    both = tmp_path / "loopback.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", "2", "-subj", "/CN=loopback", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", both, "-out", tmp_path / "certificate.pem"),
        ],
        check=True,
        capture_output=True,
    )
    both.write_bytes(both.read_bytes() + (tmp_path / "certificate.pem").read_bytes())
    return both


def test_https_is_never_left_for_http(certificate: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving({"/file": CONTENT}) as plain, serving({"/file": CONTENT}, certificate=certificate) as secure:
        plain.script += [Fault("redirect", text=f"{secure.address}/file")]
        get(plain, out)  # the other way is fine
        out.unlink()
        secure.script += [Fault("redirect", text=f"{plain.address}/file")]
        plain.requests.clear()
        error = failure(secure, out)
    assert isinstance(error, ServiceError)
    assert "redirects to http://127.0.0.1" in error.what
    assert error.why == "only https may follow https"
    assert plain.requests == []


def test_an_unknown_certificate_is_refused(certificate: Path, out: Path) -> None:
    with serving({"/file": CONTENT}, certificate=certificate) as site:
        assert "certificate" in failure(site, out, KNOWN, replace(QUICK, attempts=1)).why.lower()


def test_redirects_in_circles_end(out: Path) -> None:
    with serving({"/file": CONTENT}, *["loop"] * 50) as site:
        error = failure(site, out)
    assert "circles" in error.what
    assert len(site.requests) < 30


def test_the_token_stays_with_its_host(out: Path) -> None:
    with serving({"/file": CONTENT}) as other, serving({"/file": CONTENT}) as site:
        site.script += [Fault("redirect", text="/file?here"), Fault("redirect", text=f"{other.address}/file")]
        for _ in fetch(f"{site.address}/file", out, headers={"Authorization": "Bearer x"}, policy=QUICK):
            pass
    assert [request.headers.get("authorization") for request in site.requests] == ["Bearer x"] * 2
    assert [request.headers.get("authorization") for request in other.requests] == [None]
    assert out.read_bytes() == CONTENT


@pytest.mark.parametrize("address", ["ftp://one.org/x", "nonsense", "http://[::1", "http://"])
def test_an_address_must_be_one(address: str, out: Path) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        list(fetch(address, out, policy=QUICK))


def test_a_token_that_http_cannot_carry_is_an_error_of_the_user(out: Path) -> None:
    with serving({"/file": CONTENT}) as site:
        for token in ("Bearer ☃", "Bearer a\nb"):
            with pytest.raises(UsageError) as caught:
                list(fetch(f"{site.address}/file", out, headers={"authorization": token}, policy=QUICK))
            assert "HF_TOKEN" in caught.value.fix


def test_messages_show_neither_password_nor_signature(out: Path) -> None:
    with serving({"/file": CONTENT}, "404") as site, pytest.raises(ServiceError) as caught:
        address = site.address.replace("http://", "http://me:secret@")
        list(fetch(f"{address}/file?signature=abc", out, policy=QUICK))
    assert "secret" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_a_server_that_is_gone_is_an_error_that_can_be_retried(out: Path) -> None:
    with serving({}) as site:
        pass  # nobody answers there any more
    error = failure(site, out)
    assert isinstance(error, ServiceError)
    assert "try again" in error.fix


@pytest.mark.parametrize("proxy", ["gopher://me:secret@127.0.0.1", "http://[::1"])
def test_a_proxy_that_is_none_is_an_error_without_its_password(
    proxy: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with serving({"/file": CONTENT}) as site:
        error = failure(site, out)
        assert isinstance(error, UsageError)
        assert "ALL_PROXY" in error.fix and "secret" not in str(error) + error.why
        assert site.requests == []
