"""Help: every command at three widths, with examples that parse; what it takes to print it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from gpt2cli.cli import app
from gpt2cli.cli.examples import EXAMPLES
from gpt2cli.cli.help import first_sentence
from gpt2cli.recipe.loader import load_recipe

Gpt2 = Callable[..., Any]
WIDTHS = (60, 80, 120)


def every_command() -> Iterator[tuple[str, Any]]:
    """("recipes show", its context) of every command and group."""

    def walk(command: Any, context: Any) -> Iterator[tuple[str, Any]]:
        yield context.command_path.partition(" ")[2], context
        for name, one in getattr(command, "commands", {}).items():
            yield from walk(one, one.make_context(name, [], parent=context, resilient_parsing=True))

    top: Any = typer.main.get_command(app.app)
    yield from walk(top, top.make_context("gpt2", [], resilient_parsing=True))


NAMES = [name for name, _ in every_command()]


@pytest.mark.parametrize("width", WIDTHS)
def test_help_wraps_at_words(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def rendered(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        return [context.get_help() for _, context in every_command()]

    for name, narrow, wide in zip(NAMES, rendered(width), rendered(100), strict=True):
        assert narrow.split() == wide.split(), f"{name}: a word is broken"
        plain = narrow.replace("\x1b[1m", "").replace("\x1b[0m", "")
        assert max(map(len, plain.splitlines())) <= width, name
        assert not any(sign in plain for sign in ("…", "<bool>", "(0.8)", "│")), name


def test_help_says_choices_and_defaults(gpt2: Gpt2) -> None:
    said = " ".join(gpt2("generate", "-h").out.split())
    assert said == " ".join(gpt2("generate", "--help").out.split())
    assert "--device auto|cpu|cuda|mps" in said and "--repetition-penalty X" in said
    assert "[default: 0.8]" in said and "-n, --max-new-tokens N" in said and "-h, --help" in said
    assert "{RECIPE}" not in gpt2("pretrain", "-h").out
    groups = [line for line in gpt2().out.splitlines() if line.endswith(":")]
    assert groups == ["Examples:", "Options:", "Get weights:", "Train:", "Use:", "Look and measure:"]


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    top: Any = typer.main.get_command(app.app)
    assert len(top.summaries()) == len(top.commands) >= 14
    for name, _, sentence in top.summaries():
        assert first_sentence(top.commands[name].help) == sentence, name


@pytest.mark.parametrize(
    ("words", "without"),
    [
        ("-h", ("rich", "tempfile", "pydantic", "torch", "gpt2cli.cli.chat", "gpt2cli.cli.runs")),
        (
            "pretrain -h",
            ("rich", "torch", "gpt2cli.cli.launch_ranks", "gpt2cli.cli.chat"),
        ),  # typer itself imports pydantic here
    ],
)
def test_help_imports_little(words: str, without: tuple[str, ...]) -> None:
    program = (
        f"import sys; from gpt2cli.cli.app import run; run({words.split()})\n"
        f"print(*[name for name in {without} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_two_examples_that_parse(name: str) -> None:
    contexts = dict(every_command())
    assert len(EXAMPLES[name]) >= 2
    for example in EXAMPLES[name]:
        assert len(example) <= 58
        program, *words = shlex.split(example.partition(" <")[0])
        context = contexts[""]
        while words and words[0] in getattr(context.command, "commands", {}):
            context = context.command.commands[words[0]].make_context(words[0], [], resilient_parsing=True)
            words = words[1:]
        assert program == "gpt2"
        if "--help" not in words:
            parsed = context.command.make_context(context.info_name, words).params  # raises on a wrong word
            if "overrides" in parsed and parsed.get("recipe", parsed.get("name")) != "my.yaml":
                load_recipe(parsed.get("recipe", parsed.get("name")), parsed["overrides"] or [])


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("recipes")])
def test_examples_of_recipes_run(gpt2: Gpt2, name: str) -> None:
    gpt2("recipes", "copy", "verdict", "my.yaml")
    os.rename("my.yaml", "kept.yaml")
    for example in EXAMPLES[name]:
        if "recipes check my.yaml" in example:
            os.rename("kept.yaml", "my.yaml")
        assert gpt2(*shlex.split(example)[1:]).code == 0, example
