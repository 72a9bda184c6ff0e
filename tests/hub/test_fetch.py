"""One file over HTTP, from a server on loopback that misbehaves."""

import hashlib
import re
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
from downloads import CONTENT, KNOWN, QUICK, UNKNOWN, failure, get
from faulty_server import Fault, serving

from gpt2cli.errors import InputError, ResourceError, ServiceError
from gpt2cli.hub.fetch import fetch
from gpt2cli.hub.registry import Expected

UNKNOWN_LARGE = Expected(max_size=10_000_000)


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
    assert [request.headers.get("if-range") for request in site.requests] == [None, site.etag, site.etag]
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


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_version_only_a_known_hash_lets_it_go_on(etag: str | None, out: Path) -> None:
    with serving({"/file": CONTENT}, Fault("cut", 9000), etag=etag) as site:
        get(site, out)
        assert site.starts() == [None, 8999]
    out.unlink()
    with serving({"/file": CONTENT}, Fault("cut", 9000), etag=etag) as site:
        get(site, out, UNKNOWN)
        assert site.starts() == [None, None]
    assert out.read_bytes() == CONTENT


def test_pieces_of_two_versions_are_noticed_by_the_hash_and_fetched_anew(out: Path) -> None:
    """The server lies: another content under the same ETag."""
    with serving({"/file": CONTENT[::-1]}, Fault("cut", 9000)) as site:
        steps = fetch(f"{site.address}/file", out, KNOWN, policy=QUICK)
        assert any("again" in step.note for step in steps)
        site.files["/file"] = CONTENT
        for step in steps:
            last = step
    assert out.read_bytes() == CONTENT
    assert last.sha256 == KNOWN.sha256
    assert site.starts() == [None, 8999, None]


def test_what_came_from_another_address_is_no_beginning_of_this_file(out: Path) -> None:
    with serving({"/file": CONTENT}, Fault("cut", 9000), "404") as one:
        failure(one, out, UNKNOWN)
    with serving({"/file": CONTENT[::-1]}) as other:  # with the same ETag
        get(other, out, UNKNOWN)
        assert other.starts() == [None]
    assert out.read_bytes() == CONTENT[::-1]


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


def test_a_stall_times_out_and_keeps_what_came(out: Path) -> None:
    with serving({"/file": CONTENT}, Fault("stall", 500), *["no-answer"] * 3) as site:
        error = failure(site, out)
        assert isinstance(error, ServiceError)
        assert "timed out" in error.why
        get(site, out)
    assert site.starts() == [None, *[499] * 4]


def test_progress_earns_more_attempts_and_a_circle_does_not(out: Path) -> None:
    with serving({"/file": CONTENT}, *[Fault("cut", 4500)] * 4) as site:
        get(site, out)
    assert len(site.requests) == 5 > QUICK.attempts
    out.unlink()
    circle = [Fault("cut", 4500), Fault("416")] * 20
    with serving({"/file": CONTENT}, *circle) as site:
        assert isinstance(failure(site, out), ServiceError)
    assert len(site.requests) < 10


@pytest.mark.parametrize("value", ["1", "date"])
def test_retry_after_is_waited_for(value: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    wait = formatdate(time.time() + 1.9, usegmt=True) if value == "date" else value
    with serving({"/file": CONTENT}, "503") as site:
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


@pytest.mark.parametrize("published", ["SHA-256", "git's SHA-1"])
def test_wrong_bytes_of_the_right_size_are_refused_with_both_hashes(published: str, out: Path) -> None:
    wrong, blob = bytes(byte ^ 0x55 for byte in CONTENT), b"blob 20000\0"
    is_git = published == "git's SHA-1"
    expected = Expected(git_sha1=hashlib.sha1(blob + CONTENT).hexdigest()) if is_git else KNOWN
    found = hashlib.sha1(blob + wrong) if is_git else hashlib.sha256(wrong)
    with serving({"/file": CONTENT}, "wrong") as site:
        error = failure(site, out, expected)
        assert isinstance(error, InputError)
        assert f"{published} of its 20,000 bytes: {found.hexdigest()}, not " in error.why
        assert error.why.endswith(str(expected.git_sha1 or expected.sha256))
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
@pytest.mark.parametrize("expected", [KNOWN, Expected(max_size=30_000 - 10_001)])
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
        assert "more than the file can have" in failure(site, out, Expected(max_size=20_000)).why
    assert list(out.parent.iterdir()) == []


def test_a_whole_body_that_is_too_short_is_not_installed(out: Path) -> None:
    with serving({"/file": CONTENT[:-1]}, "chunked") as site:
        error = failure(site, out)
    assert isinstance(error, InputError)
    assert error.why == "it has 19,999 bytes, not 20,000"


def test_the_free_space_is_looked_at_first(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 123})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with serving({"/file": CONTENT}) as site:
        error = failure(site, out)
    assert isinstance(error, ResourceError)
    assert error.why == "20,000 bytes are needed, 123 are free"
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
        steps = fetch(f"{site.address}/file", out, UNKNOWN_LARGE, policy=QUICK)
        next(step for step in steps if step.n_done > 1000)
        steps.close()  # type: ignore[attr-defined]
        get(site, out, UNKNOWN_LARGE)
    assert out.read_bytes() == CONTENT * 50
    assert (site.starts()[1] or 0) > 900


def test_a_partial_that_is_whole_costs_one_byte(out: Path) -> None:
    with serving({"/file": CONTENT}) as site:
        steps = fetch(f"{site.address}/file", out, KNOWN, policy=QUICK)
        next(step for step in steps if step.note == "checking")
        steps.close()  # type: ignore[attr-defined]
        get(site, out)
    assert site.starts() == [None, 19_999]
    assert list(out.parent.iterdir()) == [out]
