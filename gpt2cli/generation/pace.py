"""Owns how fast tokens come, counted alike wherever it is said: without reading, end-of-text included."""

import time


class Pace:
    """Between two tokens passes the time of the second; what passes before the first of a reading is
    the reading's.
    """

    def __init__(self) -> None:
        self.start = self._last = time.perf_counter()
        self.reading_seconds = 0.0
        self._seconds, self._n_tokens = 0.0, 0
        self._is_reading = True

    @property
    def seconds(self) -> float:
        """All that has passed."""
        return time.perf_counter() - self.start

    @property
    def tokens_per_second(self) -> float:
        """0 where it cannot be told."""
        return self._n_tokens / self._seconds if self._seconds > 0 else 0.0

    def reads(self) -> None:
        """The next token comes after reading."""
        self._is_reading = True

    def came(self, n_tokens: int = 1) -> None:
        """So many have come together, of as many rows."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        if self._is_reading:
            self.reading_seconds += passed
        else:
            self._seconds += passed
            self._n_tokens += n_tokens
        self._is_reading = False
