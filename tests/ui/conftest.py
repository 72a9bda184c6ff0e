"""Pictures are the subject here."""

import pytest


@pytest.fixture
def blank_pictures() -> None:
    """Matplotlib draws."""
