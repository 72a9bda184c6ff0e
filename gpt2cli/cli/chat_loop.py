"""The loop of `gpt2 chat`: each line is answered, or run as a slash command, until the end of input."""

import contextlib
import os
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, cast

from gpt2cli.cli import chat_commands
from gpt2cli.cli.failures import explain
from gpt2cli.cli.options import warn_of_control_tokens
from gpt2cli.cli.signals import install
from gpt2cli.errors import DivergedError, Gpt2Error, InputError, UsageError, counted
from gpt2cli.jinja_template import JinjaTemplate
from gpt2cli.paths import expand
from gpt2cli.ui.chat import (
    ALONE,
    LONGEST_NAME,
    ReplyView,
    describe_history,
    note,
    print_mode,
    print_model,
    quoted,
    show_failure,
    show_pairs,
    show_tokens,
)
from gpt2cli.ui.console import err, print_error

if TYPE_CHECKING:
    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.generation.chat_session import ChatEvent, Conversation, Stop

LONGEST_MESSAGE = 1 << 20  # bytes; no context is that long


class Signals:
    """Ctrl-C, SIGTERM and SIGHUP during a command or a reply: they ask it to end.

    During prefill there is nothing to keep and the wait may be long: then they raise at once.
    """

    def __init__(self) -> None:
        self.received: set[int] = set()
        self.is_prefill = False

    def __enter__(self) -> "Signals":
        self._undo = install(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo()

    def have_come(self) -> bool:
        return bool(self.received)

    def obey(self, is_terminal: bool) -> None:
        """Afterwards: at a terminal Ctrl-C has only ended the reply; everything else ends the program."""
        for number in self.received - {signal.SIGINT}:
            raise SystemExit(128 + number)
        if self.received and not is_terminal:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_urgent = self.is_prefill or (number == signal.SIGTERM and number in self.received)
        self.received.add(number)
        self.is_prefill = False  # a second exception would disturb the handling of the first
        if is_urgent:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


_FAREWELLS = ("exit", "quit")  # typed alone at a terminal, as in other programs


@dataclass
class ChatLoop:
    """A conversation, and what each line does to it."""

    conversation: "Conversation"
    loaded: "LoadedModel"
    is_terminal: bool  # a user types and reads
    as_json: bool
    is_alone: bool = False  # each message is answered alone, because the model was trained so
    control_tokens: bool = False  # read as single ids

    def greet(self, keys: str) -> None:
        if self.is_terminal:
            print_model(self.loaded)
        if self.is_terminal or self.conversation.template is None:
            print_mode(self.conversation.template)
        if self.is_alone:
            note(ALONE, "")
        if self.is_terminal:
            note(f"/help lists the commands; {keys}")

    def run(self, read: "Callable[[], str]") -> int:
        """Runs until /exit, or EOFError from `read`, which gives the next message.

        Through a pipe the first error sets the exit code.
        """
        code, hint = 0, "Ctrl-D or /exit leaves"
        while True:
            is_turn = True
            try:
                line = read()
                if not line.strip():
                    continue
                is_turn = False
                call = chat_commands.parse(line)
                if call.name == "exit" or (self.is_terminal and line.strip().lower() in _FAREWELLS):
                    break
                is_turn = call.name in _TURNS
                with Signals() as signals:
                    try:
                        self._do(call, signals)
                    finally:  # also where it has failed
                        signals.obey(self.is_terminal)
            except EOFError:
                break
            except KeyboardInterrupt:
                if not self.is_terminal:
                    raise
                note(hint)
                hint = ""
            except Gpt2Error as error:
                if is_turn and self.as_json:
                    show_failure(len(self.conversation.exchanges) + 1, error)
                if isinstance(error, DivergedError):  # every further reply would too
                    raise
                print_error(error)
                code = code or error.exit_code
        return 0 if self.is_terminal else code

    def _do(self, call: chat_commands.Call, signals: Signals) -> None:
        if call.name in _TURNS:
            self._answer(_TURNS[call.name](self, call.argument, signals.have_come), signals)
        else:
            _DO[call.name](self, call.argument)

    def _say(self, text: str, stop: "Stop") -> "Iterator[ChatEvent]":
        if len(text.encode("utf-8", "surrogatepass")) > LONGEST_MESSAGE:
            raise too_long("the message")
        if not self.control_tokens:
            own = isinstance(self.conversation.template, JinjaTemplate)
            warn_of_control_tokens(text, self.loaded.tokenizer, own)
        return self.conversation.say(text, stop)

    def _retry(self, argument: str, stop: "Stop") -> "Iterator[ChatEvent]":
        return self.conversation.retry(stop)

    def _continue(self, argument: str, stop: "Stop") -> "Iterator[ChatEvent]":
        if self.conversation.template:
            raise UsageError(
                "/continue: this model has a chat template", "only a model without one continues text"
            )
        return self.conversation.say("", stop)

    def _answer(self, ask: "Iterator[ChatEvent]", signals: Signals) -> None:
        from gpt2cli.generation.chat_session import ReplyDone, TextDelta
        from gpt2cli.ui.spinner import waiting

        view = ReplyView(self.conversation.settings["seed"], self.is_terminal, self.as_json)
        # Closed at once, whatever happens: the conversation waits for the end of a reply.
        events, before = cast("Generator[ChatEvent, None, None]", ask), self.conversation.exchanges
        try:
            with contextlib.closing(events), waiting(err(), "prefill") as end_waiting:
                signals.is_prefill = True
                for event in events:
                    signals.is_prefill = False
                    end_waiting()
                    view.show(event)
                    signals.is_prefill = not isinstance(event, TextDelta | ReplyDone)
        except BaseException as error:
            signals.is_prefill = False
            view.break_off()
            if not (self.is_terminal and isinstance(error, KeyboardInterrupt)):
                raise
            view.say_stopped(self.conversation.exchanges != before)

    def _help(self, argument: str) -> None:
        show_pairs((command.usage, command.help) for command in chat_commands.COMMANDS)
        note("! works like /; double it to begin a message with one")

    def _clear(self, argument: str) -> None:
        self.conversation.clear()
        note("all turns are forgotten")

    def _undo(self, argument: str) -> None:
        note(f"forgotten: {quoted(self.conversation.undo().question)}")

    def _set(self, argument: str) -> None:
        name, value = chat_commands.parse_setting(argument, self.conversation.settings)
        try:
            self.conversation.set(name, value)
        except UsageError as error:
            raise UsageError(f"{name} is {value[:40]}", error.why, f"/set {name}=VALUE") from None
        note(f"{name} is {self.conversation.settings[name]}")

    def _show(self, argument: str) -> None:
        conversation = self.conversation
        n_turns, n_out = len(conversation.exchanges), conversation.n_dropped
        out = f", of which {n_out} ha{'s' if n_out == 1 else 've'} left the context" if n_out else ""
        template = conversation.template
        show_pairs(
            {
                "model": str(self.loaded.folder),
                "template": template.name if template else "none: it continues text",
                "system": "none" if conversation.system is None else conversation.system,
                "history": describe_history(conversation.history),
                **{name: str(value) for name, value in conversation.settings.items()},
                "turns": f"{n_turns}{out}",
                "context": f"{len(conversation.prefix.ids)} of {self.loaded.config.n_positions} tokens",
            }.items()
        )

    def _system(self, argument: str) -> None:
        if argument:
            self.conversation.set_system(None if argument == "-" else argument)
        system = self.conversation.system
        note("there is no system prompt" if system is None else f"system prompt: {system}")

    def _history(self, argument: str) -> None:
        if argument:
            self.conversation.history = chat_commands.parse_history(argument, "/history")
        note(f"history: {describe_history(self.conversation.history)}")

    def _tokens(self, argument: str) -> None:
        ids, title = self.conversation.last_prompt, "the prompt of the last reply"
        if argument or not ids:
            ids, title = tuple(self.conversation.prompt(argument)), "the prompt of the next reply"
            title += f" to {quoted(argument)}" if argument else ", without your message"
        show_tokens(title, self.loaded.tokenizer, ids)

    def _save(self, argument: str) -> None:
        from gpt2cli.files import write_json

        name, force = chat_commands.parse_save(argument)
        path = _path(name)
        if os.path.lexists(path):
            if not path.is_file():
                raise UsageError(f"{path}: is not a regular file", fix="/save FILE")
            if not force:
                raise UsageError(f"{path}: already exists", fix=f"/save {name} {chat_commands.FORCE}")
        elif not path.parent.is_dir():
            raise UsageError(f"{path.parent}: there is no such folder", fix="/save FILE")
        with _system_errors():
            write_json(path, self.conversation.transcript(str(self.loaded.folder)))
        note(f"saved {_turns(self.conversation)} in {path}")

    def _load(self, argument: str) -> None:
        from gpt2cli.json_files import read_json

        path = _path(argument)
        with _system_errors():
            value = read_json(path, "/save FILE writes a conversation that can be loaded")
        before = self.conversation.history
        self.conversation.restore(value, str(path))
        note(f"loaded {_turns(self.conversation)} from {path}")
        if "\0" in value["model"] or _path(value["model"]).resolve() != self.loaded.folder.resolve():
            note(f"they are from {quoted(value['model'], LONGEST_NAME)}", "warn")
        ours = self.conversation.template.name if self.conversation.template else None
        if value["template"] != ours:
            theirs = "no template" if value["template"] is None else f"the template '{value['template']}'"
            here = "has none" if ours is None else f"has '{ours}'"
            note(f"they used {quoted(theirs)}, this model {here}", "warn")
        if self.conversation.history != before:
            self._history("")
        for last in self.conversation.exchanges[-1:]:
            note(f"the last was: {quoted(last.question)}\n{quoted(last.reply)}")


# Commands that make a reply, and the others.
_TURNS: "dict[str, Callable[[ChatLoop, str, Stop], Iterator[ChatEvent]]]" = {
    chat_commands.SAY: ChatLoop._say,
    "retry": ChatLoop._retry,
    "continue": ChatLoop._continue,
}
_DO: dict[str, Callable[[ChatLoop, str], None]] = {
    "help": ChatLoop._help,
    "clear": ChatLoop._clear,
    "undo": ChatLoop._undo,
    "set": ChatLoop._set,
    "show": ChatLoop._show,
    "system": ChatLoop._system,
    "history": ChatLoop._history,
    "tokens": ChatLoop._tokens,
    "save": ChatLoop._save,
    "load": ChatLoop._load,
}


def too_long(what: str) -> "Gpt2Error":
    return InputError(f"{what} is longer than 1 MiB", "no context is that long", "shorten it")


def _path(name: str) -> Path:
    if "\0" in name:
        raise UsageError("a file's name cannot hold a NUL byte")
    return expand(name)


def _turns(conversation: "Conversation") -> str:
    n = len(conversation.exchanges)
    return f"{counted(n, 'turn')}"


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Reports errors of the operating system like every command, and the conversation goes on."""
    try:
        yield
    except OSError as error:
        raise explain(error) from None
