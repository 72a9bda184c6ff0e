"""The relative paths in a recipe whose run is resumed from another folder, or after it was moved.

They were typed in the folder where the run began, which run.json records. A resume looks there first,
then at the same place beside the run, then where it is started.
"""

import glob
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt2cli import paths
from gpt2cli.data.corpora import BUNDLED, CORPORA
from gpt2cli.errors import Gpt2Error, InputError
from gpt2cli.recipe import yaml_lines
from gpt2cli.recipe.data_sections import each_name
from gpt2cli.recipe.schema import SCRATCH, Recipe
from gpt2cli.tokenizer.base import is_made_of_text
from gpt2cli.training.run_dir import RunDir, started_in

INIT = "init"
TOKENIZER = "data.tokenizer"
KEYS = ("data.source", "data.validation_source", "data.test_source", TOKENIZER, INIT)


def absolute_paths(overrides: Sequence[str]) -> list[str]:
    """The overrides that were typed for a resume: a relative path is one from here."""
    return [_absolute(word) for word in overrides]


def moved_paths(run: RunDir, recipe: Recipe, resume: str) -> list[str]:
    """Overrides that name the files of a resumed run's recipe where they are now; none if they lie here.

    `resume` is the command line. Raises InputError that completes it for a path that no longer exists.
    """
    places = list(dict.fromkeys(_places(run)))
    overrides = []
    for key in KEYS:
        values = each_name(_value(recipe, key))
        found = [_moved(key, value, recipe, places, resume) for value in values]
        if found != list(values):
            moved = json.dumps(found if len(found) > 1 else found[0], ensure_ascii=False)
            overrides.append(f"{key}={moved}")
    return overrides


def _moved(key: str, value: str, recipe: Recipe, places: Sequence[Path], resume: str) -> str:
    """Where the file is now, or the value itself if it lies here or is a name."""
    if _is_name(key, value):
        return value
    if (path := _find(key, value, places)) is None:
        if key == TOKENIZER or (key == INIT and recipe.train != "lora"):
            return value  # a resume takes the run's own
        looked = "" if paths.expand(value).is_absolute() else f"looked in {', '.join(map(str, places))}"
        raise InputError(f"{key}: {value} is not there any more", looked, f"{resume} {key}=/new/path")
    here = Path(os.path.abspath(paths.expand(value)))
    is_here = path.absolute() == here or path.absolute() == here.parent / paths.runs() / here.name
    return value if is_here else str(path)


def _places(run: RunDir) -> Iterator[Path]:
    """The folders to which a relative path may belong, the likeliest first."""
    for began_in, run_was in started_in(run):
        yield Path(began_in)
        yield Path(os.path.normpath(run.folder.resolve() / os.path.relpath(began_in, run_was)))
    yield Path.cwd()
    yield run.folder.resolve().parent.parent  # a run of an older version, in its project's ./runs


def _find(key: str, value: str, places: Sequence[Path]) -> Path | None:
    """What `value` names in the first of the places that has it; a model may be a run of that name."""
    path = paths.expand(value)  # joined to a place, an absolute path stays itself
    for place in places:
        if key != INIT and (os.path.lexists(place / path) or glob.glob(str(place / path), recursive=True)):
            return place / path
        for folder in (place / path, place / "runs" / path) if key == INIT else ():
            if paths.is_run(folder) or paths.is_model(folder):
                return folder
    if key == INIT:
        try:
            return paths.find_model(value)
        except InputError:
            return None
    return None


def _is_name(key: str, value: str) -> bool:
    """Whether the value is no path, but the name of a corpus or of a model."""
    if key == INIT:
        return value in (SCRATCH, paths.NEWEST) or paths.canonical_size(value) is not None
    if key == TOKENIZER:
        return value == "gpt2" or is_made_of_text(value)
    return value in CORPORA or value in BUNDLED


def _value(recipe: Recipe, key: str) -> str | tuple[str, ...] | None:
    section, _, name = key.rpartition(".")
    return getattr(getattr(recipe, section) if section else recipe, name, None)


def _absolute(word: str) -> str:
    key, _, text = word.partition("=")
    if key not in KEYS:
        return word
    try:
        value = yaml_lines.parse_value(text, word)
    except Gpt2Error:
        return word  # loading the recipe says so
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        return word
    found = [name if _is_name(key, name) else _find(key, name, [Path.cwd()]) for name in names]
    if all(path == name for path, name in zip(found, names, strict=True)) or None in found:
        return word
    whole = [str(path) if isinstance(path, str) else os.path.abspath(str(path)) for path in found]
    return f"{key}={json.dumps(whole if isinstance(value, list) else whole[0], ensure_ascii=False)}"
