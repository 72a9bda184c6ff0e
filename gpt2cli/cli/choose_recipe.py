"""The recipe that a command line names; and what was meant where it names a text, a table or a run."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from gpt2cli.errors import Gpt2Error, UsageError
from gpt2cli.paths import expand

# The recipe that a first try with one's own data should take, and the endings of such data.
FIRST_RECIPES = {"pretrain": "gpt2-mini", "finetune-classify": "spam-tiny", "finetune-instruct": "instruct"}
_DATA = (".txt", ".md", ".gz", ".parquet", ".jsonl", ".json", ".csv", ".tsv")


def require_recipe(recipe: str, task: str, overrides: Sequence[str] = ()) -> str:
    """The recipe as a name or a path; a run's folder is its recipe.yaml.

    Raises UsageError for a recipe of another `task`, if one is given, and for anything that is not a recipe;
    for data, the error names the command that trains on them.
    """
    from gpt2cli.recipe.loader import find_recipe
    from gpt2cli.recipe.shipped import read_header

    path = expand(recipe)
    if recipe and path.is_file() and path.suffix in _DATA:
        task = task or "pretrain"
        words = ["gpt2", task, FIRST_RECIPES[task], *_data_keys(path, recipe, task), *overrides]
        raise UsageError(
            f"{recipe}: is data, not a recipe",
            "a recipe, a .yaml file, says how to train; data.source names the data",
            " ".join(map(shlex.quote, words)),
        )
    found = find_recipe(recipe)
    theirs = read_header(found).task if found.is_file() else ""
    if theirs in FIRST_RECIPES and task and theirs != task:
        raise wrong_task(recipe, theirs, task)
    return str(Path(recipe) / found.name) if path.is_dir() and found.parent == path else recipe


def wrong_task(recipe: str, theirs: str, asked: str) -> UsageError:
    """The error for a recipe of another command."""
    return UsageError(
        f"{recipe}: is a recipe for {theirs}", f"this is gpt2 {asked}", f"gpt2 {theirs} {shlex.quote(recipe)}"
    )


def _data_keys(path: Path, typed: str, task: str) -> list[str]:
    from gpt2cli.data.tables import read_table

    keys = [f"data.source={typed}"]
    if task != "finetune-classify":
        return keys
    try:
        text, label = read_table(path, ("label", "text")).guess()
    except Gpt2Error:  # training says what is wrong with it
        return keys
    names = {"text": text, "label": label}
    return keys + [f"data.{key}={name}" for key, name in names.items() if name != key]
