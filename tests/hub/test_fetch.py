"""One file over HTTP, from a server on loopback that misbehaves."""

import base64
import hashlib
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import CONTENT, KNOWN, QUICK, UNKNOWN, failure, get
from faulty_server import Fault, serving

from gpt2cli.errors import InputError, ResourceError, ServiceError
from gpt2cli.hub import fetch as download
from gpt2cli.hub.fetch import fetch
from gpt2cli.hub.registry import Expected


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "file"


def test_a_file_comes_whole_with_its_hash_and_nothing_beside_it(out: Path) -> None:
    with serving({"/file": CONTENT}) as site:
        steps = get(site, out)
    assert out.read_bytes() == CONTENT
    assert (steps[-1].sha256, steps[-1].n_done, steps[-1].n_total) == (KNOWN.sha256, 20_000, 20_000)
    assert [step.n_done for step in steps] == sorted(step.n_done for step in steps)
    assert list(out.parent.iterdir()) == [out]
    assert site.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("kind", ["cut", "reset", "stall", "chunked-cut"])
@pytest.mark.parametrize("expected", [KNOWN, UNKNOWN])
def test_a_lost_connection_goes_on_with_a_range(kind: str, expected: Expected, out: Path) -> None:
    with serving({"/file": CONTENT}, Fault(kind, 9000), Fault(kind, 4000)) as site:
        steps = get(site, out, expected)
    assert out.read_bytes() == CONTENT
    # The last byte is asked for again; a lost connection may take bytes with it.
    first, second, third = site.starts()
    assert first is None
    assert second is not None
    assert third is not None
    assert 0 < second <= 8999
    assert second < third <= 12_998
    assert any(step.note.endswith("again") for step in steps)


def test_a_range_answered_with_everything_starts_over(out: Path) -> None:
    with serving({"/file": CONTENT}, Fault("cut", 9000), Fault("no-range")) as site:
        get(site, out)
    assert out.read_bytes() == CONTENT
    assert site.starts() == [None, 8999]


@pytest.mark.parametrize("kind", ["416", "other-version", "wrong-range", "other-total"])
@pytest.mark.parametrize("expected", [KNOWN, UNKNOWN])
def test_an_answer_that_is_not_the_rest_drops_the_partial(kind: str, expected: Expected, out: Path) -> None:
    with serving({"/file": CONTENT}, Fault("cut", 9000), Fault(kind, 2)) as site:
        get(site, out, expected)
    assert out.read_bytes() == CONTENT
    assert site.starts() == [None, 8999, None]


def test_a_short_range_is_asked_on(out: Path) -> None:
    with serving({"/file": CONTENT}, Fault("cut", 2000), Fault("short-range"), Fault("short-range")) as site:
        get(site, out, UNKNOWN)
    assert out.read_bytes() == CONTENT
    assert len(site.requests) == 4


def test_without_a_version_only_a_known_hash_lets_it_go_on(out: Path) -> None:
    with serving({"/file": CONTENT}, Fault("cut", 9000), etag=None) as site:
        get(site, out)
        assert site.starts() == [None, 8999]
    out.unlink()
    with serving({"/file": CONTENT}, Fault("cut", 9000), etag=None) as site:
        get(site, out, UNKNOWN)
        assert site.starts() == [None, 8999, None]
    out.unlink()
    with serving({"/file": CONTENT}, Fault("cut", 9000), etag='W/"weak"') as site:
        get(site, out, UNKNOWN)
        assert site.starts() == [None, 8999, None]
    assert out.read_bytes() == CONTENT


def test_pieces_of_two_versions_are_noticed_by_the_hash_and_fetched_anew(out: Path) -> None:
    """The server lies: another content under the same ETag."""
    with serving({"/file": CONTENT[::-1]}, Fault("cut", 9000)) as site:
        steps = fetch(f"{site.address}/file", out, expected=KNOWN, patience=QUICK)
        assert any("again" in step.note for step in steps)
        site.files["/file"] = CONTENT
        for step in steps:
            last = step
    assert out.read_bytes() == CONTENT
    assert last.sha256 == KNOWN.sha256
    assert site.starts() == [None, 8999, None]


