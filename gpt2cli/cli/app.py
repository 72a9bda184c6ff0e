"""Owns the program: the list of commands, and the one place where an error becomes an exit code.

Command files import only typer at their top; torch and the rest are imported in their bodies,
so that `gpt2 --help` answers at once.
"""

import contextlib
import errno
import os
import signal
import sys
import time
import traceback
from types import FrameType
from typing import Annotated, NoReturn

import typer

from gpt2cli import __version__, home
from gpt2cli.cli import (
    chat,
    classify,
    compile,
    convert,
    download,
    evaluate,
    finetune_classify,
    finetune_instruct,
    generate,
    inspect,
    judge,
    prepare,
    pretrain,
    recipes,
)
from gpt2cli.errors import Gpt2Error, InputError, ResourceError, UsageError, is_out_of_memory
from gpt2cli.ui.console import make_streams_safe, print_error

EXIT_SIGPIPE = 128 + signal.SIGPIPE
# What the operating system says when a disk, a quota, a right or a handle is missing.
_RESOURCES = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose another place"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EFBIG: ("the file would be larger than this system allows", "ulimit -f unlimited"),
    errno.EIO: ("the disk answered with an error", "look at the system log; keep a copy elsewhere"),
    errno.EROFS: ("the file system is read-only", "choose another place"),
    errno.EACCES: ("permission denied", "choose another place, or change the rights"),
    errno.EPERM: ("permission denied", "choose another place, or change the rights"),
    errno.EMFILE: ("too many open files", "ulimit -n 4096"),
    errno.EBADF: ("it is closed", "start the program with stdout open"),
}
_BAD_PATHS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOENT}

app = typer.Typer(
    name="gpt2",
    help="From raw text to a GPT-2 you talk to.",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("download")(download.download)
app.command("convert")(convert.convert)
app.command("prepare")(prepare.prepare)
app.command("pretrain")(pretrain.pretrain)
app.command("finetune-classify")(finetune_classify.finetune_classify)
app.command("finetune-instruct")(finetune_instruct.finetune_instruct)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("classify")(classify.classify)
app.command("compile")(compile.compile_step)
app.command("inspect")(inspect.inspect)
app.command("evaluate")(evaluate.evaluate)
app.command("judge")(judge.judge)
app.add_typer(recipes.app, name="recipes")


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works at any place.")
    ] = False,
) -> None:
    """From raw text to a GPT-2 you talk to."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit. Codes are those of `errors.py`, 130 for Ctrl-C, 143 for SIGTERM."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _terminated)
    make_streams_safe()
    code = run(arguments)
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    # What is still buffered has nowhere to go once a stream is broken; a normal exit would say so.
    if code in (EXIT_SIGPIPE, ResourceError.exit_code):
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. Errors are printed to stderr."""
    arguments, debug = _take_debug(arguments)
    try:
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
        if isinstance(exit.__context__, BrokenPipeError):
            return EXIT_SIGPIPE
        return exit.code if isinstance(exit.code, int) else 1
    except BrokenPipeError:
        return EXIT_SIGPIPE
    except Exception as error:  # noqa: BLE001 - the one place: every failure ends here, none goes on
        if debug:
            traceback.print_exc()
        known = explain(error)
        with contextlib.suppress(OSError):  # stderr itself may be what is full
            print_error(known)
        return known.exit_code


def explain(error: Exception) -> Gpt2Error:
    """Any exception as an error that a user can act on."""
    if isinstance(error, Gpt2Error):
        return error
    if isinstance(error, typer.TyperException):
        return UsageError(error.format_message().rstrip("."), fix=_help_for(error))
    if is_out_of_memory(error):
        return ResourceError("out of memory", fix="close other programs, or use a smaller model or batch")
    if isinstance(error, OSError) and error.errno in _RESOURCES:
        why, fix = _RESOURCES[error.errno]
        return ResourceError(
            f"{error.filename or 'stdout or a file'}: {why}", str(error.strerror or error), fix
        )
    if isinstance(error, OSError) and error.errno in _BAD_PATHS:
        return InputError(f"{error.filename}: {str(error.strerror).lower()}", fix="name another path")
    return _our_bug(error)


def _our_bug(error: Exception) -> Gpt2Error:
    text = "".join(traceback.format_exception(error))
    path = home.logs() / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
        fix = f"please report it with {path}, or add --debug to see it"
    except OSError:
        fix = "add --debug to see the traceback"
    return Gpt2Error("this is a bug in gpt2cli", f"{type(error).__name__}: {str(error)[:200]}", fix)


def _help_for(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context else "gpt2 --help"


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """--debug may stand anywhere before `--`; taken out, so that every command knows it."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != "--debug"]
    return kept + arguments[end:], len(kept) < end


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
