"""`gpt2 recipes`: list, show, copy and check recipes."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli.options import JsonOption
from gpt2cli.errors import UsageError
from gpt2cli.paths import expand
from gpt2cli.ui.console import aligned, err, out, printable, say

if TYPE_CHECKING:
    from gpt2cli.recipe.loader import LoadedRecipe

app = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=False)

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a path.")]


@app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List, show, copy and check recipes."""
    if context.invoked_subcommand is None:
        _print_list()


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the recipes that come with gpt2."""
    if as_json:
        _print_json_list()
    else:
        _print_list()


@app.command()
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


@app.command()
def copy(
    name: Name,
    destination: Annotated[str, typer.Argument(metavar="DEST", help="A file, or an existing folder.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Copy a recipe to a file to edit."""
    from gpt2cli import files
    from gpt2cli.recipe.loader import find_recipe, read_recipe

    source, target = find_recipe(name), expand(destination)
    if target.is_dir():
        target = target / source.with_suffix(".yaml").name
    if target.is_symlink() or target.exists():
        if not target.is_file():
            raise UsageError(f"{target}: is not a regular file", "", "name a file")
        if not force:
            raise UsageError(f"{target}: already exists", "", f"gpt2 recipes copy {name} {target} --force")
    content = read_recipe(source)
    files.require_writable(target.parent)
    files.write_file(target, content)
    say(f"wrote {target}; check your changes with: gpt2 recipes check {target}")


@app.command()
def check(
    name: Name,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values to override, such as optim.lr=3e-4."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Validate a recipe and its overrides without training. Exits with 2 on the first error."""
    from gpt2cli.recipe.loader import display_path, load_recipe

    loaded = load_recipe(name, overrides or [])
    if as_json:
        values = {"recipe": loaded.recipe.model_dump(), "origins": loaded.origins, "path": str(loaded.path)}
        out().print(json.dumps(values, indent=2))
    else:
        out().print(printable(f"ok {display_path(loaded.path)}: {_summary(loaded)}"))


def _print_list() -> None:
    from gpt2cli.recipe.loader import recipe_title, shipped_recipes

    for line in aligned((name, printable(recipe_title(path))) for name, path in shipped_recipes().items()):
        out().print(line)
    if err().is_terminal:
        say("start one with: gpt2 TASK NAME, for example gpt2 pretrain verdict", "faint")


def _print_json_list() -> None:
    from gpt2cli.recipe.loader import recipe_title, shipped_recipes

    entries = [
        {"name": name, "title": recipe_title(path), "path": str(path)}
        for name, path in shipped_recipes().items()
    ]
    out().print(json.dumps(entries, indent=2))


def _summary(loaded: "LoadedRecipe") -> str:
    """A one-line summary of the run."""
    from gpt2cli.recipe.schema import SCRATCH, PretrainRecipe

    recipe, optim = loaded.recipe, loaded.recipe.optim
    n_rows = f"{recipe.batch.micro_batch}x{recipe.batch.accumulation}"
    n_overrides = sum(origin == "override" for origin in loaded.origins.values())
    if isinstance(recipe, PretrainRecipe) and recipe.init == SCRATCH:
        config = recipe.model.config(vocab_size=1)
        shape = f"{config.n_layer} blocks, {config.n_head} heads, width {config.n_embd}"
        what = [
            f"{recipe.data.tokenizer or ''} tokens of {recipe.data.source}".lstrip(),
            f"{recipe.model.size} ({shape})" if recipe.model.size else shape,
            f"{optim.steps:,} steps of {recipe.batch.rows_per_step * config.n_positions:,} tokens"
            f" ({n_rows} sequences of {config.n_positions})",
        ]
    else:
        what = [
            recipe.data.source,
            f"from {recipe.init}, training {recipe.train}",
            f"{optim.steps:,} steps of {n_rows} sequences",
        ]
    parts = [
        recipe.task,
        *what,
        f"lr {optim.lr:g} to {optim.min_lr:g} after {optim.warmup_steps:,} warmup steps",
        f"seed {recipe.seed}",
    ]
    return "; ".join(parts) + (f"; {n_overrides} overridden" if n_overrides else "")
