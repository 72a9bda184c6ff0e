"""Downloads that are killed, that run side by side, whose locks lie, and whose disk fills up."""

import errno
import fcntl
import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from downloads import QUICK
from faulty_server import Fault, serving

from gpt2cli.errors import ResourceError
from gpt2cli.hub import fetch as download
from gpt2cli.hub.fetch import fetch
from gpt2cli.hub.registry import Expected

CONTENT = random.Random(2).randbytes(3_000_000)
KNOWN = Expected(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
# One process: `python -c FETCH ADDRESS OUT SIZE SHA256`. It says "go" once bytes have come.
FETCH = """
import sys
from pathlib import Path
from gpt2cli.hub.fetch import fetch
from gpt2cli.hub.registry import Expected
address, out, size, sha256 = sys.argv[1:]
known = Expected(int(size), sha256 if sha256 != "unknown" else None)
for step in fetch(address, Path(out), expected=known):
    print(step.n_done, flush=True)
"""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def start(address: str, out: Path, sha256: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, address, str(out), str(len(CONTENT)), sha256],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("sha256", [str(KNOWN.sha256), "unknown"])
def test_killed_at_random_it_goes_on_and_the_final_file_is_never_wrong(sha256: str, tmp_path: Path) -> None:
    chance, out = random.Random(3), tmp_path / "file"
    places = sorted(chance.sample(range(200_000, len(CONTENT)), 4))
    with serving({"/file": CONTENT}) as site:
        for place in places:
            process = start(f"{site.address}/file", out, sha256)
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= place:
                    break
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            if out.exists():
                assert out.read_bytes() == CONTENT
            else:
                (orphan,) = tmp_path.iterdir()  # the one partial, not one a process
                assert orphan.read_bytes() == CONTENT[: orphan.stat().st_size]
        for _ in fetch(f"{site.address}/file", out, expected=KNOWN):
            pass
    assert out.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [out]
    starts = site.starts()
    assert starts[0] is None
    assert all(later is not None and later > 100_000 for later in starts[1:])


@pytest.mark.parametrize("locks", ["true", "lying", "refused"])
def test_two_at_once_both_end_right(locks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    if locks != "true":
        monkeypatch.setattr(fcntl, "flock", refuse if locks == "refused" else lambda *_: None)
    out = tmp_path / "file"
    fork = multiprocessing.get_context("fork")
    # Both are in the middle of their body when they are let go, and cut twice afterwards.
    gate = fork.Barrier(3)
    with serving({"/file": CONTENT}, *[Fault("cut", 1_000_000)] * 4) as site:
        results = fork.SimpleQueue()
        processes = [
            fork.Process(target=_fetch_at_gate, args=(f"{site.address}/file", out, gate, results))
            for _ in range(2)
        ]
        for process in processes:
            process.start()
        gate.wait(30)
        for process in processes:
            process.join(60)
    assert [results.get(), results.get()] == [KNOWN.sha256] * 2
    assert out.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [out]


def _fetch_at_gate(address: str, out: Path, gate, results) -> None:  # type: ignore[no-untyped-def]
    waited = False
    for step in fetch(address, out, expected=KNOWN, patience=QUICK):
        if not waited and step.n_done > 500_000:
            gate.wait(30)
            waited = True
    results.put(step.sha256 if out.read_bytes() == CONTENT else "another")


def test_the_partial_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "file"
    with serving({"/file": CONTENT}) as site:
        other = start(f"{site.address}/file", out, str(KNOWN.sha256))
        assert other.stdout is not None
        other.stdout.readline()
        other.send_signal(signal.SIGSTOP)  # as a laptop that was shut
        try:
            assert len(list(tmp_path.iterdir())) == 1
            for _ in fetch(f"{site.address}/file", out, expected=KNOWN):
                pass
            assert out.read_bytes() == CONTENT
            assert len(list(tmp_path.iterdir())) == 2
        finally:
            other.send_signal(signal.SIGCONT)
        other.communicate(timeout=60)
    assert other.returncode == 0
    assert out.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [out]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_too_small_is_noticed_before_a_byte_comes(small_disk: Path) -> None:
    with serving({"/file": CONTENT}) as site, pytest.raises(ResourceError) as caught:
        list(fetch(f"{site.address}/file", small_disk / "file", expected=KNOWN, patience=QUICK))
    assert caught.value.why == "3,000,000 more bytes are needed, 2,097,152 are free"
    assert [path.stat().st_size for path in small_disk.iterdir()] in ([], [0])


@pytest.mark.parametrize("kind", ["ok", "chunked"])
def test_a_disk_that_fills_up_on_the_way_keeps_what_came(
    kind: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = small_disk / "file"
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 500_000)
    with serving({"/file": CONTENT[:2_000_000]}, kind) as site:
        expected = Expected(at_most=10_000_000)
        with monkeypatch.context() as patch:
            # What is free when one looks may be gone when one writes.
            patch.setattr(download, "require_space", lambda *_: None)
            with pytest.raises(ResourceError) as caught:
                list(fetch(f"{site.address}/file", out, expected=expected, patience=QUICK))
        assert "are needed, 0 are free" in caught.value.why
        assert not out.exists()
        (kept,) = set(small_disk.iterdir()) - {filler}
        assert kept.stat().st_size > 1_400_000
        filler.unlink()
        list(fetch(f"{site.address}/file", out, expected=expected, patience=QUICK))
    assert out.read_bytes() == CONTENT[:2_000_000]
    assert (site.starts()[1] or 0) > 1_400_000