@pytest.mark.parametrize(
    ("kind", "message"), [("html", "a web page"), ("xml", "an XML document"), ("pointer", "Git LFS pointer")]
)
@pytest.mark.parametrize("expected", [KNOWN, UNKNOWN])
def test_a_page_in_the_place_of_the_file_is_refused(
    kind: str, message: str, expected: Expected, out: Path
) -> None:
    with serving({"/file": CONTENT}, kind) as site:
        error = failure(site, out, expected)
    assert isinstance(error, InputError)
    assert message in error.why
    assert list(out.parent.iterdir()) == []


def test_a_page_in_crumbs_is_refused(out: Path) -> None:
    page = b"<!DOCTYPE html><html>Please sign in</html>"
    patience = replace(QUICK, slowest=0)
    with serving({"/file": page}, Fault("slow", 1)) as site:
        assert "a web page" in failure(site, out, UNKNOWN, patience).why


def test_a_page_does_not_cost_what_came_before_it(out: Path) -> None:
    with serving({"/file": CONTENT}, Fault("cut", 9000), "html") as site:
        assert isinstance(failure(site, out), InputError)
        get(site, out)
    assert site.starts() == [None, 8999, 8999]
    assert out.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("kind", "code"), [("404", "404 Not Found"), ("403", "403"), ("401", "401"), ("204", "204")]
)
def test_a_final_no_is_not_asked_again(kind: str, code: str, out: Path) -> None:
    with serving({"/file": CONTENT}, kind) as site:
        error = failure(site, out)
    assert isinstance(error, ServiceError)
    assert code in error.what
    assert len(site.requests) == 1
    assert ("HF_TOKEN" in error.fix) == (kind in ("401", "403"))
    assert kind != "401" or error.why == "Invalid credentials"


@pytest.mark.parametrize("kind", ["503", "503-now", "429-now", "500", "not-http", "no-answer"])
def test_a_busy_server_is_asked_again_and_then_given_up(kind: str, out: Path) -> None:
    with serving({"/file": CONTENT}, kind, kind) as site:
        get(site, out)
        assert len(site.requests) == 3
    out.unlink()
    with serving({"/file": CONTENT}, *[kind] * 9) as site:
        error = failure(site, out)
        assert len(site.requests) == QUICK.attempts
    assert isinstance(error, ServiceError)
    assert "try again" in error.fix


@pytest.mark.parametrize("kind", ["slow", "stall", "slow-head", "no-answer", "unmarked-slow"])
def test_too_slow_ends_in_time_and_keeps_what_came(kind: str, out: Path) -> None:
    begin = time.monotonic()
    with serving({"/file": CONTENT}, Fault(kind, 500)) as site:
        error = failure(site, out, KNOWN, replace(QUICK, attempts=1))
    assert isinstance(error, ServiceError)
    assert "timed out" in error.why
    assert time.monotonic() - begin < 5
    kept = [path.stat().st_size for path in out.parent.iterdir()]
    assert kept == [] if kind in ("slow-head", "no-answer") else len(kept) == 1


def test_the_whole_may_have_a_limit_too(out: Path) -> None:
    patience = replace(QUICK, slowest=0, total=0.4)
    with serving({"/file": CONTENT}, Fault("slow", 500)) as site:
        error = failure(site, out, KNOWN, patience)
    assert "not finished within" in error.why


def test_progress_earns_more_attempts_and_a_circle_does_not(out: Path) -> None:
    with serving({"/file": CONTENT}, *[Fault("cut", 4500)] * 4) as site:
        get(site, out)
    assert len(site.requests) == 5 > QUICK.attempts
    out.unlink()
    circle = [Fault("cut", 4500), Fault("no-range")] * 20
    circle[1::2] = [Fault("416")] * 20
    with serving({"/file": CONTENT}, *circle) as site:
        assert isinstance(failure(site, out), ServiceError)
    assert len(site.requests) < 10


