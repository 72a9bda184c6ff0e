"""Plain text cut into documents: at a separator, at line ends, or at blank lines; else a file is one."""

import re
import shlex
from dataclasses import dataclass

from gpt2cli.errors import UsageError

LINES, BLANK_LINES = "\n", r"\n(?:[^\S\n]*\n)+"
_CHOICES = "--split-on, --per-line and --blank-line (data.split_on, data.per_line, data.blank_line)"


@dataclass(frozen=True)
class SplitRule:
    """How a text is cut into documents; at most one of the three. `split_on` cuts the texts of records
    too, the other two plain text alone.

    Raises UsageError for two rules at once.
    """

    split_on: str = ""
    per_line: bool = False
    blank_line: bool = False

    def __post_init__(self) -> None:
        if bool(self.split_on) + self.per_line + self.blank_line > 1:
            raise UsageError(
                "a text is split in two ways", f"{_CHOICES} exclude each other", "give one of them"
            )

    def separator(self, is_plain: bool) -> re.Pattern[str] | None:
        if self.split_on:  # a text's CRLF is LF when it is split
            return re.compile(re.escape(self.split_on.replace("\r\n", "\n")))
        if is_plain and (self.per_line or self.blank_line):
            return re.compile(LINES if self.per_line else BLANK_LINES)
        return None


def split_option(text: str) -> str:
    """The fix that splits at a text."""
    recipe = shlex.quote("data.split_on=" + text)
    return f"--split-on {shlex.quote(text)}, in a recipe {recipe}"
