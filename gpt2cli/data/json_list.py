"""A JSON list of any length, read value by value: its text is never in memory as a whole."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from gpt2cli.errors import InputError
from gpt2cli.json_files import DECODER, kind_of

BLOCK = 1 << 20  # characters
LONGEST = 1 << 26  # characters of a value
_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER_END = re.compile(r"[-+.eE0-9]\Z")


def json_list(read: Callable[[int], str], name: str) -> Iterator[tuple[int, Any]]:
    """(its line, the value) of each item of the list that `read(n)` gives the text of, n characters at a
    time at most.

    Raises InputError naming the line.
    """
    text = _Text(read, name)
    if text.after_space() != "[":
        text.refuse_other()
    text.take(1)
    if text.after_space() == "]":
        text.take(1)
    else:
        while True:
            text.after_space()
            line = text.line
            yield line, text.value()
            mark = text.after_space()
            if mark not in (",", "]"):
                raise text.error("Expecting ',' delimiter")
            text.take(1)
            if mark == "]":
                break
    if text.after_space():
        raise text.error("Extra data")


class _Text:
    """The text from the current place on, as far as it is read; `line` and `column` count from 1."""

    def __init__(self, read: Callable[[int], str], name: str) -> None:
        self._read, self._name = read, name
        self._text, self._place = read(BLOCK), 0
        self._is_whole = not self._text
        self.line, self.column = 1, 1

    def after_space(self) -> str:
        """Skip white space; the next character, or "" at the end."""
        while True:
            end = _SPACE.match(self._text, self._place).end()  # type: ignore[union-attr]
            self.take(end - self._place)
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def take(self, n: int) -> None:
        """Go on by n characters of the text in memory."""
        end = self._place + n
        lines = self._text.count("\n", self._place, end)
        self.line += lines
        last = self._text.rfind("\n", self._place, end)
        self.column = end - last if lines else self.column + n
        self._place = end

    def value(self) -> Any:
        """The value here, and go on behind it."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                self.take(error.pos - self._place)
                raise self.error(error.msg) from None
            except RecursionError:
                raise self.error("it is nested too deeply") from None
            except ValueError as error:
                raise self.error(str(error)) from None
            # A number at the end of what is read may go on.
            if end == len(self._text) and _NUMBER_END.search(self._text) and self._more():
                continue
            self.take(end - self._place)
            return value

    def _more(self) -> bool:
        """Read more text, doubling what is in memory; whether there was any."""
        if self._is_whole or len(self._text) - self._place > LONGEST:
            return False
        text = self._read(max(BLOCK, len(self._text) - self._place))
        if not text:
            self._is_whole = True
            return False
        self._text, self._place = self._text[self._place :] + text, 0
        return True

    def error(self, why: str) -> InputError:
        return InputError(
            f"{self._name}:{self.line}: not JSON, column {self.column}",
            why,
            "one record per line is read from a file that is called .jsonl",
        )

    def refuse_other(self) -> None:
        """Raise InputError: the file is one value, but no list."""
        first = self.after_space()
        value = self.value() if first else None
        if not first or self.after_space():
            raise self.error("Extra data" if first else "Expecting value")
        lists = (
            [key for key, part in value.items() if isinstance(part, list)] if isinstance(value, dict) else []
        )
        fix = "put the records into [ ], or one per line into a file that is called .jsonl"
        if lists and re.fullmatch(r"\w+", lists[0]):
            fix = f"jq -c '.{lists[0]}[]' {self._name} > {self._name}l"
        raise InputError(
            f"{self._name}:1: a list of records is needed, not {kind_of(value)}",
            "the file is one JSON value",
            fix,
        )