@pytest.mark.parametrize("told", ["published", "by git", "by the server", "by the hub"])
def test_wrong_bytes_of_the_right_size_are_refused_with_both_hashes(told: str, out: Path) -> None:
    blob = hashlib.sha1(b"blob 20000\0" + CONTENT).hexdigest()
    md5 = hashlib.md5(CONTENT)
    expected = {"published": KNOWN, "by git": Expected(git_sha1=blob)}.get(told, UNKNOWN)
    with serving({"/file": CONTENT}, "wrong") as site:
        if told == "by the server":
            site.md5 = base64.b64encode(md5.digest()).decode()
        if told == "by the hub":
            site.headers["/file"] = {"X-Repo-Commit": "1", "X-Linked-Etag": f'"{KNOWN.sha256}"'}
        error = failure(site, out, expected)
        assert isinstance(error, InputError)
        wrong = bytes(byte ^ 0x55 for byte in CONTENT)
        pairs = {
            "published": (hashlib.sha256(wrong).hexdigest(), KNOWN.sha256),
            "by git": (hashlib.sha1(b"blob 20000\0" + wrong).hexdigest(), blob),
            "by the server": (hashlib.md5(wrong).hexdigest(), md5.hexdigest()),
            "by the hub": (hashlib.sha256(wrong).hexdigest(), KNOWN.sha256),
        }
        assert re.search("{}, not {}".format(*pairs[told]), error.why)
        assert list(out.parent.iterdir()) == []
        get(site, out, expected)
    assert out.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["chunked", "unmarked", "gzip", "chunked-cut", "unmarked-cut", "gzip-cut"])
@pytest.mark.parametrize("expected", [KNOWN, UNKNOWN])
@pytest.mark.parametrize("at", [7000, 7001])
def test_every_framing_gives_the_same_bytes(kind: str, expected: Expected, at: int, out: Path) -> None:
    with serving({"/file": CONTENT}, Fault(kind, at)) as site:
        get(site, out, expected)
    assert out.read_bytes() == CONTENT


def test_an_unmarked_end_counts_when_it_comes_twice(out: Path) -> None:
    """No length, no ranges, no hash: nothing but a second look tells a lost connection from the end."""
    faults = [Fault("unmarked-cut", 7000), *[Fault("unmarked-whole")] * 3]
    with serving({"/file": CONTENT}, *faults, etag=None) as site:
        get(site, out, UNKNOWN, replace(QUICK, attempts=5))
    assert out.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["endless", "too-long"])
@pytest.mark.parametrize("expected", [KNOWN, Expected(at_most=30_000 - 10_001)])
def test_a_body_without_end_stops_at_the_maximum(kind: str, expected: Expected, out: Path) -> None:
    with serving({"/file": CONTENT}, kind) as site:
        error = failure(site, out, expected)
    assert isinstance(error, InputError)
    assert re.search(r"goes on after (20,000|19,999) bytes", error.why)
    assert list(out.parent.iterdir()) == []


def test_a_declared_size_is_judged_before_the_bytes_come(out: Path) -> None:
    with serving({"/file": CONTENT + b"!"}) as site:
        error = failure(site, out)
        assert error.why == "it has 20,001 bytes, not 20,000"
        assert "more than the file can have" in failure(site, out, Expected(at_most=20_000)).why
    with serving({"/file": CONTENT[:-1]}, "chunked") as site:
        assert "it has 19,999 bytes, not 20,000" in failure(site, out).why
    assert list(out.parent.iterdir()) == []


def test_the_free_space_is_looked_at_first(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 123})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with serving({"/file": CONTENT}) as site:
        error = failure(site, out)
    assert isinstance(error, ResourceError)
    assert error.why == "20,000 more bytes are needed, 123 are free"
    assert "GPT2_HOME" in error.fix


def test_what_was_there_stays_until_the_new_is_proved(out: Path) -> None:
    out.parent.mkdir()
    out.write_bytes(b"old")
    with serving({"/file": CONTENT}, "wrong") as site:
        with pytest.raises(InputError):
            get(site, out)
        assert out.read_bytes() == b"old"
        get(site, out)
    assert out.read_bytes() == CONTENT


def test_closing_it_early_keeps_the_partial_for_the_next(out: Path) -> None:
    with serving({"/file": CONTENT * 50}) as site:
        steps = fetch(f"{site.address}/file", out, expected=UNKNOWN_LARGE, patience=QUICK)
        next(step for step in steps if step.n_done > 1000)
        steps.close()  # type: ignore[attr-defined]
        get(site, out, UNKNOWN_LARGE)
    assert out.read_bytes() == CONTENT * 50
    assert (site.starts()[1] or 0) > 900


UNKNOWN_LARGE = Expected(at_most=10_000_000)
