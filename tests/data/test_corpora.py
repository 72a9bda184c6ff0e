"""Finding a corpus: the order of the places, a loopback server with faults, and no network."""

import contextlib
import hashlib
import http.server
import io
import os
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2cli import paths
from gpt2cli.data import corpora
from gpt2cli.data.corpora import CORPORA, Corpus, find_corpus
from gpt2cli.errors import InputError, ServiceError

TEXT = b"what the server has\n" * 5000


@contextlib.contextmanager
def serving(behaviour: str | bytes) -> Iterator[str]:
    """A server on loopback; yields the address of a text there."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if behaviour == "missing":
                self.send_error(404)
                return
            if behaviour in ("redirect", "redirect to a file") and self.path == "/text":
                self.send_response(302)
                self.send_header("Location", "/other" if behaviour == "redirect" else "file:///etc/passwd")
                self.end_headers()
                return
            self.send_response(200)
            if behaviour == "cut":
                self.send_header("Content-Length", str(len(TEXT)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                match behaviour:
                    case bytes():
                        self.wfile.write(behaviour)
                    case "cut":
                        self.wfile.write(TEXT[:1000])
                    case "wrong":
                        self.wfile.write(TEXT[::-1])
                    case "endless":
                        while True:
                            self.wfile.write(TEXT)
                    case "stall":
                        time.sleep(3)
                    case _:
                        self.wfile.write(TEXT)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/text"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of our own: one text with a stand-in, one without, at an address where nobody answers."""
    monkeypatch.delenv("GPT2_MIRROR", raising=False)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    row = Corpus(
        name="text",
        file="text.txt",
        n_bytes=len(TEXT),
        sha256=hashlib.sha256(TEXT).hexdigest(),
        url=f"http://127.0.0.1:{port}/text",
        licence="ours",
        stand_in="story.txt",
    )
    monkeypatch.setattr(corpora, "CORPORA", {"text": row, "bare": replace(row, name="bare", stand_in=None)})


def address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    table = {name: replace(row, url=url) for name, row in corpora.CORPORA.items()}
    monkeypatch.setattr(corpora, "CORPORA", table)


def test_the_real_table_names_each_corpus_once() -> None:
    assert set(CORPORA) == {
        "the-verdict",
        "tiny-shakespeare",
        "wikitext-2-test",
        "sms-spam",
        "instructions",
        "lambada-test",
        "hellaswag-val",
        "hellaswag-val-text",
        "cbt-cn-valid",
        "cbt-ne-valid",
    }
    for name, row in CORPORA.items():
        assert row.name == name
        assert row.sha256 is None or len(row.sha256) == 64
        assert row.url.startswith("https://" if row.sha256 else "http")  # without a hash nothing is fetched
        assert row.stand_in is None or (Path(corpora.bundled.__file__).parent / row.stand_in).is_file()


def test_the_mirror_has_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("GPT2_TEST_MIRROR") or REAL_MIRROR
    if not folder:
        pytest.skip("GPT2_MIRROR is not set: there are no real corpora to compare with")
    monkeypatch.setenv("GPT2_MIRROR", folder)
    monkeypatch.setattr(corpora, "CORPORA", CORPORA)
    there = {name: row for name, row in CORPORA.items() if (Path(folder) / row.file).exists()}
    assert len(there) >= 5  # it need not have all
    for name, row in there.items():
        found = find_corpus(name, offline=True, allow_bundled=False)
        assert found.origin == "mirror" and row.sha256 in (found.sha256, None)
        assert row.n_bytes in (found.paths[0].stat().st_size, None)


REAL_MIRROR = os.environ.get("GPT2_MIRROR")  # before the fixture takes it away


def test_path_then_mirror_then_cache_then_download_then_bundled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = find_corpus("text", offline=False, allow_bundled=True)
    assert bundled.origin == "bundled"
    assert bundled.warning
    assert "another text" in bundled.warning
    assert bundled.paths[0].name == "story.txt"
    with serving("right") as url:
        address(monkeypatch, url)
        fresh = find_corpus("text", offline=False, allow_bundled=True)
    assert (fresh.origin, fresh.warning) == ("download", None)
    assert fresh.paths == (paths.corpora() / "text.txt",)
    assert fresh.paths[0].read_bytes() == TEXT
    assert find_corpus("text", offline=False, allow_bundled=True).origin == "cache"
    monkeypatch.setenv("GPT2_MIRROR", str(tmp_path / "mirror"))
    assert find_corpus("text", offline=True, allow_bundled=False).origin == "cache"  # the mirror lacks it
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "text.txt").write_bytes(TEXT)
    assert find_corpus("text", offline=True, allow_bundled=False).origin == "mirror"
    (tmp_path / "text").write_text("mine")
    found = find_corpus("./text", offline=True, allow_bundled=False)
    assert (found.origin, found.paths, found.sha256) == ("path", (Path("text"),), None)
    assert find_corpus(f"{tmp_path}/te*", offline=True, allow_bundled=False).origin == "path"


