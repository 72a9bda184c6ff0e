"""Owns YAML as recipes use it: bytes -> plain values, each with the line it stands on.

A small, strict subset: mappings, lists and scalars. Tags, anchors, aliases, duplicate keys and
several documents are refused, so nothing can run, nothing can explode and nothing is silently
dropped. Which keys a recipe has is not known here.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from gpt2cli import files
from gpt2cli.errors import InputError, UsageError

Value: TypeAlias = Any  # None | bool | int | float | str | list[Value] | dict[str, Value]
Place: TypeAlias = tuple[str | int, ...]  # keys and list positions from the top, ("optim", "lr")

MAX_BYTES = 1_000_000
# PyYAML reads about 100,000 events a second; a recipe has fewer than 200.
MAX_EVENTS = 10_000
MAX_DEPTH = 8

# YAML 1.2's core rules. PyYAML follows 1.1, where 2e-5 is text, 010 is eight and `no` is false.
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"(true|True|TRUE)|(false|False|FALSE)")
_INT = re.compile(r"[-+]?[0-9](_?[0-9])*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9](_?[0-9])*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_AMBIGUOUS = re.compile(r"yes|Yes|YES|no|No|NO")


class _Loader(yaml.SafeLoader):
    """A class of our own, so that no change to it can reach anyone else's SafeLoader."""


@dataclass(frozen=True)
class Document:
    """What a YAML text says, and on which line each of its values begins (from 1)."""

    values: dict[str, Value]
    lines: dict[Place, int] = field(default_factory=dict)

    def line_of(self, place: Place) -> int:
        """The line of `place`, or of the nearest thing around it that is written down."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_text(path: Path, name: str) -> str:
    """The text of a UTF-8 file; a byte order mark is dropped, CRLF is left to YAML.

    Raises InputError with the offset of the first byte that is not text.
    """
    data = read_bytes(path, name)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _not_text(name, 0, "it is UTF-16")
    text = _decode(data, name)
    control = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if control:
        offset = len(text[: control.start()].encode("utf-8"))
        raise _not_text(name, offset, f"it holds the control character U+{ord(control[0]):04X}")
    return text.removeprefix("\ufeff")


def read_bytes(path: Path, name: str) -> bytes:
    """The file as it is. Raises InputError where it is not a regular file of a recipe's size."""
    with files.open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: larger than {MAX_BYTES:,} bytes", "a recipe is a page of text")
    return data


def parse(text: str, name: str) -> Document:
    """Read a mapping. Raises UsageError with `name:line` for anything that is not plain YAML."""
    reader = _Reader(text, name)
    values = reader.mapping()
    return Document(values, reader.lines)


def parse_value(text: str, name: str) -> Value:
    """One value as it could stand after a key: quoted text, a [list], or a plain scalar.

    Text that opens with neither a quote nor a bracket is taken whole, colons and # included.
    Raises UsageError that begins with `name`.
    """
    stripped = text.strip()
    if not stripped.startswith(('"', "'", "[")):
        return plain_scalar(stripped, name)
    return _Reader(stripped, name, one_line=True).value()


def plain_scalar(text: str, where: str) -> Value:
    """What an unquoted scalar means: null, true or false, an integer, a float, or itself."""
    if _NULL.fullmatch(text):
        return None
    if match := _BOOL.fullmatch(text):
        return bool(match[1])
    if _AMBIGUOUS.fullmatch(text):
        raise UsageError(
            f"{where}: {text} may mean the word or a truth value",
            "YAML 1.1 reads it as one, YAML 1.2 as the other",
            f'write "{text}" in quotes, or {"true" if text.lower() == "yes" else "false"}',
        )
    if _INT.fullmatch(text):
        return _integer(text, where)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _NOT_FINITE.fullmatch(text):
        return float(match[1] + "inf") if match[2] else float("nan")
    return text


def dotted(place: Place) -> str:
    """optim.lr, data.text_fields[0]: a place as messages and overrides spell it."""
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return words.removeprefix(".")


