"""YAML as recipes use it: bytes -> plain values, each with the line it stands on.

A small, strict subset: mappings, lists and scalars. Tags, anchors, aliases, duplicate keys and
several documents are refused, so nothing can run, nothing can explode and nothing is silently
dropped. Which keys a recipe has is not known here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from gpt2cli import files
from gpt2cli.errors import InputError, UsageError

Value: TypeAlias = Any  # None | bool | int | float | str | list[Value] | dict[str, Value]
Place: TypeAlias = tuple[str | int, ...]  # keys and list positions from the top, ("optim", "lr")
_At: TypeAlias = Callable[[int], str]  # how messages call a line

MAX_BYTES = 1_000_000
# PyYAML composes some 50,000 values a second; a recipe has fewer than 200.
MAX_VALUES = 10_000
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
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


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
    try:
        text, n_decoded = data.decode("utf-8"), len(data)
    except UnicodeDecodeError as error:
        text, n_decoded = data[: error.start].decode("utf-8"), error.start
    if control := yaml.reader.Reader.NON_PRINTABLE.search(text):
        offset = len(text[: control.start()].encode("utf-8"))
        raise _not_text(name, offset, f"it holds the control character U+{ord(control[0]):04X}")
    if n_decoded < len(data):
        reason = f"the byte 0x{data[n_decoded]:02x} does not belong there"
        raise _not_text(name, n_decoded, "it is UTF-16" if data.startswith(_UTF_16) else reason)
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
    """What an unquoted scalar means: null, true or false, an integer, a float, or itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _AMBIGUOUS.fullmatch(text):
        raise UsageError(
            f"{where}: {text} may mean the word or a truth value",
            "YAML 1.1 reads it as one, YAML 1.2 as the other",
            f'write "{text}" in quotes, or {"true" if text.lower() == "yes" else "false"}',
        )
    if _INT.fullmatch(text):
        try:
            return int(text)
        except ValueError:  # Python refuses to read more than 4,300 digits
            raise UsageError(
                f"{where}: a number of {len(text):,} digits", "no setting is that large"
            ) from None
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
    """Composes nodes under the limits above; PyYAML itself recurses and repeats as it is told."""

    def __init__(self, text: str, at: _At) -> None:
        super().__init__(text)
        self.at, self.depth, self.n_values = at, 0, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        where = self.at(event.start_mark.line + 1)
        self.n_values += 1
        if self.depth > MAX_DEPTH:
            raise UsageError(f"{where}: nested more than {MAX_DEPTH} levels deep", "a recipe has two levels")
        if self.n_values > MAX_VALUES:
            raise UsageError(f"{where}: more than {MAX_VALUES:,} values", "a recipe is a page of text")
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
    """The one document of the text, or None where there is none."""
    try:
        loader = _Loader(text, at)
    except yaml.reader.ReaderError as error:
        raise UsageError(
            f"{at(1)}: character U+{error.character:04X} is not allowed", "it is not text"
        ) from None
    try:
        return loader.get_single_node()
    except yaml.composer.ComposerError as error:
        what, why = "a second document", "a recipe is one document; remove the line ---"
        raise UsageError(f"{at(_line(error))}: {what}", why) from None
    except yaml.MarkedYAMLError as error:
        raise UsageError(f"{at(_line(error))}: not YAML: {error.problem}", error.context or "") from None
    except (ValueError, OverflowError):
        # PyYAML hands "\UFFFFFFFF" and %YAML 9999... to chr() and int() unchecked.
        raise UsageError(f"{at(loader.line + 1)}: not YAML: a number or an escape out of range") from None


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


def _line(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1


def _not_text(name: str, offset: int, reason: str) -> InputError:
    return InputError(
        f"{name}: not UTF-8 text at byte {offset}", reason, f"iconv -f THE_ENCODING_IT_HAS -t UTF-8 {name}"
    )
