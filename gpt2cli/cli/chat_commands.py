"""Owns the slash commands of `gpt2 chat`: the table of them, and how a typed line is read by it.

Text in, a call out. What a command does is `session.py`'s business, how it looks `ui/chatting.py`'s.
"""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass

from gpt2cli.errors import UsageError

SAY = "say"  # the call that a line without a command is
MARKS = ("/", "!")  # what begins a command; twice, and the line is a message that begins with one
FORCE = "--force"


@dataclass(frozen=True)
class Command:
    name: str
    argument: str  # as the help shows it; "" takes none, in brackets it may be left out
    help: str

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.argument}".rstrip()


@dataclass(frozen=True)
class Call:
    """One line: the name of a command, or SAY, and what stands behind it."""

    name: str
    argument: str = ""


COMMANDS = (
    Command("help", "", "list these commands"),
    Command("clear", "", "forget all turns; the system text stays"),
    Command("undo", "", "forget the last question and its reply"),
    Command("retry", "", "ask the last question again, for another reply"),
    Command("continue", "", "let a model without a template go on, with no new text"),
    Command("set", "NAME=VALUE", "change a setting, such as top_k=20 or temperature=0.7"),
    Command("show", "", "show the model, the settings and how full the context is"),
    Command("system", "[TEXT]", "say who the model is to be; without TEXT show it, - takes it away"),
    Command("save", f"FILE [{FORCE}]", "write the conversation to a file"),
    Command("load", "FILE", "go on with a conversation that was saved"),
    Command("exit", "", "end the program, as Ctrl-D does"),
)
_BY_NAME = {command.name: command for command in COMMANDS}
# Other programs' words for the same: only hints are made of them.
_MEANT = {
    "quit": "exit",
    "bye": "exit",
    "q": "exit",
    "?": "help",
    "h": "help",
    "reset": "clear",
    "redo": "retry",
    "more": "continue",
}


def parse(line: str) -> Call:
    """What a line asks for. Raises UsageError for a command that is not there or is not used so."""
    if not line.startswith(MARKS):
        return Call(SAY, line)
    if line[1:2] == line[0]:
        return Call(SAY, line[1:])
    word, rest = (*line[1:].split(None, 1), "", "")[:2]
    command, argument = _BY_NAME.get(word.lower()), rest.strip()
    if command is None:
        raise _unknown(line[0], word)
    if argument and not command.argument:
        raise UsageError(
            f"/{command.name} takes nothing after it", f"there is '{_short(argument)}'", command.usage
        )
    if not argument and command.argument and not command.argument.startswith("["):
        missing = command.argument.split()[0]
        raise UsageError(f"/{command.name}: {missing} is missing", command.help, command.usage)
    return Call(command.name, argument)


def parse_setting(argument: str, names: Collection[str]) -> tuple[str, str]:
    """Name and value of "top_k=20"; also of "top-k = 20" and "top_k 20", because people type them.

    Raises UsageError for a name that is none of `names`. What the value means is not known here.
    """
    typed, _, value = re.sub(r"\s*=\s*|\s+", "=", argument, count=1).partition("=")
    name = typed.lstrip("-").replace("-", "_").lower()
    if name not in names:
        hint = _nearest(name, names)
        raise UsageError(
            f"there is no setting '{_short(typed)}'",
            f"they are {', '.join(names)}",
            f"/set {hint}={_short(value) or 'VALUE'}" if hint else "/show",
        )
    if not value:
        raise UsageError(f"{name} is given no value", "", f"/set {name}=VALUE")
    return name, value


def parse_save(argument: str) -> tuple[str, bool]:
    """The file's name, and whether a file of that name may be replaced."""
    name = argument.removesuffix(FORCE)
    force = name != argument and (not name or name[-1].isspace())
    name = (name if force else argument).strip()
    if not name:
        raise UsageError("/save: FILE is missing", _BY_NAME["save"].help, _BY_NAME["save"].usage)
    return name, force


def _unknown(mark: str, word: str) -> UsageError:
    hint = _MEANT.get(word.lower()) or _nearest(word.lower(), _BY_NAME)
    return UsageError(
        f"there is no command '{_short(mark + word)}'",
        f"did you mean /{hint}?" if hint else f"to say it to the model, begin with {mark}{mark}",
        "/help lists the commands",
    )


def _nearest(word: str, names: Collection[str]) -> str:
    """The name that was probably meant, or ""."""
    begun = [name for name in names if word and name.startswith(word)]
    close = difflib.get_close_matches(word[:40], names, n=1)
    return begun[0] if len(begun) == 1 else (close[0] if close else "")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
