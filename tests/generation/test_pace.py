"""How fast tokens come, by a clock of our own."""

import pytest

from gpt2cli.generation import pace
from gpt2cli.generation.pace import Pace


def test_reading_is_not_counted_before_the_first_token_nor_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    found = Pace()
    assert found.tokens_per_second == 0

    def after(seconds: float, n_tokens: int = 1) -> None:
        now[0] += seconds
        found.came(n_tokens)

    after(5)
    assert (found.tokens_per_second, found.reading_seconds) == (0, 5)
    after(2)
    after(2, n_tokens=3)
    assert found.tokens_per_second == 1
    found.reads()
    after(7)
    after(4, n_tokens=4)
    assert found.tokens_per_second == 1
    assert (found.reading_seconds, found.seconds) == (12, 20)
