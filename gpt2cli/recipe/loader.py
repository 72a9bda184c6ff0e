"""Loading a recipe: find it by name, apply overrides, validate it, and name the line of an error.

`schema.py` has the keys, `yaml_lines.py` reads YAML with line numbers.
"""

import difflib
import math
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gpt2cli.errors import UsageError
from gpt2cli.paths import RECIPE, expand, shown_path
from gpt2cli.recipe import yaml_lines
from gpt2cli.recipe.key_hints import RecipeKeys
from gpt2cli.recipe.schema import RECIPES, Recipe, in_reading_order, recipe_fields
from gpt2cli.recipe.shipped import shipped_recipes
from gpt2cli.recipe.yaml_lines import Document, Place, dotted


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and the origin of each value: "FILE:LINE", "override" or "default"."""

    recipe: Recipe
    origins: dict[str, str]  # by dotted key, every field of the schema
    path: Path


def load_recipe(source: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Find, read, override and validate a recipe. Overrides are like "optim.lr=3e-4"; the last one wins.

    Raises UsageError naming the file and line, or the override, InputError if the file is not
    readable text.
    """
    path = find_recipe(source)
    name = shown_path(path)
    document = yaml_lines.parse(yaml_lines.read_text(path, name), name)
    keys = RecipeKeys(RECIPES[_task_of(document, name)])
    values = {
        key: {} if key in keys.sections and value is None else value for key, value in document.values.items()
    }
    overridden = _apply_overrides(overrides, values, keys)
    try:
        recipe = keys.kind.model_validate(values)
    except ValidationError as error:
        raise _first_error(error, document, name, overridden, keys) from None
    return LoadedRecipe(recipe, _origins(document, name, overridden, keys), path)


def find_recipe(source: str) -> Path:
    """An existing path, a run's recipe.yaml, else the shipped recipe of that name, with or without .yaml.

    Raises UsageError with the nearest name and the list of names.
    """
    shipped = shipped_recipes()
    named = shipped.get(source.removesuffix(".yaml"))
    # A folder called `verdict`, such as a run, does not hide the recipe of that name.
    path = expand(source)
    if source and os.path.lexists(path) and not (named and path.is_dir()):
        is_run = path.is_dir() and (path / RECIPE).is_file()
        return path / RECIPE if is_run else path
    if named:
        return named
    written = [str(file) for file in path.parent.glob("*.yaml")] if path.suffix else []
    near = difflib.get_close_matches(str(path), written, 1, 0.7)
    near += difflib.get_close_matches(path.stem, shipped, 1, 0.6)
    copy = f"gpt2 recipes copy verdict {shlex.quote(source)}" if path.suffix == ".yaml" else "gpt2 recipes"
    raise UsageError(
        f"{source or 'an empty name'}: no such recipe",
        f"there is no such file; the shipped recipes are {', '.join(shipped) or 'missing'}",
        f"did you mean {near[0]}?" if near else copy,
    )


def read_recipe(path: Path) -> bytes:
    """The file verbatim, unchecked. Raises InputError unless it is a regular file of a recipe's size."""
    return yaml_lines.read_bytes(path, shown_path(path))


def dump_recipe(recipe: Recipe) -> str:
    """YAML with every value of the recipe; `load_recipe` reads it back as an equal recipe."""
    lines = [f"# Every value of one run, defaults included. `gpt2 {recipe.task} THIS_FILE` repeats it."]
    for key, value in in_reading_order(recipe.model_dump()).items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            # None means "not given": model.size beside n_layer would be an error.
            lines += [f"  {name}: {to_yaml(part)}" for name, part in value.items() if part is not None]
        else:
            lines.append(f"{key}: {to_yaml(value)}")
    return "\n".join(lines) + "\n"


def _task_of(document: Document, name: str) -> str:
    """The task, which determines the valid keys."""
    task = document.values.get("task")
    if isinstance(task, str) and task in RECIPES:
        return task
    *first, last = RECIPES
    where, must = f"{name}:{document.line_of(('task',))} task", f"{', '.join(first)} or {last}"
    if "task" not in document.values:
        raise UsageError(f"{where}: is missing", f"it must be {must}", "task: pretrain")
    near = difflib.get_close_matches(str(task), RECIPES, 1, 0.5)
    raise UsageError(
        f"{where}: must be {must}", _quote_value(task), f"did you mean {near[0]}?" if near else ""
    )


