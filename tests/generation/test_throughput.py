"""How fast tokens come, by a clock of our own."""

import time

import pytest

from gpt2cli.generation.engine import Throughput


def test_prefill_is_not_counted_before_the_first_token_nor_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    found = Throughput()
    assert found.tokens_per_second == 0

    def after(seconds: float, n_tokens: int = 1) -> None:
        now[0] += seconds
        found.add(n_tokens)

    after(5)
    assert (found.tokens_per_second, found.prefill_seconds) == (0, 5)
    after(2)
    after(2, n_tokens=3)
    assert found.tokens_per_second == 1
    found.start_prefill()
    after(7)
    after(4, n_tokens=4)
    assert found.tokens_per_second == 1
    assert (found.prefill_seconds, found.seconds) == (12, 20)
