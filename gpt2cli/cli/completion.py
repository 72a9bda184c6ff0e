"""Shell completion: of commands and options, and of the names of recipes, runs, models and recipe keys.

`gpt2 --install-completion` installs Typer's script for bash, zsh or fish, which calls this program with
_GPT2_COMPLETE set. It is answered here: Typer's own answer converts the words first, which imports
pydantic, and a key press should not wait for that.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from gpt2cli import paths
from gpt2cli.cli.help import choices_of, first_sentence, is_argument
from gpt2cli.errors import UsageError
from gpt2cli.recipe.schema_source import source_keys
from gpt2cli.recipe.shipped import read_header, shipped_recipes
from gpt2cli.ui.console import printable

VARIABLE = "_GPT2_COMPLETE"
RECIPE_TASKS = ("pretrain", "finetune-classify", "finetune-instruct")
Candidate = tuple[str, str]  # a word, and what it means


def answer(app: typer.Typer) -> int:
    """Print the candidates for the word at the cursor in the shell's form; returns the exit code."""
    instruction, _, shell = os.environ[VARIABLE].partition("_")
    if instruction != "complete" or shell not in _FORMS:
        typer.echo(f"{VARIABLE}={os.environ[VARIABLE]} is not known", err=True)
        return 2
    words, last = _bash_words() if shell == "bash" else _typer_words()
    found = [(word, printable(help)) for word, help in candidates(app, words, last)]
    if shell == "fish" and os.environ.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        return 0 if found else 1  # 1: fish completes files
    typer.echo(_FORMS[shell](found))
    return 0


def candidates(app: typer.Typer, words: Sequence[str], last: str) -> list[Candidate]:
    """The words that may stand for `last`, after the complete `words`; none where a file should."""
    command: Any = typer.main.get_command(app)
    path, rest = list[str](), list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest[0]]
        path.append(rest.pop(0))
    options = {name: one for one in command.params if not is_argument(one) for name in one.opts}
    takes_value = [name for name, one in options.items() if not one.is_flag]
    if rest and rest[-1] in takes_value:
        return _beginning(last, _values(options[rest[-1]], command, path, rest))
    if last.startswith("-"):
        named = [(name, first_sentence(one.help)) for name, one in options.items() if name.startswith("--")]
        return _beginning(last, [*named, ("--help", "Show this message and exit.")])
    if hasattr(command, "commands"):
        return _beginning(last, [(name, sentence) for name, _, sentence in command.summaries()])
    given = [
        word
        for n, word in enumerate(rest)
        if not word.startswith("-") and not (n and rest[n - 1] in takes_value)
    ]
    arguments = [one for one in command.params if is_argument(one)]
    if not arguments or (len(given) >= len(arguments) and arguments[-1].nargs != -1):
        return []
    return _beginning(
        last, _values(arguments[min(len(given), len(arguments) - 1)], command, path, given), given
    )


def _values(parameter: Any, command: Any, path: Sequence[str], given: Sequence[str]) -> list[Candidate]:
    match parameter.metavar:
        case "RECIPE":
            return _recipes(path[-1])
        case "KEY=VALUE":
            return _keys(path[-1], given[0] if given else "")
        case "MODEL" | "TARGET" | "ADAPTER":
            return [(str(name), "") for name in model_names()]
        case "RUN":
            return [(path.name, "") for path in _folders(paths.runs())]
    if path[-1] == "download" and is_argument(parameter):
        return [(size, "") for size in dict.fromkeys(paths.ALIASES.values())]
    if parameter.name == "name":
        return [(path.name, "") for path in _folders(paths.runs())]
    return [(choice, "") for choice in choices_of(parameter, command)]


def model_names() -> Iterator[str]:
    """Runs as paths, and models by their names, as every command takes them."""
    yield from (str(path) for path in _folders(paths.runs()))
    if paths.has_home():
        yield from (path.name for path in _folders(paths.models()))


