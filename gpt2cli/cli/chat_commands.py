"""The slash commands of `gpt2 chat`: their table, and the parser that turns a line into a call."""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass

from gpt2cli.errors import UsageError
from gpt2cli.ui.console import shortened

SAY = "say"  # the call of a line without a command
PREFIXES = ("/", "!")  # begin a command; doubled, a message that begins with one
FORCE = "--force"
LONGEST = 40  # characters of a typed word in a message


@dataclass(frozen=True)
class Command:
    name: str
    argument: str  # as the help shows it; "" takes none, brackets mean optional
    help: str

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.argument}".rstrip()


@dataclass(frozen=True)
class Call:
    """One line: the name of a command, or SAY, and its argument."""

    name: str
    argument: str = ""


COMMANDS = (
    Command("help", "", "list these commands"),
    Command("clear", "", "forget all turns, but not the system prompt"),
    Command("undo", "", "forget the last question and its reply"),
    Command("retry", "", "ask the last question again, for another reply"),
    Command("continue", "", "let a model without a chat template go on, without new text"),
    Command("history", "[N|all]", "how many previous turns the model is shown; 0 for none"),
    Command("set", "NAME=VALUE", "change a setting, such as top_k=20 or temperature=0.7"),
    Command("show", "", "show the model, the settings and how full the context is"),
    Command("tokens", "[TEXT]", "the prompt of the last reply, or of one to TEXT, as tokens with their ids"),
    Command("system", "[TEXT]", "set the system prompt; without TEXT show it, with - remove it"),
    Command("save", f"FILE [{FORCE}]", "write the conversation to a file"),
    Command("load", "FILE", "continue a saved conversation"),
    Command("exit", "", "leave the chat, like Ctrl-D"),
)
_BY_NAME = {command.name: command for command in COMMANDS}
# Other programs' words for the same, for hints only.
_SYNONYMS = {
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
    """The call that a line makes. Raises UsageError for an unknown command or a wrong argument."""
    if not line.startswith(PREFIXES):
        return Call(SAY, line)
    if line[1:2] == line[0]:
        return Call(SAY, line[1:])
    word, rest = (*line[1:].split(None, 1), "", "")[:2]
    command, argument = _BY_NAME.get(word.lower()), rest.strip()
    if command is None:
        raise _unknown(line[0], word)
    if argument and not command.argument:
        raise UsageError(
            f"/{command.name} takes no argument", f"there is '{shortened(argument, LONGEST)}'", command.usage
        )
    if not argument and command.argument and not command.argument.startswith("["):
        missing = command.argument.split()[0]
        raise UsageError(f"/{command.name}: {missing} is missing", command.help, command.usage)
    return Call(command.name, argument)


def parse_setting(argument: str, names: Collection[str]) -> tuple[str, str]:
    """Name and value of "top_k=20", also typed as "top-k = 20" or "top_k 20".

    Raises UsageError for a name that is not among `names`. The value is not checked here.
    """
    typed, _, value = re.sub(r"\s*=\s*|\s+", "=", argument, count=1).partition("=")
    name = typed.lstrip("-").replace("-", "_").lower()
    if name not in names:
        hint = _nearest(name, names)
        raise UsageError(
            f"there is no setting '{shortened(typed, LONGEST)}'",
            f"they are {', '.join(names)}",
            f"/set {hint}={shortened(value, LONGEST) or 'VALUE'}" if hint else "/show",
        )
    if not value:
        raise UsageError(f"{name} has no value", "", f"/set {name}=VALUE")
    return name, value


def parse_history(text: str, name: str) -> int | None:
    """The number of turns; None for all. Raises UsageError that names the option or the command."""
    if text.lower() == "all":
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(
            f"{name} is '{shortened(text, LONGEST)}'",
            "it is a number of previous turns, or all",
            f"{name} all",
        )
    return int(text)


def parse_save(argument: str) -> tuple[str, bool]:
    """The name of the file, and whether an existing one may be replaced."""
    name = argument.removesuffix(FORCE)
    force = name != argument and (not name or name[-1].isspace())
    name = (name if force else argument).strip()
    if not name:
        raise UsageError("/save: FILE is missing", _BY_NAME["save"].help, _BY_NAME["save"].usage)
    return name, force


def _unknown(mark: str, word: str) -> UsageError:
    hint = _SYNONYMS.get(word.lower()) or _nearest(word.lower(), _BY_NAME)
    return UsageError(
        f"there is no command '{shortened(mark + word, LONGEST)}'",
        f"did you mean /{hint}?" if hint else f"to say it to the model, begin with {mark}{mark}",
        "/help lists the commands",
    )


def _nearest(word: str, names: Collection[str]) -> str:
    """The name that was probably meant, or ""."""
    begun = [name for name in names if word and name.startswith(word)]
    close = difflib.get_close_matches(word[:40], names, n=1)
    return begun[0] if len(begun) == 1 else (close[0] if close else "")
