"""The text of a record: one of its fields, or several, which dots reach within objects and lists."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from gpt2cli.errors import InputError
from gpt2cli.json_files import kind_of

TEXT = ("text",)  # the fields unless others are named
BETWEEN = "\n\n"  # the texts of a record that are joined
DEEPEST = 4  # levels of objects in which texts are looked for, to name a field


def joined_text(record: Any, fields: Sequence[str], where: str) -> str:
    """The texts of the fields, joined by blank lines, without empty ones; a list of texts counts as several.

    A record that is a text itself is that text, unless another field than "text" is asked for.
    Raises InputError.
    """
    if len(fields) == 1 and isinstance(record, dict) and isinstance(text := record.get(fields[0]), str):
        if not text.isascii():
            require_characters(text, f"{where}: field {fields[0]!r}")
        return text  # the usual case first: records are many
    if isinstance(record, str) and tuple(fields) == TEXT:
        require_characters(record, f"{where}: the text")
        return record
    if not isinstance(record, dict):
        fix = f'a record is {{"{fields[0]}": "..."}}'
        raise InputError(f"{where}: must be a JSON object, not {kind_of(record)}", fix=fix)
    texts: list[str] = []
    for field in fields:
        found = find_field(record, field)
        parts = found if isinstance(found, list) and found else [found]
        if not all(isinstance(part, str) for part in parts):
            raise no_text(record, field, found, where, _another_field(record, field, found))
        for part in parts:
            require_characters(part, f"{where}: field {field!r}")
        texts += parts
    return texts[0] if len(texts) == 1 else BETWEEN.join(filter(None, texts))


class Missing:
    """The value of a field that a record does not have."""


MISSING = Missing()


def find_field(record: Any, field: str) -> Any:
    """The value at a name with dots: of objects within objects, and of each item of a list; or MISSING."""
    if isinstance(record, list):
        # Of messages, some have no content, and some a null one.
        found = [value for value in (find_field(item, field) for item in record) if value is not MISSING]
        if not found:
            return MISSING
        found = [value for value in found if value is not None] or [None]
        return [part for value in found for part in (value if isinstance(value, list) else [value])]
    if not isinstance(record, dict):
        return MISSING
    if field in record:
        return record[field]
    name, dot, rest = field.partition(".")
    while dot:
        if name in record:
            return find_field(record[name], rest)
        more, dot, rest = rest.partition(".")
        name = f"{name}.{more}"
    return MISSING


def text_field(record: dict[str, Any], field: str, where: str, fix: str) -> str:
    """A field that must hold text. Raises InputError, with `fix` to choose another field."""
    value = find_field(record, field)
    if not isinstance(value, str):
        raise no_text(record, field, value, where, fix)
    require_characters(value, f"{where}: field {field!r}")
    return value


def no_text(record: dict[str, Any], field: str, value: Any, where: str, fix: str) -> InputError:
    problem = "is missing" if value is MISSING else f"is {kind_of(value)}, not text"
    has = ", ".join(repr(name[:40]) for name in list(record)[:8]) or "no field"
    return InputError(f"{where}: field {field!r} {problem}", f"it has: {has}", fix)


def name_field(name: str) -> str:
    """The fix that names another field of text, of a command and of a recipe."""
    in_recipe = shlex.quote(f"data.text_fields=[{name}]")
    return f"--text-field {shlex.quote(name)}, in a recipe {in_recipe}"


def require_characters(text: str, what: str) -> None:
    """Raise InputError for half a surrogate pair, which an escape in JSON can spell."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(f"{what} holds half a surrogate pair ({half})", "that is not a character") from None


def _another_field(record: dict[str, Any], field: str, found: Any) -> str:
    """The fix for a record without text in `field`: the longest text that it has."""
    if found is None:
        return "fill it in, or leave the record out"
    longest = longest_field(record)
    if longest in ("", field):
        return "write a text there, or a list of texts"
    return name_field(longest)


def longest_field(record: dict[str, Any]) -> str:
    """The name of the field with the longest text, with dots if it lies deeper; "" without any."""
    return max(_texts(record, DEEPEST), key=lambda pair: pair[1], default=("", 0))[0]


def _texts(value: Any, depth: int) -> Iterator[tuple[str, int]]:
    for name, part in value.items():
        if isinstance(part, str):
            yield name, len(part)
        elif isinstance(part, list) and part and all(isinstance(item, str) for item in part):
            yield name, sum(map(len, part))
        elif depth:
            inner = (
                next((item for item in part if isinstance(item, dict)), {})
                if isinstance(part, list)
                else part
            )
            if isinstance(inner, dict):
                yield from ((f"{name}.{rest}", n) for rest, n in _texts(inner, depth - 1))
