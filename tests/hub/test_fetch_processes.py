"""Downloads that are killed, that run side by side, on disks without locks, and on disks that fill up."""

import errno
import fcntl
import hashlib
import multiprocessing
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from downloads import QUICK
from faulty_server import Fault, serving

from gpt2cli.errors import ResourceError
from gpt2cli.hub.fetch import fetch
from gpt2cli.hub.registry import Expected

CONTENT = random.Random(2).randbytes(3_000_000)
KNOWN = Expected(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
# One process: `python -c FETCH ADDRESS OUT SIZE`. It knows no hash, and says how many bytes have come.
FETCH = """
import sys
from pathlib import Path
from gpt2cli.hub.fetch import fetch
from gpt2cli.hub.registry import Expected
address, out, size = sys.argv[1:]
for step in fetch(address, Path(out), Expected(int(size))):
    print(step.n_done, flush=True)
"""


def start(address: str, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, address, str(out), str(len(CONTENT))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_at_random_it_goes_on_and_the_final_file_is_never_wrong(tmp_path: Path) -> None:
    chance, out = random.Random(3), tmp_path / "file"
    # Each body stalls before the file is whole, so that no process is done before it is killed.
    with serving({"/file": CONTENT}, *[Fault("stall", 700_000)] * 4) as site:
        for _ in range(4):
            kept = sum(path.stat().st_size for path in tmp_path.glob(".partial-file"))
            place = kept + chance.randrange(200_000, 650_000)
            process = start(f"{site.address}/file", out)
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= place:
                    break
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            assert not out.exists()
            (orphan,) = tmp_path.glob(".partial-file")  # the one partial, not one per process
            assert orphan.stat().st_size >= place
            assert orphan.read_bytes() == CONTENT[: orphan.stat().st_size]
        for _ in fetch(f"{site.address}/file", out, KNOWN):
            pass
    assert out.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [out]
    starts = site.starts()
    assert starts[0] is None
    assert all(later is not None and later > 100_000 for later in starts[1:])
    assert starts[1:] == sorted(starts[1:], key=lambda later: later or 0)


def test_the_second_of_two_waits_and_takes_what_the_first_brought(tmp_path: Path) -> None:
    out = tmp_path / "file"
    with serving({"/file": CONTENT}, Fault("hold", 500_000)) as site:
        first = start(f"{site.address}/file", out)
        assert first.stdout is not None
        first.stdout.readline()
        second = start(f"{site.address}/file", out)
        assert second.stdout is not None
        assert second.stdout.readline() == "0\n"  # it says that it waits
        site.released.set()
        heard = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert [text.splitlines()[-1] for text in heard] == [str(len(CONTENT))] * 2
    assert site.starts() == [None]
    assert out.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [out]


def test_the_second_of_two_goes_on_where_the_first_was_killed(tmp_path: Path) -> None:
    out = tmp_path / "file"
    with serving({"/file": CONTENT}, Fault("stall", 700_000)) as site:
        first = start(f"{site.address}/file", out)
        assert first.stdout is not None
        for line in first.stdout:
            if int(line) > 500_000:
                break
        second = start(f"{site.address}/file", out)
        assert second.stdout is not None
        assert second.stdout.readline() == "0\n"
        first.kill()
        first.communicate()
        assert second.communicate(timeout=60)[0]
    assert second.returncode == 0
    assert out.read_bytes() == CONTENT
    assert site.starts()[0] is None and (site.starts()[1] or 0) > 400_000
    assert list(tmp_path.iterdir()) == [out]


def test_on_a_disk_without_locks_two_at_once_both_end_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
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
    for step in fetch(address, out, KNOWN, policy=QUICK):
        if not waited and step.n_done > 500_000:
            gate.wait(30)
            waited = True
    results.put(step.sha256 if out.read_bytes() == CONTENT else "another")


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
        list(fetch(f"{site.address}/file", small_disk / "file", KNOWN, policy=QUICK))
    assert caught.value.why == "3,000,000 bytes are needed, 2,097,152 are free"
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("kind", ["ok", "chunked"])
def test_a_disk_that_fills_up_on_the_way_keeps_what_came(kind: str, small_disk: Path) -> None:
    out, filler = small_disk / "file", small_disk / "filler"
    expected = Expected(max_size=10_000_000)
    with serving({"/file": CONTENT[:1_800_000]}, kind) as site:
        steps = fetch(f"{site.address}/file", out, expected, policy=QUICK)
        next(step for step in steps if step.n_done > 100_000)
        filler.write_bytes(b"x" * 500_000)  # what was free when it looked is gone when it writes
        with pytest.raises(ResourceError) as caught:
            list(steps)
        assert re.search("[1-9][0-9,]* bytes are needed, 0 bytes are free", caught.value.why)
        assert not out.exists()
        assert (small_disk / ".partial-file").stat().st_size > 1_000_000
        filler.unlink()
        list(fetch(f"{site.address}/file", out, expected, policy=QUICK))
    assert out.read_bytes() == CONTENT[:1_800_000]
    assert (site.starts()[1] or 0) > 1_000_000
