"""`gpt2 chat`: its options, and where messages come from: a line editor, a terminal or a pipe."""

import codecs
import contextlib
import sys
from typing import Annotated, TextIO

import typer

from gpt2cli.cli.chat_commands import COMMANDS, parse_history
from gpt2cli.cli.choose_model import load_for_decoding, preloading
from gpt2cli.cli.options import (
    AdapterOption,
    CompileOption,
    DecodingPrecisionOption,
    DeviceOption,
    JsonOption,
    MinPOption,
    ModelArgument,
    RepetitionPenaltyOption,
    SeedOption,
    SpecialOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
)
from gpt2cli.cli.signals import wait_for_input
from gpt2cli.errors import UsageError
from gpt2cli.generation.load import REPLY_TOKENS
from gpt2cli.paths import gpt2_home, has_home
from gpt2cli.ui.console import err, is_terminal, out

LONGEST_LINE = 1 << 26  # bytes that are skipped in search of a line's end; a pipe may never have one
# Tokens of a few evenings of chat: a compiled step is built if it pays over all of them. A pipe never builds.
TERMINAL_TOKENS = 25_000
HISTORY = "chat_history"  # under GPT2_HOME
EDITOR_KEYS = "Alt-Enter adds a line, Ctrl-C ends a reply, Ctrl-D the program"
PLAIN_KEYS = "a backslash adds a line, Ctrl-C ends a reply, Ctrl-D the program"


def chat(
    model: ModelArgument = None,
    adapter: AdapterOption = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System prompt.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", help="Maximum number of tokens per reply.")
    ] = REPLY_TOKENS,
    history: Annotated[
        str | None,
        typer.Option(
            "--history",
            metavar="N|all",
            help="How many previous turns the model is shown; by default all, or none for a model that was"
            " fine-tuned on single exchanges.",
        ),
    ] = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionPenaltyOption = None,
    seed: SeedOption = None,
    special: SpecialOption = False,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    precision: DecodingPrecisionOption = "auto",
    compile: CompileOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Chat with a model.

    In a terminal, or through a pipe with one message per line.
    Prints only replies to stdout, or with --json one object per line.
    Progress and notes go to stderr.
    """
    from gpt2cli.cli.chat_loop import ChatLoop
    from gpt2cli.ui.spinner import echo_off, waiting

    asked = None if history is None else parse_history(history, "--history")
    if sys.stdin is None:  # closed by the parent process
        raise UsageError("there is nothing to answer", "stdin is closed", "start gpt2 chat in a terminal")
    screen = _screen()
    with echo_off() if screen else contextlib.nullcontext():
        with (
            preloading(model, adapter) as (folder, adapters),
            waiting(err(), f"loading {folder}", delay=0) as end,
        ):
            from gpt2cli.generation.chat_session import Conversation
            from gpt2cli.generation.chat_settings import ChatSettings
            from gpt2cli.generation.sampling import sampling_options
            from gpt2cli.jinja_template import read_chat_template
            from gpt2cli.templates import read_turns
            from gpt2cli.tokenizer.files import stopping_at_eos

            sampling = sampling_options(
                seed,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
            )
            settings = ChatSettings(**vars(sampling), max_new_tokens=max_new_tokens)
            n_tokens = TERMINAL_TOKENS if screen else 0
            loaded = load_for_decoding(
                *(folder, device, precision, threads, compile),
                adapters=adapters,
                n_tokens=n_tokens,
                before_build=end,
            )
            template = read_chat_template(loaded.folder)
            is_alone = history is None and read_turns(loaded.folder) == "single"
            conversation = Conversation(
                loaded.model,
                stopping_at_eos(loaded.tokenizer),
                template,
                system,
                settings,
                history=0 if is_alone else asked,
                control_tokens=special,
            )
        loop = ChatLoop(conversation, loaded, sys.stdin.isatty(), as_json, is_alone, special)
        if screen:
            from gpt2cli.ui.line_editor import LineEditor

            loop.greet(EDITOR_KEYS)
            words = [f"/{command.name}" for command in COMMANDS]
            editor = LineEditor(gpt2_home() / HISTORY if has_home() else None, screen, words)
            code = loop.run(editor.read)
        else:
            loop.greet(PLAIN_KEYS)
            code = loop.run(_Lines(prompt="> " if sys.stdin.isatty() else "").read)
    raise typer.Exit(code)


def _screen() -> TextIO | None:
    """The terminal for a line editor: stdin is one, and so is a stream that shows what is typed; or None."""
    if not sys.stdin.isatty():
        return None
    streams = ((err(), sys.stderr), (out(), sys.stdout))
    return next((stream for console, stream in streams if is_terminal(console)), None)


class _Lines:
    """A message per line of stdin. Invalid UTF-8 becomes U+FFFD, a byte order mark is skipped.

    With a prompt, a backslash at the end of a line adds the next line.
    """

    def __init__(self, prompt: str = "") -> None:
        self._prompt, self._is_begun, self._is_over = prompt, False, False

    def read(self) -> str:
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
        from gpt2cli.cli.chat_loop import LONGEST_MESSAGE, too_long

        if self._prompt and not self._is_over:
            wait_for_input(sys.stdin.buffer)
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
        """Skip to the end of the line, which may never come."""
        from gpt2cli.cli.chat_loop import LONGEST_MESSAGE

        for _ in range(LONGEST_LINE // LONGEST_MESSAGE):
            piece = sys.stdin.buffer.readline(LONGEST_MESSAGE)
            if not piece or piece.endswith(b"\n"):
                return
        self._is_over = True