def _folders(root: Path) -> list[Path]:
    if not os.path.isdir(root):
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _recipes(command: str) -> list[Candidate]:
    headers = {name: read_header(path) for name, path in shipped_recipes().items()}
    shown = [
        (name, one.title)
        for name, one in headers.items()
        if command not in RECIPE_TASKS or one.task == command
    ]
    return shown + [(path.name, "") for path in sorted(Path.cwd().glob("*.yaml"))]


def _keys(command: str, recipe: str) -> list[Candidate]:
    """`key=`, or `key=value` for each value of a key that takes certain words."""
    task = command
    if command not in RECIPE_TASKS:
        path = shipped_recipes().get(recipe, paths.expand(recipe))
        task = read_header(path).task if path.is_file() else "pretrain"
    found: list[Candidate] = []
    for key in source_keys(task):
        words = key.choices if key.choices else (*model_names(),) if key.name == "init" else ("",)
        found += [(f"{key.name}={word}", key.meaning) for word in words]
    return [one for one in found if not one[0].startswith("task=")]


def _beginning(last: str, found: Sequence[Candidate], given: Sequence[str] = ()) -> list[Candidate]:
    """Those that begin with `last`. Bash takes `key=word` for three words and wants the last alone."""
    words = [*given, last]
    if "=" in words[-2:] and VARIABLE in os.environ and os.environ[VARIABLE].endswith("bash"):
        at = len(words) - 1 - words[::-1].index("=")
        begin, typed = f"{words[at - 1]}=", "".join(words[at + 1 :])
        return [(word.removeprefix(begin), help) for word, help in found if word.startswith(begin + typed)]
    return [one for one in found if one[0].startswith(last)]


def _bash_words() -> tuple[list[str], str]:
    words, at = _split(os.environ.get("COMP_WORDS", "")), int(os.environ.get("COMP_CWORD", "0"))
    return words[1:at], words[at] if at < len(words) else ""


def _typer_words() -> tuple[list[str], str]:
    line = os.environ.get("_TYPER_COMPLETE_ARGS", "")
    words = _split(line)[1:]
    return (words[:-1], words[-1]) if words and not line.endswith(" ") else (words, "")


def _split(line: str) -> list[str]:
    """The words of a line that may end inside of a quote."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words = list[str]()
    try:
        words.extend(lexer)
    except ValueError:
        words.append(lexer.token)
    return words


def _for_bash(found: Sequence[Candidate]) -> str:
    return "\n".join(word for word, _ in found)


def _for_fish(found: Sequence[Candidate]) -> str:
    return "\n".join(f"{word}\t{help}" if help else word for word, help in found)


def _for_zsh(found: Sequence[Candidate]) -> str:
    def quoted(text: str) -> str:
        for sign, escape in (('"', '""'), ("'", "''"), ("$", "\\$"), ("`", "\\`"), (":", r"\\:")):
            text = text.replace(sign, escape)
        return f'"{text}"'

    rows = [quoted(word) + (f":{quoted(help)}" if help else "") for word, help in found]
    return f"_arguments '*: :(({chr(10).join(rows)}))'" if rows else "_files"


_FORMS = {"bash": _for_bash, "zsh": _for_zsh, "fish": _for_fish}


def install(value: bool) -> None:
    """For --install-completion."""
    if value:
        from typer import _completion_shared as scripts

        shell, path = scripts.install(shell=_shell(), prog_name="gpt2", complete_var=VARIABLE)
        typer.echo(f"completion for {shell} is installed in {path}; it works in a new terminal", err=True)
        raise typer.Exit()


def show(value: bool) -> None:
    """For --show-completion."""
    if value:
        from typer import _completion_shared as scripts

        typer.echo(scripts.get_completion_script(prog_name="gpt2", complete_var=VARIABLE, shell=_shell()))
        raise typer.Exit()


def _shell() -> str:
    """The shell that this runs in; if that is unknown, as in a script, the one in $SHELL."""
    from typer import _completion_shared as scripts

    shell = scripts._get_shell_name()
    if shell not in _FORMS:
        shell = Path(os.environ.get("SHELL", "")).name
    if shell not in _FORMS:
        raise UsageError(
            "your shell is not known",
            "there is completion for bash, zsh and fish",
            "SHELL=bash gpt2 --show-completion",
        )
    return shell
