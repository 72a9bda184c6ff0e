"""The display of a chat: greeting, streamed replies, tables. Replies go to stdout, the rest to stderr."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2cli.errors import Gpt2Error, counted
from gpt2cli.paths import shown_path
from gpt2cli.ui.console import (
    aligned,
    definitions,
    err,
    is_terminal,
    print_json,
    printable,
    say,
    shortened,
    stream,
)

if TYPE_CHECKING:
    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.generation.chat_session import ChatEvent, ReplyDone
    from gpt2cli.jinja_template import JinjaTemplate
    from gpt2cli.templates import Template
    from gpt2cli.tokenizer.base import Tokenizer

LONGEST_QUOTE = 60  # characters of a message in a notice
LONGEST_NAME = 400
NARROW = 60  # columns; below, a value goes under its name
BASE_MODEL = "a base model, not fine-tuned for chat: it continues the text (continuation mode)"
ALONE = (
    "it was fine-tuned on single exchanges, so it answers each message by itself; --history all changes that"
)
_STOPPED_BEFORE = "stopped before the first token; the conversation is as before"
_STOPPED = "stopped, and kept as it is"
_ENDS = {
    "length": "; cut at max_new_tokens",
    "context": "; the reply fills the context",
    "interrupted": f"; {_STOPPED}",
}


def print_model(loaded: "LoadedModel") -> None:
    n = loaded.config.n_parameters
    size = f"{n / 1e6:,.1f} million parameters" if n >= 1e5 else f"{n:,} parameters"
    note(f"{shown_path(loaded.folder)}: {size}, context {loaded.config.n_positions:,} tokens", "")


def print_mode(template: "Template | JinjaTemplate | None") -> None:
    """How the model answers, in one line."""
    note(BASE_MODEL if template is None else f"chat template: {template.name}", "")


@dataclass
class ReplyView:
    """One reply: its text as it is generated, or with `as_json` an object at its end.

    At a terminal it ends with the number of tokens and the speed.
    """

    seed: int | float
    is_terminal: bool
    as_json: bool
    _is_open: bool = False  # a line of the reply is open on stdout
    _is_done: bool = False

    def show(self, event: "ChatEvent") -> None:
        from gpt2cli.generation.chat_session import ReplyDone, TextDelta, TurnsDropped

        match event:
            case TextDelta(text):
                self._write(text)
            case TurnsDropped(n_turns):
                turns = f"{n_turns} oldest turns are" if n_turns > 1 else "oldest turn is"
                say(f"the context is full: the {turns} dropped", "warn")
            case ReplyDone():
                self._end(event)

    def break_off(self) -> None:
        """Start a new line after an exception has ended the reply."""
        if self._is_open:
            stream("\n")
            self._is_open = False

    def say_stopped(self, is_kept: bool) -> None:
        """Say that Ctrl-C ended the reply, unless its end is shown already."""
        if not self._is_done:
            note(_STOPPED if is_kept else _STOPPED_BEFORE)

    def _write(self, text: str) -> None:
        if self.as_json or not text:
            return
        stream(text)
        self._is_open = True

    def _end(self, done: "ReplyDone") -> None:
        self._is_open, self._is_done = False, True
        if done.is_kept and self.as_json:
            print_json(_facts(done, self.seed))
        elif done.is_kept:
            stream("\n")
        if self.is_terminal:
            err().print(_summary(done), style="faint")


def _facts(done: "ReplyDone", seed: int | float) -> dict[str, str | int | float]:
    return {
        "reply": done.reply,
        "finish_reason": done.finish_reason,
        "prompt_tokens": done.n_prompt,
        "prefilled_tokens": done.n_prefilled,
        "new_tokens": done.n_new,
        "tokens_per_second": round(done.tokens_per_second, 2),
        "dropped_turns": done.n_dropped,
        "turn": done.turn,
        "seed": seed,
    }


def _summary(done: "ReplyDone") -> str:
    if not done.is_kept:
        return _STOPPED_BEFORE
    return f"{throughput_line(done.n_new, done.tokens_per_second)}{_ENDS.get(done.finish_reason, '')}"


def throughput_line(n_tokens: int, tokens_per_second: float) -> str:
    """The line under each text that a model generates."""
    pace = f", {tokens_per_second:.0f} tokens/s" if tokens_per_second else ""
    return f"{counted(n_tokens, 'token')}{pace}"


def show_failure(turn: int, error: Gpt2Error) -> None:
    """Print the error as JSON in place of the reply."""
    print_json({"turn": turn, "error": {"what": error.what, "why": error.why, "fix": error.fix}})


def show_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values in two columns, or in a narrow terminal one above the other."""
    console, rows = err(), [(printable(name), printable(value)) for name, value in pairs]
    if console.width >= NARROW and is_terminal(console):
        console.print("\n".join(definitions(rows, console.width)))
        return
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        if console.width < NARROW:
            console.print(f"{name}\n  {value}")
        else:
            console.print(f"{name:<{width}}  {value}")


def describe_history(n: int | None) -> str:
    if n is None:
        return "all: the model is shown every turn that fits"
    return f"{n}: " + ("each message is answered by itself" if n == 0 else "previous turns are shown")


def show_tokens(title: str, tokenizer: "Tokenizer", ids: Sequence[int]) -> None:
    """Token ids and their texts, one per line."""
    from gpt2cli.ui.inspect import token_text

    note(f"{title}: {counted(len(ids), 'token')}")
    rows = [(str(place), str(token), token_text(tokenizer, token)) for place, token in enumerate(ids)]
    for line in aligned(rows, right=(0, 1)):
        err().print(line)


def quoted(text: str, most: int = LONGEST_QUOTE) -> str:
    """The beginning of a message or a name on one line, safe to show."""
    return shortened(printable(" ".join(text.split())), most)


def note(text: str, style: str = "faint") -> None:
    """A line on stderr, if there is anything to say."""
    if text:
        say(text, style)
