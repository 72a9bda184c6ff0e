"""JSON of any length, read value by value: a list's items, or values one after another. The text is never in
memory as a whole.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpt2cli.data.conversations import LISTS, PAIR
from gpt2cli.data.file_kinds import reading_command
from gpt2cli.data.text_fields import find_field
from gpt2cli.errors import InputError
from gpt2cli.json_files import DECODER, kind_of

BLOCK = 1 << 20  # characters
LONGEST = 1 << 26  # characters of a value
_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER_END = re.compile(r"[-+.eE0-9]\Z")


def json_values(
    read: Callable[[int], str], name: str, fields: Sequence[str] = ()
) -> Iterator[tuple[int, Any]]:
    """(its line, the value) of each item of the list that `read(n)` gives the text of, n characters at a
    time at most; or of each object, where the text holds them without a list. A single object with a
    text in one of the `fields` is a record, whatever else is in it.

    Raises InputError naming the line.
    """
    text = _Text(read, name)
    if text.after_space() == "{":
        yield from _objects(text, fields)
        return
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


def _objects(text: "_Text", fields: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Objects that stand one after another, as `jq` writes them, with commas between or without."""
    is_first = True
    while mark := text.after_space():
        if mark == "," and not is_first:
            text.take(1)
            continue
        line = text.line
        value = text.value()
        is_record = any(_is_text(find_field(value, field)) for field in fields)
        if is_first and not is_record and not text.after_space():
            text.refuse_one(value)
        yield line, value
        is_first = False


class _Text:
    """A buffer of unread text. `line` and `column` of its beginning count from 1."""

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
        """Skip n characters of the text in memory."""
        end = self._place + n
        lines = self._text.count("\n", self._place, end)
        self.line += lines
        last = self._text.rfind("\n", self._place, end)
        self.column = end - last if lines else self.column + n
        self._place = end

    def value(self) -> Any:
        """Read the value here."""
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
        rest = self._text[self._place :]
        is_end = self._is_whole and (not rest.strip() or "Unterminated" in why)
        fix = f"correct line {self.line} there"
        if is_end:
            why, fix = f"{why}: the file ends within a record", "fetch the file again, or write its end"
        elif rest.startswith("]") or rest.startswith("}"):
            fix = f"delete the comma before the {rest[0]}, in line {self.line} or above it"
        return InputError(f"{self._name}:{self.line}: not JSON, column {self.column}", why, fix)

    def refuse_other(self) -> None:
        """Raise InputError: the file is one value, but no list and no object."""
        first = self.after_space()
        value = self.value() if first else None
        if not first or self.after_space():
            raise self.error("Extra data" if first else "Expecting value")
        raise InputError(
            f"{self._name}:1: a list of records is needed, not {kind_of(value)}",
            "the file is one JSON value",
            "put the records into [ ], or one per line into a file that is called .jsonl",
        )

    def refuse_one(self, value: Any) -> None:
        """Raise InputError: the file is one object, perhaps with the records in it."""
        found = _records_within(value)
        command = f"jq -c {shlex.quote(found or '.')}"
        raise InputError(
            f"{self._name}:1: a list of records is needed, not {kind_of(value)}",
            f"the file is one JSON value{', with the records in it' if found else ''}",
            reading_command(self._name, command, ".jsonl"),
        )


def _is_text(value: Any) -> bool:
    parts = value if isinstance(value, list) and value else [value]
    return all(isinstance(part, str) for part in parts)


def _records_within(value: Any) -> str:
    """jq's program for the records in an object, "" if it is a record itself: the first list of objects, or
    a table as pandas writes it (orient split, index or columns).
    """
    if not isinstance(value, dict):
        return ""
    if all(isinstance(value.get(name), list) for name in ("columns", "data")):
        return ".columns as $names | .data[] | [$names, .] | transpose | map({(.[0]): .[1]}) | add"
    parts = list(value.values())
    if parts and all(isinstance(part, dict) and part for part in parts):
        if len({frozenset(part) for part in parts}) == 1 and all(map(str.isdecimal, parts[0])):
            return ". as $t | .[keys_unsorted[0]] | keys_unsorted[] | . as $i | $t | map_values(.[$i])"
        if all(map(str.isdecimal, value)):
            return ".[]"
    return next(iter(_lists_within(value, "", 3)), "")


def _lists_within(value: dict[str, Any], path: str, depth: int) -> Iterator[str]:
    for name, part in value.items():
        here = f"{path}[{json.dumps(name)}]" if path else f".[{json.dumps(name)}]"
        if isinstance(part, list) and part and all(isinstance(item, dict) for item in part):
            if name not in (*LISTS, *PAIR):  # a conversation is one record
                yield f"{here}[]"
        elif isinstance(part, dict) and depth:
            yield from _lists_within(part, here, depth - 1)
