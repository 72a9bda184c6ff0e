"""The YAML of recipes: bytes -> plain values, each with its line number.

A small, strict subset: tags, anchors, aliases, duplicate keys and several documents are refused, so
nothing can run, explode or be silently dropped.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from gpt2cli import files
from gpt2cli.encodings import decode_utf8
from gpt2cli.errors import InputError, UsageError

Value: TypeAlias = Any  # None | bool | int | float | str | list[Value] | dict[str, Value]
Place: TypeAlias = tuple[str | int, ...]  # keys and list positions from the top, ("optim", "lr")
_At: TypeAlias = Callable[[int], str]  # how messages call a line

MAX_BYTES = 50_000  # at most a value per byte or two; PyYAML composes some 50,000 per second
MAX_DEPTH = 8

# YAML 1.2's core rules. PyYAML follows 1.1, where 2e-5 is text, 010 is eight and `no` is false.
_WORDS: dict[str, Value] = {
    spelling: value
    for word, value in {"": None, "~": None, "null": None, "true": True, "false": False}.items()
    for spelling in (word, word.title(), word.upper())
}
_AMBIGUOUS = re.compile(r"yes|Yes|YES|no|No|NO")
_INT = re.compile(r"[-+]?[0-9](_?[0-9])*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9](_?[0-9])*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Document:
    """The values of a YAML text, and the line on which each begins (from 1)."""

    values: dict[str, Value]
    lines: dict[Place, int] = field(default_factory=dict)

    def line_of(self, place: Place) -> int:
        """The line of `place`, or of the nearest enclosing value in the file."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_text(path: Path, name: str) -> str:
    """The text of a UTF-8 file; a byte order mark is dropped, CRLF is left to YAML.

    Raises InputError with the offset of the first byte that is not text.
    """
    return decode_utf8(read_bytes(path, name), name, has_option=False)


def read_bytes(path: Path, name: str) -> bytes:
    """The file's bytes. Raises InputError unless it is a regular file of a recipe's size."""
    with files.open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: larger than {MAX_BYTES:,} bytes", "a recipe is a page of text")
    return data


def parse(text: str, name: str) -> Document:
    """Read a mapping. Raises UsageError with `name:line` for anything that is not plain YAML."""
    values, lines = _read(text, lambda line: f"{name}:{line}")
    if not isinstance(values, dict):
        raise UsageError(
            f"{name}:1: {'empty' if values is None else 'not a list of `key: value` lines'}",
            "a recipe is a mapping from sections to values",
            "gpt2 recipes show verdict",
        )
    return Document(values, lines)


def parse_value(text: str, name: str) -> Value:
    """One value as it could stand after a key: quoted text, a [list], or a plain scalar.

    Text that opens with neither a quote nor a bracket is taken whole, colons and # included.
    Raises UsageError that begins with `name`.
    """
    stripped = text.strip()
    if not stripped.startswith(('"', "'", "[")):
        return plain_scalar(stripped, name)
    return _read(stripped, lambda line: name)[0]  # there is one line only


def plain_scalar(text: str, where: str) -> Value:
    """The value of an unquoted scalar: null, true or false, an integer, a float, or its text."""
    if text in _WORDS:
        return _WORDS[text]
    if _AMBIGUOUS.fullmatch(text):
        raise UsageError(
            f"{where}: {text} may mean the word or a truth value",
            "YAML 1.1 reads it as one, YAML 1.2 as the other",
            f'write "{text}" in quotes, or {"true" if text.lower() == "yes" else "false"}',
        )
    if _INT.fullmatch(text) and len(text) <= 100:  # a longer one is a float: out of every range
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def dotted(place: Place) -> str:
    """optim.lr, data.text_fields[0]: a place as messages and overrides spell it."""
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return words.removeprefix(".")


def _read(text: str, at: _At) -> tuple[Value, dict[Place, int]]:
    lines: dict[Place, int] = {}
    return _value(_compose(text, at), (), lines, at), lines


class _Loader(yaml.SafeLoader):
    """Refuses constructs that PyYAML would follow without a limit, or run."""

    def __init__(self, text: str, at: _At) -> None:
        super().__init__(text)
        self.at, self.depth = at, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        where = self.at(event.start_mark.line + 1)
        if self.depth > MAX_DEPTH:
            raise UsageError(f"{where}: nested more than {MAX_DEPTH} levels deep", "a recipe has two levels")
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise UsageError(f"{where}: anchors (&) and aliases (*) are not used here", "write the value out")
        if event.tag:
            raise UsageError(
                f"{where}: the tag {event.tag} is not allowed", "a recipe holds plain values only"
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, at: _At) -> yaml.Node | None:
    """The one document of the text, or None if it is empty."""
    try:
        return _Loader(text, at).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UsageError(f"{at(line)}: not YAML: {error.problem}", error.context or "") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML hands "\UFFFFFFFF" and %YAML 9999... to chr() and int() unchecked.
        raise UsageError(f"{at(1)}: not YAML: {str(error).splitlines()[0]}") from None


def _value(node: yaml.Node | None, place: Place, lines: dict[Place, int], at: _At) -> Value:
    """The node as plain values; where each of them begins goes into `lines`."""
    if node is None:
        return None
    line = node.start_mark.line + 1
    lines.setdefault(place, line)
    if isinstance(node, yaml.ScalarNode):
        where = f"{at(line)} {dotted(place)}".rstrip()
        return plain_scalar(node.value, where) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*place, n), lines, at) for n, item in enumerate(node.value)]
    values: dict[str, Value] = {}
    for key, value in node.value:
        where = at(key.start_mark.line + 1)
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{where}: a key that is not a word", "write `key: value`")
        here = (*place, key.value)
        if here in lines:
            raise UsageError(
                f"{where}: {dotted(here)}: duplicate key",
                f"it stands on line {lines[here]} already",
                "remove one of the two",
            )
        lines[here] = key.start_mark.line + 1
        values[key.value] = _value(value, here, lines, at)
    return values
