"""`--help` as plain text: examples, then arguments and options in groups, wrapped at words for any width.

Typer's own panels have six columns, which break words in a terminal of 80.
"""

import inspect
import shutil
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from gpt2cli.cli.examples import EXAMPLES
from gpt2cli.ui.console import definitions, wrapped

WIDEST = 100  # columns; longer lines are hard to read
_PLACEHOLDERS = {int: "N", float: "X", Path: "PATH"}


class HelpCommand(TyperCommand):
    """A command whose help is ours."""

    def get_help(self, ctx: Any) -> str:
        return help_text(self, ctx)


class HelpGroup(TyperGroup):
    """A group of commands whose help is ours."""

    def get_help(self, ctx: Any) -> str:
        return help_text(self, ctx)

    def summaries(self) -> Sequence[tuple[str, str, str]]:
        """Name, title of its section, and first sentence of each command."""
        return [(name, "Commands", first_sentence(one.help)) for name, one in self.commands.items()]


def help_text(command: TyperCommand | TyperGroup, ctx: Any) -> str:
    """The help of a command, for the width of the terminal."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    parts = [_wrap(f"Usage: {ctx.command_path} {_usage(command, ctx)}", width, later=7)]
    parts += [_wrap(part, width) for part in inspect.cleandoc(command.help or "").split("\n\n")]
    if examples := EXAMPLES.get(ctx.command_path.partition(" ")[2]):
        parts.append("\n".join([_heading("Examples"), *(f"  {example}" for example in examples)]))
    arguments = [_argument(one, command) for one in command.get_params(ctx) if is_argument(one)]
    sections = {"Arguments": arguments} | _options(command, ctx) | _commands(command)
    parts += [_section(title, rows, width) for title, rows in sections.items() if rows]
    return "\n\n".join(parts)


Row = tuple[str, str]


def _section(title: str, rows: Sequence[Row], width: int) -> str:
    return "\n".join([_heading(title), *definitions(rows, width, 26 if width >= 70 else 18)])


def _options(command: Any, ctx: Any) -> dict[str, list[Row]]:
    """The options under the headings of their groups; those without one come first, --help last."""
    rows: dict[str, list[Row]] = {"Options": []}
    for option in command.get_params(ctx):
        if not is_argument(option) and not option.hidden:
            title = getattr(option, "rich_help_panel", None) or "Options"
            rows.setdefault(title, []).append(_option(option, command))
    return rows


def _commands(command: Any) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    if isinstance(command, HelpGroup):
        for name, title, sentence in command.summaries():
            rows.setdefault(title, []).append((name, sentence))
    return rows


def _argument(argument: Any, command: Any) -> Row:
    several = "..." if argument.nargs == -1 else ""
    return f"{_placeholder(argument, command)}{several}", argument.help or ""


def _option(option: Any, command: Any) -> Row:
    names = sorted(option.opts, key=len)
    term = ", ".join(names) if not option.secondary_opts else " / ".join([*names, *option.secondary_opts])
    if not option.is_flag:
        term += f" {_placeholder(option, command)}"
    default = option.show_default if isinstance(option.show_default, str) else option.default
    is_value = default not in (None, "", ()) and not isinstance(default, bool)
    meaning = option.help or ""
    return term, f"{meaning} [default: {default}]" if is_value else meaning


def _placeholder(parameter: Any, command: Any) -> str:
    """What stands for the value: a metavar, the choices of a Literal, or a letter for the type."""
    if parameter.metavar:
        return str(parameter.metavar)
    kinds = list(_types(command.callback.__annotations__.get(parameter.name)))
    return "|".join(choices_of(parameter, command)) or next(
        (_PLACEHOLDERS[one] for one in kinds if one in _PLACEHOLDERS), "TEXT"
    )


def choices_of(parameter: Any, command: Any) -> list[str]:
    """The words of a Literal; [] for other types."""
    kinds = _types(command.callback.__annotations__.get(parameter.name))
    return [str(choice) for kind in kinds for choice in typing.get_args(kind)]


def _types(annotation: Any) -> Iterator[Any]:
    """The plain types and Literals inside an annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from _types(arguments[0])
    elif origin in (typing.Union, types.UnionType, list):
        for argument in arguments:
            yield from _types(argument)
    elif origin is Literal or annotation is not types.NoneType:
        yield annotation


def _usage(command: Any, ctx: Any) -> str:
    """[OPTIONS] and the arguments; those that may be left out in brackets."""
    pieces = ["[OPTIONS]"]
    for argument in filter(is_argument, command.get_params(ctx)):
        several = "..." if argument.nargs == -1 else ""
        name = f"{_placeholder(argument, command)}{several}"
        pieces.append(name if argument.required else f"[{name}]")
    return " ".join([*pieces, "COMMAND"] if isinstance(command, TyperGroup) else pieces)


def is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def first_sentence(help: str | None) -> str:
    return " ".join(inspect.cleandoc(help or "").split("\n\n")[0].split())


def _heading(title: str) -> str:
    return typer.style(f"{title}:", bold=True)  # without a terminal the style is left out


def _wrap(text: str, width: int, later: int = 0) -> str:
    return "\n".join(wrapped(" ".join(text.split()), width, later=later))