def _apply_overrides(overrides: Sequence[str], values: dict[str, Any], keys: RecipeKeys) -> dict[Place, str]:
    """Put each override into `values`; returns the text of the override by key."""
    places: dict[Place, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        where = f"override {override if len(override) <= 100 else override[:97] + '...'}"
        if not equals or not key:
            raise UsageError(f"{where}: is not key=value", fix="for example optim.lr=3e-4")
        if key in keys.sections:
            raise UsageError(
                f"{where}: {key} is a section",
                f"its keys are {keys.siblings(key)}",
                f"did you mean {next(name for name in keys.all if name.startswith(f'{key}.'))}?",
            )
        if key not in keys.all:
            raise keys.unknown(where, key)
        *section, field = place = tuple(key.split("."))
        # A section that is not a mapping stays as it is: validation reports it with its line.
        target = values.setdefault(section[0], {}) if section else values
        if isinstance(target, dict):
            is_empty_text = not text.strip() and keys.takes_text(key)
            target[field] = "" if is_empty_text else yaml_lines.parse_value(text, where)
            places[place] = where
    return places


def _first_error(
    error: ValidationError, document: Document, name: str, overridden: dict[Place, str], keys: RecipeKeys
) -> UsageError:
    """The error to report: an unknown key first, which often causes a missing one; then by line."""
    problems = []
    for entry in error.errors(include_url=False):
        context = entry.get("ctx", {})
        place: Place = (
            (*entry["loc"], *context["field"].split(".")) if entry["type"] == "recipe" else entry["loc"]
        )
        line = document.line_of(place)
        where = overridden.get(place[:2]) or f"{name}:{line} {dotted(place)}"
        if entry["type"] == "extra_forbidden":
            problems.append((0, line, keys.unknown(where, dotted(place))))
            continue
        message = _MESSAGES.get(entry["type"])
        what = message.format(**context) if message else entry["msg"]
        if entry["type"] == "literal_error":
            what = what.replace("'", "")
        got = "" if entry["type"] in ("missing", "recipe") else _quote_value(entry["input"])
        fix = context.get("fix", "")
        if not fix and place[:2] in overridden:
            fix = _example(dotted(place[:2]), entry, keys)
        problems.append((1, line, UsageError(f"{where}: {what}", got, fix)))
    return min(problems, key=lambda problem: problem[:2])[2]


def _example(key: str, error: Any, keys: RecipeKeys) -> str:
    """KEY=VALUE with a value that is allowed: the word that was probably meant, or the default."""
    if error["type"] == "literal_error":
        words = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        meant = {"gpu": "cuda", "yes": "on", "no": "off", "true": "on", "false": "off"}.get(
            str(error["input"]).lower()
        )
        near = [meant] if meant in words else difflib.get_close_matches(str(error["input"]), words, 1, 0.3)
        return f"{key}={(near or words)[0]}"
    default = next(default for name, _, default in recipe_fields(keys.kind) if name == key)
    return "" if default in (..., None) else f"{key}={to_yaml(default)}"


_MESSAGES = {
    "missing": "is missing",
    "recipe": "{must}",
    "token_count": "must be a whole number >= 1, or all",
    "greater_than": "must be > {gt:g}",
    "greater_than_equal": "must be >= {ge:g}",
    "less_than": "must be < {lt:g}",
    "less_than_equal": "must be <= {le:g}",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "string_type": "must be text; put it in quotes",
    "string_unicode": "must be text; this is not Unicode",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "tuple_type": "must be a list, like [text]",
    "names": "must be text, or a list like [a, b]",
    "literal_error": "must be {expected}",
    "model_type": "must be a section of `key: value` lines",
}


def _quote_value(value: Any) -> str:
    text = "empty" if value is None else repr(value)
    return f"it is {text if len(text) <= 60 else text[:57] + '...'}"


def _origins(document: Document, name: str, overridden: dict[Place, str], keys: RecipeKeys) -> dict[str, str]:
    def origin(place: Place) -> str:
        if place in overridden:
            return "override"
        return f"{name}:{document.lines[place]}" if place in document.lines else "default"

    return {key: origin(tuple(key.split("."))) for key in keys.all}


def to_yaml(value: Any) -> str:
    """A value as YAML that all readers parse alike."""
    if isinstance(value, tuple):
        return f"[{', '.join(to_yaml(item) for item in value)}]"
    is_word = isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _AMBIGUOUS
    style = '"' if isinstance(value, str) and not is_word else None
    text: str = yaml.safe_dump(value, default_style=style, allow_unicode=True, width=math.inf)
    return text.partition("\n")[0]


_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_AMBIGUOUS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}  # not text to some YAML readers
