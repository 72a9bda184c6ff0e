"""Messages say 1 file and 2 files."""

import pytest

from gpt2cli.errors import counted


@pytest.mark.parametrize(
    ("n", "noun", "said"),
    [
        (0, "file", "0 files"),
        (1, "response", "1 response"),
        (1234, "token", "1,234 tokens"),
        (2, "entry", "2 entries"),
        (2, "day", "2 days"),
    ],
)
def test_a_number_and_its_noun_agree(n: int, noun: str, said: str) -> None:
    assert counted(n, noun) == said
