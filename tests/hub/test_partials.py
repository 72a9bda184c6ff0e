"""Whose unfinished file it is, and who may go on with it."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import CONTENT, QUICK, UNKNOWN, failure, get
from faulty_server import Fault, serving

from gpt2cli.hub import partials


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "file"


@pytest.mark.parametrize(
    ("age", "owner", "adopted"),
    [
        (0, "dead", True),
        (0, "alive", False),
        (0, "elsewhere", False),
        (0, "before the boot", True),
        (partials.SILENT_SECONDS + 60, "alive", True),
        (partials.SILENT_SECONDS + 60, "elsewhere", True),
    ],
)
def test_whose_partial_is_adopted(
    age: float, owner: str, adopted: bool, out: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "UNSURE_BYTES", 100)
    host, boot, _ = partials._me()
    names: dict[str, Callable[[], str]] = {
        "dead": lambda: f"{host}-{boot}-{dead_pid}",
        "alive": lambda: f"{host}-{boot}-{os.getppid()}",
        "elsewhere": lambda: f"00000000-{boot}-{dead_pid}",
        "before the boot": lambda: f"{host}-00000000-{os.getppid()}",
    }
    with serving({"/file": CONTENT}) as site:
        identity = partials.identity_of(f"{site.address}/file", site.etag or "")
        path = out.with_name(f".partial-file-{identity}-{names[owner]()}")
        path.parent.mkdir()
        path.write_bytes(CONTENT[:5000])
        os.utime(path, (time.time() - age, time.time() - age))
        (out.parent / ".partial-file-x-1").touch()  # somebody else's temporary file
        get(site, out)
    assert out.read_bytes() == CONTENT
    # What may not have reached the device before the power failed is fetched again.
    sure = owner in ("dead", "alive")
    assert site.starts() == ([4999] if sure else [4899]) if adopted else site.starts() == [None]
    assert path.exists() is not adopted


@pytest.fixture
def dead_pid() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_a_whole_orphan_costs_one_byte(out: Path, dead_pid: int) -> None:
    host, boot, _ = partials._me()
    with serving({"/file": CONTENT}) as site:
        identity = partials.identity_of(f"{site.address}/file", site.etag or "")
        out.parent.mkdir()
        out.with_name(f".partial-file-{identity}-{host}-{boot}-{dead_pid}").write_bytes(CONTENT)
        get(site, out)
    assert site.starts() == [19_999]
    assert list(out.parent.iterdir()) == [out]


def test_what_cannot_be_relied_on_is_cut_off_before_anything_is_added(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "UNSURE_BYTES", 2000)
    host, _, _ = partials._me()
    with serving({"/file": CONTENT}, Fault("cut", 10)) as site:
        identity = partials.identity_of(f"{site.address}/file", site.etag or "")
        out.parent.mkdir()
        # Before the power failed it had 5000 bytes, of which the last never reached the device.
        out.with_name(f".partial-file-{identity}-{host}-00000000-1").write_bytes(CONTENT[:3000] + bytes(2000))
        failure(site, out, UNKNOWN, replace(QUICK, attempts=1))
        (kept,) = out.parent.iterdir()
        assert kept.read_bytes() == CONTENT[: 2999 + 10]
        get(site, out, UNKNOWN)
    assert out.read_bytes() == CONTENT
