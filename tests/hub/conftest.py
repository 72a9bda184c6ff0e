"""What the tests of downloads share."""

from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a file is to be fetched to; the folder is not there yet."""
    return tmp_path / "new" / "file"