class _Reader:
    """Builds values from PyYAML's events. PyYAML's own composer recurses without a limit and
    expands aliases; events come one at a time, so the limits below hold before memory is spent.
    """

    def __init__(self, text: str, name: str, one_line: bool = False) -> None:
        self.name, self.one_line = name, one_line
        self.lines: dict[Place, int] = {}
        self.events = self._events(text)
        self.line = 1

    def mapping(self) -> dict[str, Value]:
        value = self.value()
        if not isinstance(value, dict):
            raise UsageError(
                f"{self.name}:1: {'empty' if value is None else 'not a list of `key: value` lines'}",
                "a recipe is a mapping from sections to values",
                "gpt2 recipes show verdict",
            )
        return value

    def value(self) -> Value:
        """The one document of the text; None where there is none."""
        result: Value = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                result = self._node(next(self.events), ())
                next(self.events)  # the document's end
                break
        following = next(self.events, None)
        if isinstance(following, yaml.DocumentStartEvent):
            raise self._refuse("a second document", "a recipe is one document; remove the line ---")
        return result

    def _node(self, event: yaml.Event, place: Place) -> Value:
        """Recurses, at most MAX_DEPTH deep: `_events` counts."""
        self.lines.setdefault(place, self.line)
        if isinstance(event, yaml.ScalarEvent):
            text = str(event.value)
            return plain_scalar(text, self._at(place)) if event.style is None else text
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Value] = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                items.append(self._node(item, (*place, len(items))))
            return items
        values: dict[str, Value] = {}
        while not isinstance(key := next(self.events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                raise self._refuse("a key that is not a word", "write `key: value`")
            name = str(key.value)
            here = (*place, name)
            if here in self.lines:
                raise self._refuse(
                    f"{dotted(here)}: duplicate key",
                    f"it stands on line {self.lines[here]} already",
                    "remove one of the two",
                )
            self.lines[here] = self.line
            values[name] = self._node(next(self.events), here)
        return values

    def _events(self, text: str) -> Iterator[yaml.Event]:
        depth = 0
        try:
            for n_events, event in enumerate(yaml.parse(text, _Loader)):
                self.line = _line(event.start_mark) or self.line
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                if depth > MAX_DEPTH:
                    raise self._refuse(f"nested more than {MAX_DEPTH} levels deep", "a recipe has two levels")
                if n_events > MAX_EVENTS:
                    raise self._refuse(f"more than {MAX_EVENTS:,} values", "a recipe is a page of text")
                if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                    raise self._refuse("anchors (&) and aliases (*) are not used here", "write the value out")
                if tag := getattr(event, "tag", None):
                    raise self._refuse(f"the tag {tag} is not allowed", "a recipe holds plain values only")
                yield event
        except yaml.MarkedYAMLError as error:
            self.line = _line(error.problem_mark or error.context_mark) or self.line
            raise self._refuse(f"not YAML: {error.problem}", error.context or "") from None
        except yaml.reader.ReaderError as error:
            raise self._refuse(
                f"character U+{error.character:04X} is not allowed", "it is not text"
            ) from None
        except (ValueError, OverflowError):
            # PyYAML hands "\UFFFFFFFF" and %YAML 9999... to chr() and int() unchecked.
            raise self._refuse("not YAML: a number or an escape out of range") from None

    def _refuse(self, what: str, why: str = "", fix: str = "") -> UsageError:
        return UsageError(f"{self._at()}: {what}", why, fix)

    def _at(self, place: Place = ()) -> str:
        where = self.name if self.one_line else f"{self.name}:{self.line}"
        return f"{where} {dotted(place)}" if place else where


def _line(mark: Any) -> int:
    return mark.line + 1 if mark else 0


def _integer(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python refuses to read more than 4,300 digits
        raise UsageError(f"{where}: a number of {len(text):,} digits", "no setting is that large") from None


def _decode(data: bytes, name: str) -> str:
    nul = data.find(b"\0")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if not 0 <= nul < error.start:
            reason = f"the byte 0x{data[error.start]:02x} does not belong there"
            raise _not_text(name, error.start, reason) from None
        text = ""
    if nul >= 0:
        raise _not_text(name, nul, "it holds a NUL byte")
    return text


def _not_text(name: str, offset: int, reason: str) -> InputError:
    return InputError(
        f"{name}: not UTF-8 text at byte {offset}", reason, f"iconv -f THE_ENCODING_IT_HAS -t UTF-8 {name}"
    )
