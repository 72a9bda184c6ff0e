"""Attempts follow each other at once; what the pauses would have been is kept."""

import pytest
from judged import without_pauses


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for, in seconds."""
    return without_pauses(monkeypatch)
