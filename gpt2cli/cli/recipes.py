"""`gpt2 recipes`: list, show, copy and check recipes."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli.choose_recipe import require_recipe
from gpt2cli.cli.help import HelpCommand, HelpGroup
from gpt2cli.cli.options import JsonOption
from gpt2cli.errors import UsageError, counted
from gpt2cli.paths import expand
from gpt2cli.ui.console import aligned, definitions, err, out, printable, say

if TYPE_CHECKING:
    from gpt2cli.recipe.loader import LoadedRecipe

app = typer.Typer(cls=HelpGroup, help="List, show, explain, copy and check recipes.", no_args_is_help=False)

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a path.")]


@app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List, show, explain, copy and check recipes."""
    if context.invoked_subcommand is None:
        _print_list()


@app.command("list", cls=HelpCommand)
def list_(as_json: JsonOption = False) -> None:
    """List the recipes that come with gpt2."""
    if as_json:
        _print_json_list()
    else:
        _print_list()


@app.command(cls=HelpCommand)
def show(name: Name) -> None:
    """Print a recipe."""
    from gpt2cli.recipe.loader import find_recipe, read_recipe

    content = read_recipe(find_recipe(name))
    if out().is_terminal:
        out().print(printable(content.decode("utf-8", "replace")), end="")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


@app.command(cls=HelpCommand)
def keys(
    which: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION", help="Sections, keys or tasks to show; by default all keys."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain the keys of recipes: type, default, meaning."""
    from gpt2cli.recipe.key_table import all_recipe_keys
    from gpt2cli.recipe.schema import RECIPES

    found = all_recipe_keys()
    tasks = [word for word in which or () if word in RECIPES]
    sections = [word for word in which or () if word not in RECIPES]
    for word in sections:
        if not any(one.key == word or one.key.startswith(f"{word}.") for one in found):
            known = [name for one in found for name in (one.key.partition(".")[0], one.key)]
            raise _unknown_key(word, [*known, *RECIPES])
    shown = [
        one
        for one in found
        if (not tasks or set(tasks) & set(one.tasks))
        and (not sections or any(one.key == word or one.key.startswith(f"{word}.") for word in sections))
    ]
    if as_json:
        out().print(json.dumps([asdict(one) for one in shown], indent=2))
        return
    rows = [(one.key, one.default or "required") for one in shown]
    meanings = [
        f"{one.meaning} [{one.type}]"
        + (f" ({', '.join(one.tasks)})" if len(one.tasks) < len(RECIPES) else "")
        for one in shown
    ]
    _print_definitions(list(zip(aligned(rows), meanings, strict=True)), longest=36)


def _unknown_key(word: str, known: Sequence[str]) -> UsageError:
    from difflib import get_close_matches

    last_words = {name.rpartition(".")[2]: name for name in known}
    near = (
        [last_words[word]]
        if word in last_words
        else get_close_matches(word, known, 1, 0.5)
        or [last_words[one] for one in get_close_matches(word.rpartition(".")[2], last_words, 1, 0.6)]
    )
    sections = ", ".join(dict.fromkeys(name for name in known if "." not in name))
    return UsageError(
        f"{word}: no such section or key",
        f"there are {sections}",
        f"gpt2 recipes keys {near[0]}" if near else "gpt2 recipes keys",
    )


@app.command(cls=HelpCommand)
def copy(
    name: Name,
    destination: Annotated[str, typer.Argument(metavar="DEST", help="A file, or an existing folder.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Copy a recipe to a file to edit, with a comment beside each key."""
    from gpt2cli import files
    from gpt2cli.recipe.key_table import with_comments
    from gpt2cli.recipe.loader import find_recipe, read_recipe

    source, target = find_recipe(name), expand(destination)
    if target.is_dir():
        target = target / source.with_suffix(".yaml").name
    if target.is_symlink() or target.exists():
        if not target.is_file():
            raise UsageError(f"{target}: is not a regular file", "", "name a file")
        if not force:
            raise UsageError(f"{target}: already exists", "", f"gpt2 recipes copy {name} {target} --force")
    content = with_comments(read_recipe(source), name)
    files.require_writable(target.parent)
    files.write_file(target, content)
    say(f"wrote {target}; check your changes with: gpt2 recipes check {target}")


@app.command(cls=HelpCommand)
def check(
    name: Name,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values to override, such as optim.lr=3e-4."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Validate a recipe and its overrides without training. Exits with 2 on the first error."""
    from gpt2cli.paths import shown_path
    from gpt2cli.recipe.loader import load_recipe

    loaded = load_recipe(require_recipe(name, "", overrides or ()), overrides or [])
    if as_json:
        values = {"recipe": loaded.recipe.model_dump(), "origins": loaded.origins, "path": str(loaded.path)}
        out().print(json.dumps(values, indent=2))
    else:
        out().print(printable(f"ok {shown_path(loaded.path)}: {_summary(loaded)}"))


def _print_list() -> None:
    from gpt2cli.recipe.shipped import read_header, shipped_recipes

    found = {name: read_header(path) for name, path in shipped_recipes().items()}
    terms = aligned((name, one.task, one.time) for name, one in found.items())
    titles = [one.title for one in found.values()]
    _print_definitions(list(zip(terms, titles, strict=True)), longest=0)
    if err().is_terminal:
        say("time: on two CPU cores or one GPU, ~ is an estimate; start one: gpt2 pretrain verdict", "faint")


def _print_definitions(rows: Sequence[tuple[str, str]], longest: int) -> None:
    """Wrapped to a terminal's width; one line per row in a pipe."""
    console = out()
    for line in definitions(rows, console.width if console.is_terminal else None, longest):
        console.print(printable(line))


def _print_json_list() -> None:
    from gpt2cli.recipe.shipped import read_header, shipped_recipes

    entries = [
        {"name": name, **asdict(read_header(path)), "path": str(path)}
        for name, path in shipped_recipes().items()
    ]
    out().print(json.dumps(entries, indent=2))


def _summary(loaded: "LoadedRecipe") -> str:
    """A one-line summary of the run."""
    from gpt2cli.recipe.data_sections import each_name
    from gpt2cli.recipe.schema import SCRATCH, PretrainRecipe

    recipe, optim = loaded.recipe, loaded.recipe.optim
    source = ", ".join(each_name(recipe.data.source))
    n_rows = f"{recipe.batch.micro_batch}x{recipe.batch.accumulation}"
    n_overrides = sum(origin == "override" for origin in loaded.origins.values())
    if isinstance(recipe, PretrainRecipe) and recipe.init == SCRATCH:
        config = recipe.model.config(vocab_size=1)
        shape = f"{config.n_layer} blocks, {config.n_head} heads, width {config.n_embd}"
        what = [
            f"{recipe.data.tokenizer or ''} tokens of {source}".lstrip(),
            f"{recipe.model.size} ({shape})" if recipe.model.size else shape,
            f"{counted(optim.steps, 'step')} of {recipe.batch.rows_per_step * config.n_positions:,} tokens"
            f" ({n_rows} sequences of {config.n_positions})",
        ]
    else:
        what = [
            source,
            f"from {recipe.init}, training {recipe.train}",
            f"{counted(optim.steps, 'step')} of {n_rows} sequences",
        ]
    parts = [
        recipe.task,
        *what,
        f"lr {optim.lr:g} to {optim.min_lr:g} after {optim.warmup_steps:,} warmup steps",
        f"seed {recipe.seed}",
    ]
    return "; ".join(parts) + (f"; {n_overrides} overridden" if n_overrides else "")
