"""How fast tokens come, counted alike by `generate` and `chat`."""

import time


class Throughput:
    """Tokens per second from one token to the next, end-of-text included; prefill is timed apart."""

    def __init__(self) -> None:
        self.start = self._last = time.perf_counter()
        self.prefill_seconds = 0.0
        self._seconds, self._n_tokens = 0.0, 0
        self._is_prefill = True

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @property
    def tokens_per_second(self) -> float:
        """0 where it cannot be told."""
        return self._n_tokens / self._seconds if self._seconds > 0 else 0.0

    def start_prefill(self) -> None:
        """What passes until the next token is prefill's."""
        self._is_prefill = True

    def add(self, n_tokens: int = 1) -> None:
        """So many came together, one per row; what passed before them is theirs."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        if self._is_prefill:
            self.prefill_seconds += passed
        else:
            self._seconds += passed
            self._n_tokens += n_tokens
        self._is_prefill = False