def test_a_wrong_file_in_the_mirror_is_an_error_with_both_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2_MIRROR", str(tmp_path))
    (tmp_path / "text.txt").write_bytes(b"wrong")
    with pytest.raises(InputError, match=r"text\.txt: is not text") as caught:
        find_corpus("text", offline=True, allow_bundled=True)
    assert hashlib.sha256(b"wrong").hexdigest() in caught.value.why
    assert hashlib.sha256(TEXT).hexdigest() in caught.value.why


def test_a_damaged_cache_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    paths.corpora().mkdir(parents=True)
    (paths.corpora() / "text.txt").write_bytes(TEXT[:-1])
    with serving("redirect") as url:
        address(monkeypatch, url)
        assert find_corpus("text", offline=False, allow_bundled=False).origin == "download"
    assert (paths.corpora() / "text.txt").read_bytes() == TEXT


@pytest.mark.parametrize(
    ("behaviour", "kind", "message"),
    [
        ("missing", ServiceError, "404"),
        ("cut", ServiceError, "incomplete|peer closed"),
        ("stall", ServiceError, "timed out"),
        ("redirect to a file", ServiceError, "file:"),
        ("wrong", InputError, "SHA-256"),
        ("endless", InputError, "goes on after 100,000 bytes"),
    ],
)
def test_a_failed_download_installs_nothing_and_the_bundled_text_steps_in(
    behaviour: str, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "POLICY", replace(corpora.POLICY, stall=0.5))
    with serving(behaviour) as url:
        address(monkeypatch, url)
        begin = time.monotonic()
        with pytest.raises(kind) as caught:
            find_corpus("bare", offline=False, allow_bundled=True)
        assert find_corpus("text", offline=False, allow_bundled=True).origin == "bundled"
        assert time.monotonic() - begin < 5
    error = caught.value
    assert isinstance(error, (ServiceError, InputError))
    assert __import__("re").search(message, f"{error.what} {error.why}")
    assert not (paths.corpora() / "text.txt").exists()


@pytest.mark.parametrize("offline", [True, False])
def test_without_network_the_error_says_which_file_goes_where(offline: bool) -> None:
    begin = time.monotonic()
    with pytest.raises(ServiceError, match="text: cannot be downloaded from http") as caught:
        find_corpus("text", offline=offline, allow_bundled=False)
    assert time.monotonic() - begin < 2
    assert "text.txt" in caught.value.fix
    assert str(paths.corpora()) in caught.value.fix
    assert "GPT2_MIRROR" in caught.value.fix
    assert ("--offline" in caught.value.why) == offline


def test_an_unknown_name_gets_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "CORPORA", CORPORA)
    with pytest.raises(InputError, match="neither a file nor a known corpus") as caught:
        find_corpus("the-verdikt", offline=True, allow_bundled=True)
    assert caught.value.fix == "did you mean the-verdict?"


def test_a_corpus_that_is_published_in_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("readme", "something else")
        opened.writestr("inside", TEXT)
    with serving(archive.getvalue()) as url:
        address(monkeypatch, url)
        rows = {name: replace(row, member="inside") for name, row in corpora.CORPORA.items()}
        monkeypatch.setattr(corpora, "CORPORA", rows)
        found = find_corpus("text", offline=False, allow_bundled=False)
        assert found.origin == "download" and found.paths[0].read_bytes() == TEXT
        rows["text"] = replace(rows["text"], member="missing")
        found.paths[0].unlink()
        with pytest.raises(InputError, match=r"zip .*missing"):
            find_corpus("text", offline=False, allow_bundled=False)
    with serving("fine") as url:
        address(monkeypatch, url)
        with pytest.raises(InputError, match=r"zip .*missing"):
            find_corpus("text", offline=False, allow_bundled=False)


def test_what_is_bundled_alone_needs_no_network() -> None:
    found = find_corpus("summaries", offline=True, allow_bundled=False)
    assert (found.origin, found.warning, found.paths[0].name) == ("bundled", None, "summaries.json")
    with pytest.raises(InputError, match="neither a file nor a known corpus") as caught:
        find_corpus("sumaries", offline=True, allow_bundled=False)
    assert "summaries" in caught.value.fix
