"""The program: its commands, and the one place where an error becomes an exit code.

Command files import only typer at their top, and torch and the rest in function bodies, so that
`gpt2 --help` answers at once.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from gpt2cli import __version__
from gpt2cli.cli import (
    chat,
    classify,
    compile,
    completion,
    convert,
    download,
    evaluate,
    finetune_classify,
    finetune_instruct,
    generate,
    grid,
    inspect,
    judge,
    prepare,
    pretrain,
    recipes,
    runs,
    score,
    signals,
)
from gpt2cli.cli.failures import explain
from gpt2cli.cli.help import HelpCommand, HelpGroup
from gpt2cli.cores import let_threads_sleep
from gpt2cli.errors import LostRankError
from gpt2cli.ui.console import let_stdout_fail, make_streams_safe, print_error

HELP = "From raw text to a GPT-2 you can chat with."
EXIT_SIGPIPE = 128 + signal.SIGPIPE

app = typer.Typer(
    name="gpt2",
    help=HELP,
    cls=HelpGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,  # `completion.py` has a faster one
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
WEIGHTS, TRAIN, USE, LOOK = "Get weights", "Train", "Use", "Look and measure"
COMMANDS: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("download", WEIGHTS, download.download),
    ("convert", WEIGHTS, convert.convert),
    ("prepare", TRAIN, prepare.prepare),
    ("pretrain", TRAIN, pretrain.pretrain),
    ("finetune-classify", TRAIN, finetune_classify.finetune_classify),
    ("finetune-instruct", TRAIN, finetune_instruct.finetune_instruct),
    ("grid", TRAIN, grid.grid),
    ("generate", USE, generate.generate),
    ("chat", USE, chat.chat),
    ("classify", USE, classify.classify),
    ("compile", USE, compile.compile_step),
    ("inspect", LOOK, inspect.inspect),
    ("evaluate", LOOK, evaluate.evaluate),
    ("score", LOOK, score.score),
    ("judge", LOOK, judge.judge),
)
app.add_typer(recipes.app, name="recipes", rich_help_panel=TRAIN)
app.add_typer(runs.app, name="runs", rich_help_panel=LOOK)
for name, panel, command in COMMANDS:
    app.command(name, cls=HelpCommand, rich_help_panel=panel)(command)


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
        from gpt2cli.cli import launcher

        if launcher.is_one_of_several():
            launcher.leave(code)
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
            from gpt2cli.cli import launcher

            known = launcher.naming_rank(known)
        if not isinstance(known, LostRankError):  # the process that is gone says why
            print_error(known)
        return known.exit_code


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """--debug may stand anywhere before `--`; taken out, so that every command knows it."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != "--debug"]
    return kept + arguments[end:], len(kept) < end
