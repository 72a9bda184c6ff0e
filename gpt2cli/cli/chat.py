"""Owns `gpt2 chat`: its options, and where messages come from.

What a message does is in session.py, how lines are read as commands in slash.py, how they are typed
in ui/editing.py.
"""

import codecs
import sys
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from gpt2cli.cli.chat_loop import LONGEST_MESSAGE, Session, Source, too_long
from gpt2cli.cli.choose_model import decoding_of, found, load
from gpt2cli.cli.options import (
    CompileOption,
    DecodingPrecisionOption,
    DeviceOption,
    JsonOption,
    RepetitionPenaltyOption,
    SeedOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
)

if TYPE_CHECKING:
    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.generation.chat_session import Conversation
    from gpt2cli.generation.settings import Settings

LONGEST_LINE = 1 << 26  # bytes that are skipped in search of a line's end; a pipe may never have one
# What somebody who sits down to talk will read in a few evenings: the compiled step stays, so it is built
# for all of them. A pipe waits for nobody.
TALK_TOKENS = 25_000
HISTORY = "chat_history"  # under GPT2_HOME
EDITOR_KEYS = "Alt-Enter adds a line, Ctrl-C ends a reply, Ctrl-D the program"
PLAIN_KEYS = "a backslash adds a line, Ctrl-C ends a reply, Ctrl-D the program"


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A run, a model folder or a name; otherwise the newest model there is.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="Say who the model is to be.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Limit of a reply.")] = 256,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    repetition_penalty: RepetitionPenaltyOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    precision: DecodingPrecisionOption = "auto",
    compile: CompileOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Talk with a model: at a terminal, or a line a turn through a pipe.

    stdout gets the replies alone, or with --json an object a line for each; stderr the rest.
    """
    import contextlib

    from gpt2cli.errors import UsageError
    from gpt2cli.ui.console import err
    from gpt2cli.ui.spinner import hushed, waiting

    if sys.stdin is None:  # whoever started the program had closed it
        raise UsageError("there is nothing to answer", "stdin is closed", "gpt2 chat at a terminal")
    screen = _screen()
    with hushed() if screen else contextlib.nullcontext():
        with (
            found(model) as folder,
            waiting(err(), f"loading {folder}", patience=0) as end,
        ):
            from gpt2cli.generation.settings import Settings

            decoding = decoding_of(temperature, top_k, top_p, repetition_penalty, seed)
            settings = Settings(decoding, max_new_tokens)
            n_tokens = TALK_TOKENS if screen else 0
            loaded = load(folder, device, precision, threads, compile, n_tokens=n_tokens, before_build=end)
            conversation = _begin(loaded, system, settings)
        source, keys = _source(screen)
        session = Session(conversation, loaded, sys.stdin.isatty(), as_json)
        session.greet(keys)
        code = session.run(source)
    raise typer.Exit(code)


def _screen() -> TextIO | None:
    """The terminal on which somebody types and can see it, by a line editor; else None."""
    from gpt2cli.ui.console import err, is_terminal, out

    if not sys.stdin.isatty():
        return None
    streams = ((err(), sys.stderr), (out(), sys.stdout))
    return next((stream for console, stream in streams if is_terminal(console)), None)


def _begin(loaded: "LoadedModel", system: str | None, settings: "Settings") -> "Conversation":
    from gpt2cli.checkpoints.template_file import read_template
    from gpt2cli.generation.chat_session import Conversation

    template = read_template(loaded.folder)
    return Conversation(loaded.model, loaded.tokenizer, template, system, settings)


def _source(screen: TextIO | None) -> tuple[Source, str]:
    """Where messages come from, and the keys for it, in words."""
    from gpt2cli.paths import gpt2_home

    if screen:
        from gpt2cli.ui.line_editor import Editor

        return Editor(gpt2_home() / HISTORY, screen), EDITOR_KEYS
    return _Lines(prompt="> " if sys.stdin.isatty() else ""), PLAIN_KEYS


class _Lines:
    """A line of stdin is a message; what is not UTF-8 becomes U+FFFD, and a byte order mark at the
    beginning is none of it. With a prompt, a backslash at the end of a line adds the next one.
    """

    def __init__(self, prompt: str = "") -> None:
        self._prompt, self._is_begun, self._is_over = prompt, False, False

    def read(self) -> str:
        from gpt2cli.ui.console import err

        if not self._prompt:
            return self._line()
        prompt = self._prompt
        lines: list[str] = []
        while True:
            err().print(prompt, end="")
            try:
                line = self._line()
            except EOFError:
                self._is_over = True
                if not lines:
                    raise
                return "\n".join(lines)
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
            prompt = "  "

    def _line(self) -> str:
        line = b"" if self._is_over else sys.stdin.buffer.readline(LONGEST_MESSAGE + 1)
        if not line:
            raise EOFError
        if not self._is_begun:
            line, self._is_begun = line.removeprefix(codecs.BOM_UTF8), True
        if len(line) > LONGEST_MESSAGE and not line.endswith(b"\n"):
            self._skip()
            raise too_long("a line on stdin")
        return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "replace")

    def _skip(self) -> None:
        """To the end of the line, which may never come."""
        for _ in range(LONGEST_LINE // LONGEST_MESSAGE):
            piece = sys.stdin.buffer.readline(LONGEST_MESSAGE)
            if not piece or piece.endswith(b"\n"):
                return
        self._is_over = True
