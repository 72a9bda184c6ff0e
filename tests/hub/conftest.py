"""Downloads come from a server on loopback, whatever proxy this machine is set up for."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a file is to be fetched to; the folder is not there yet."""
    return tmp_path / "new" / "file"
