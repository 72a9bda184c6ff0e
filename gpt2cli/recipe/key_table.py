"""What the keys of recipes mean, for `gpt2 recipes keys` and as comments in a copied recipe.

The schema says it, in `schema.py` and `sections.py`; this puts it into words for a table.
"""

import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.recipe import yaml_lines
from gpt2cli.recipe.loader import to_yaml
from gpt2cli.recipe.schema import RECIPES, Recipe, recipe_fields

_NAMES = {int: "whole number", float: "number", str: "text", bool: "true|false", tuple: "list"}
_LIMITS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
_WIDEST_VALUE = 40  # columns of a `key: value` that comments of other keys are aligned to


@dataclass(frozen=True)
class RecipeKey:
    """A key as a user sees it; `tasks` are those of the recipes that have it in this meaning."""

    key: str
    type: str
    default: str  # as YAML; "" if it is required
    meaning: str
    tasks: tuple[str, ...]


def recipe_keys(kind: type[Recipe]) -> list[RecipeKey]:
    """The keys of one kind of recipe, in the schema's order."""
    task = next(name for name, one in RECIPES.items() if one is kind)
    return [
        RecipeKey(key, _type(kind, key), "" if default is ... else to_yaml(default), meaning, (task,))
        for key, meaning, default in recipe_fields(kind)
        if key != "task"
    ]


def all_recipe_keys() -> list[RecipeKey]:
    """The keys of all recipes: one that several tasks share is listed once."""
    found: dict[RecipeKey, list[str]] = {}
    for task, kind in RECIPES.items():
        for one in recipe_keys(kind):
            found.setdefault(replace(one, tasks=()), []).append(task)
    places = list(dict.fromkeys(one.key for one in found))
    shown = [replace(one, tasks=tuple(tasks)) for one, tasks in found.items()]
    sections = list(dict.fromkeys(key.partition(".")[0] for key in places))
    return sorted(shown, key=lambda one: (sections.index(one.key.partition(".")[0]), places.index(one.key)))


def with_comments(content: bytes, name: str) -> bytes:
    """A recipe with the meaning of each key beside it; as it was where that would change it."""
    try:
        text = content.decode("utf-8")
        before = yaml_lines.parse(text, name)
        kind = RECIPES[str(before.values.get("task"))]
    except (UnicodeDecodeError, UsageError, KeyError):
        return content
    meanings = {one.key: one.meaning for one in recipe_keys(kind)}
    lines = text.splitlines()
    found = {
        line - 1: meanings[key]
        for place, line in before.lines.items()
        if (key := yaml_lines.dotted(place)) in meanings
        and re.fullmatch(rf"\s*{re.escape(str(place[-1]))}:\s+\S[^#]*", lines[line - 1])
    }
    column = max((len(lines[at]) for at in found if len(lines[at]) <= _WIDEST_VALUE), default=0)
    for at, meaning in found.items():
        lines[at] = f"{lines[at]:<{column}}  # {meaning}"
    commented = "\n".join([*lines, "# Every other key has its default: gpt2 recipes keys", ""])
    is_same = "\r" not in text and yaml_lines.parse(commented, name).values == before.values
    return commented.encode() if is_same else content


def _type(kind: type[Recipe], key: str) -> str:
    """A word for the values of a key, with their limits."""
    fields: Any = kind.model_fields
    *sections, last = key.split(".")
    for section in sections:
        fields = fields[section].annotation.model_fields
    info = fields[last]
    words = list(dict.fromkeys(_words(info.annotation)))
    metadata = [*info.metadata, *_inner_metadata(info.annotation)]
    limits = [
        f"{sign} {getattr(one, name)}"
        for one in metadata
        for name, sign in _LIMITS
        if getattr(one, name, None) is not None
    ]
    return " or ".join(words) + (f" {' and '.join(dict.fromkeys(limits))}" if limits else "")


def _words(annotation: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        yield "|".join(map(str, arguments))
    elif origin is typing.Annotated:
        yield from _words(arguments[0])
    elif annotation in _NAMES or origin in _NAMES:
        yield _NAMES[origin or annotation]
    elif annotation is not type(None):
        for argument in arguments:
            yield from _words(argument)


def _inner_metadata(annotation: Any) -> Iterator[Any]:
    """The limits inside of a union with None, but not those of a list's items."""
    for part in typing.get_args(annotation):
        if typing.get_origin(part) is typing.Annotated and typing.get_args(part)[0] in (int, float):
            for one in typing.get_args(part)[1:]:
                yield from getattr(one, "metadata", [one])
