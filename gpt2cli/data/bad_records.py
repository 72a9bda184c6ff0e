"""The one rule for records that cannot be used: skip and count them, up to a share of the file.

The share is rounded up, so that a file of any size may have one bad record; 0 allows none.
"""

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction

from gpt2cli.errors import InputError

MAX_BAD = 0.001
SHOWN = 3
_LINE = re.compile(r"(?::|, row )(\d+)\b")
# Records, all of them bad: the wrong field was named, and the rest would be bad too. An explicit larger
# --max-bad turns this check off.
HOPELESS = 20


@dataclass
class RecordTally:
    """Counts the records of one file as they are read: `good()` or `skip(error)` for each."""

    max_bad: float
    n_good: int = 0
    n_bad: int = 0
    first: list[InputError] = field(default_factory=list)

    def skip(self, error: InputError) -> None:
        """Count a bad record. Raises InputError if none is allowed, or none of the first was good."""
        self.n_bad += 1
        if len(self.first) < SHOWN:
            self.first.append(error)
        is_hopeless = not self.n_good and self.n_bad >= HOPELESS and self.max_bad <= MAX_BAD
        if not self.max_bad or is_hopeless:
            raise self._refusal()

    def finish(self) -> None:
        """At the end of the file. Raises InputError if too many were bad, or all."""
        n = self.n_good + self.n_bad
        if self.n_bad and (not self.n_good or self.n_bad > self._allowed(n)):
            raise self._refusal()

    def _allowed(self, n: int) -> int:
        """The share of `n`, rounded up: of the decimal number that was given, which 0.07 * 100 exceeds."""
        return math.ceil(Fraction(str(self.max_bad)) * n)

    def note(self, name: str) -> str:
        """What to say of the file at its end; empty if no record was bad."""
        if not self.n_bad:
            return ""
        n = self.n_good + self.n_bad
        shown = "; ".join(error.what for error in self.first)
        more = f"; and {self.n_bad - len(self.first):,} more" if self.n_bad > len(self.first) else ""
        return f"{name}: {self.n_bad:,} of {n:,} records are bad and left out: {shown}{more}"

    def _refusal(self) -> InputError:
        first, n = self.first[0], self.n_good + self.n_bad
        if not self.n_good and not self.max_bad:
            return first
        why = first.why
        if self.n_bad > 1:
            found = [_LINE.search(error.what) for error in self.first[1:]]
            others = ", ".join(match[1] for match in found if match)
            of = (
                f"{self.n_bad:,} of the first {n:,}" if self.n_bad == HOPELESS else f"{self.n_bad:,} of {n:,}"
            )
            why = f"{why}; " if why else ""
            why += f"{of} records are bad, also lines {others}"
        if not self.n_good:
            return InputError(first.what, why, first.fix)
        share = math.ceil(1000 * self.n_bad / n) / 1000
        if self.max_bad:
            why += f"; {self.max_bad:g} of them may be"
        return InputError(first.what, why, f"--max-bad {share:g}, in a recipe data.max_bad={share:g}")
