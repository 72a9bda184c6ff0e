"""The program: its commands, and the one place where an error becomes an exit code.

Command files import only typer at their top, and torch and the rest in function bodies, so that
`gpt2 --help` answers at once.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from gpt2cli import __version__
from gpt2cli.cli import completion, signals
from gpt2cli.cli.failures import explain
from gpt2cli.cli.help import HelpCommand, HelpGroup
from gpt2cli.cores import let_threads_sleep
from gpt2cli.errors import LostRankError
from gpt2cli.ui.console import let_stdout_fail, make_streams_safe, print_error

HELP = "From raw text to a GPT-2 you can chat with."
EXIT_SIGPIPE = 128 + signal.SIGPIPE

WEIGHTS, TRAIN, USE, LOOK = "Get weights", "Train", "Use", "Look and measure"
# Name, group in the help, and the first sentence of the command's own help, which is then not imported.
COMMANDS = (
    ("download", WEIGHTS, "Download a GPT-2 from OpenAI or the Hugging Face hub."),
    ("convert", WEIGHTS, "Convert a GPT-2 from or to another format."),
    ("recipes", TRAIN, "List, show, explain, copy and check recipes."),
    ("tokenizer", TRAIN, "Train a vocabulary; show how one cuts a text."),
    ("prepare", TRAIN, "Tokenize text into shards for pretraining."),
    ("pretrain", TRAIN, "Train a GPT-2 on raw text, from random weights or further."),
    ("finetune-classify", TRAIN, "Fine-tune a GPT-2 to classify texts."),
    ("finetune-instruct", TRAIN, "Fine-tune a GPT-2 to follow instructions."),
    ("grid", TRAIN, "Train every combination of values with several seeds, and compare them."),
    ("generate", USE, "Continue a text."),
    ("chat", USE, "Chat with a model."),
    ("classify", USE, "Classify texts with a fine-tuned classifier."),
    ("compile", USE, "Make generate and chat faster: compile a decode step."),
    ("runs", LOOK, "List, show, compare, prune and remove runs and models."),
    ("inspect", LOOK, "Show what a model is made of, and what it computes."),
    ("evaluate", LOOK, "Measure how well models predict texts and do on benchmarks."),
    ("score", LOOK, "Measure how likely each line of a file is."),
    ("judge", LOOK, "Grade a model's responses with an LLM judge."),
)


class _Commands(Mapping[str, Any]):
    """Commands by name. Each one's file is imported on first use, so that completion and `--help` import
    none.
    """

    def __getitem__(self, name: str) -> Any:
        if name not in iter(self):
            raise KeyError(name)
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, *_ in COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@cache
def _command(name: str) -> Any:
    """The command from the file named after it: its function of that name, or its `app` of subcommands."""
    module = import_module(f"gpt2cli.cli.{name.replace('-', '_')}")
    one = typer.Typer()
    if group := getattr(module, "app", None):
        one.add_typer(group, name=name)
    else:
        one.command(name, cls=HelpCommand)(getattr(module, name.replace("-", "_")))
    return typer.main.get_group(one).commands[name]


class _Program(HelpGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment]

    def summaries(self) -> Sequence[tuple[str, str, str]]:
        return COMMANDS


app = typer.Typer(
    name="gpt2",
    help=HELP,
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,  # `completion.py` has a faster one
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may appear anywhere on the command line.")
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            callback=completion.install,
            is_eager=True,
            help="Install completion for your shell: bash, zsh or fish.",
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion",
            callback=completion.show,
            is_eager=True,
            help="Print what --install-completion installs.",
        ),
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit. Codes are those of `errors.py`, and 128 plus the number of a signal."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signals.exit_on_signals()
    make_streams_safe()
    let_threads_sleep()
    code = run(arguments)
    let_stdout_fail()  # the exit code says already that it broke; the rest of its buffer is lost
    if "RANK" in os.environ:
        from gpt2cli.cli import launch_ranks

        if launch_ranks.is_one_of_several():
            launch_ranks.leave(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. Errors are printed to stderr."""
    arguments, debug = _take_debug(arguments)
    try:
        if completion.VARIABLE in os.environ:
            return completion.answer(app)
        if arguments == ["--version"]:
            print(f"gpt2cli {__version__}")  # noqa: T201
            sys.stdout.flush()
            return 0
        code = app(args=arguments or ["--help"], prog_name="gpt2", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return 130
    except SystemExit as exit:
        if exit.code == 1 and isinstance(exit.__context__, BrokenPipeError):  # Rich and Typer end so
            return EXIT_SIGPIPE
        return exit.code if isinstance(exit.code, int) else 1
    except BrokenPipeError:
        return EXIT_SIGPIPE
    except Exception as error:  # noqa: BLE001 - the one place: every failure ends here, none goes on
        if debug:
            import traceback

            traceback.print_exc()
        known = explain(error, arguments)
        if "RANK" in os.environ:
            from gpt2cli.cli import launch_ranks

            known = launch_ranks.naming_rank(known)
        if not isinstance(known, LostRankError):  # the process that is gone says why
            print_error(known)
        return known.exit_code


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """--debug may stand anywhere before `--`; taken out, so that every command knows it."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != "--debug"]
    return kept + arguments[end:], len(kept) < end
