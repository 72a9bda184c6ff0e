"""The options that several commands share, and texts from an argument, a file or a pipe."""

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpt2cli.errors import InputError, UsageError
from gpt2cli.ui.console import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.tokenizer.base import Tokenizer

_MODEL = "A run, a model folder or a name; by default the newest model."
_sampling = functools.partial(typer.Option, rich_help_panel="Sampling")
_hardware = functools.partial(typer.Option, rich_help_panel="Hardware")

ModelArgument = Annotated[str | None, typer.Argument(metavar="MODEL", help=_MODEL)]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help=_MODEL)]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="ADAPTER",
        help="A LoRA adapter to add to the model's weights; repeatable. Without a MODEL, its own base.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Never use the network.")]

DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], _hardware("--device", help="Device to run on.")
]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"], _hardware("--precision", help="Number format.")
]
# Decoding on a CPU also has int8, and a compiler.
DecodingPrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16", "int8"],
    _hardware("--precision", help="Number format; int8 is for the CPU."),
]
CompileOption = Annotated[
    Literal["auto", "on", "off"],
    _hardware(
        "--compile",
        help="Use a compiled decode step. auto: use it if it is built, and build it if that saves time.",
    ),
]
ThreadsOption = Annotated[
    int,
    _hardware(
        "--threads",
        min=0,
        max=1024,
        help="CPU threads; 0: OMP_NUM_THREADS, else 1 if small, else one per core.",
    ),
]

# Their defaults live in generation/sampling.py, which costs an import of torch; a test compares.
TemperatureOption = Annotated[
    float | None,
    _sampling("--temperature", "-t", help="0 is greedy; higher is more random.", show_default="0.8"),
]
TopKOption = Annotated[
    int | None,
    _sampling("--top-k", help="Sample from the K most likely tokens; 0: all.", show_default="40"),
]
TopPOption = Annotated[
    float | None,
    _sampling(
        "--top-p",
        help="Sample from the most likely tokens whose probabilities add up to P.",
        show_default="1.0",
    ),
]
MinPOption = Annotated[
    float | None,
    _sampling(
        "--min-p",
        help="Exclude tokens less than P times as likely as the most likely one.",
        show_default="0.0",
    ),
]
RepetitionPenaltyOption = Annotated[
    float | None,
    _sampling("--repetition-penalty", help="Values above 1 discourage repetition.", show_default="1.0"),
]
SeedOption = Annotated[int | None, _sampling("--seed", help="Random seed; same seed and options, same text.")]
SpecialOption = Annotated[
    bool,
    typer.Option("--special", help="Read control tokens, <|endoftext|> and the model's own, as single ids."),
]

# How files of text and records are read; recipes have keys of the same names in `data`.
_reading = functools.partial(typer.Option, rich_help_panel="Reading files")
TextFieldOption = Annotated[
    list[str] | None,
    _reading(
        "--text-field",
        metavar="NAME",
        help="Field of records, or column of a table, that holds the text; dots reach into objects."
        " Repeat it to join several.",
        show_default="text",
    ),
]
SplitOnOption = Annotated[
    str | None,
    _reading("--split-on", metavar="TEXT", help="Text between documents, such as '<|endoftext|>'."),
]
PerLineOption = Annotated[bool, _reading("--per-line", help="Each line of a text file is a document.")]
BlankLineOption = Annotated[bool, _reading("--blank-line", help="Blank lines end a document of a text file.")]
EncodingOption = Annotated[
    str | None,
    _reading("--encoding", metavar="NAME", help="Encoding, such as cp1252 or utf-16.", show_default="utf-8"),
]
MaxBadOption = Annotated[
    float | None,
    _reading(
        "--max-bad",
        metavar="SHARE",
        help="Share of a file's records that may be bad and are left out, rounded up; 0: none.",
        show_default="0.001",
    ),
]

# Of the training commands.
RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name from 'gpt2 recipes list'.")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to override, such as optim.lr=3e-4.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name or path of the run; by default the recipe's name.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")]
FromOption = Annotated[
    str | None,
    typer.Option("--from", metavar="best|step-N", help="With --resume: the checkpoint to go back to."),
]
ProcessesOption = Annotated[
    int,
    typer.Option("--processes", min=1, help="Processes that train together, each on a share of every step."),
]
FindLrOption = Annotated[
    bool,
    typer.Option("--find-lr", help="Try rising learning rates for some 100 steps, and print one to take."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show the resolved recipe, memory and time, without training.")
]

LONGEST_PROMPT = 1 << 26  # bytes; no context is that long, and a pipe may never end


def prompt_text(prompt: str | None, file: Path | None) -> str:
    """The prompt from the argument, the file or stdin, without one line feed at the end of the last two.

    A file must be UTF-8, like every file; bytes in a pipe that are not become U+FFFD.
    """
    from gpt2cli.files import open_regular

    if file is not None:
        if prompt is not None:
            raise UsageError("there are two prompts", f"{file} and the argument", "give one of them")
        with open_regular(file) as opened:
            data = opened.read(LONGEST_PROMPT + 1)
        _check_text(data, str(file))
        text = data.decode("utf-8-sig")
    elif prompt == "-" and sys.stdin is None:  # closed by the parent process
        raise UsageError("-: standard input is closed", fix="gpt2 generate PROMPT")
    elif prompt == "-" or (prompt is None and sys.stdin is not None and not sys.stdin.isatty()):
        data = sys.stdin.buffer.read(LONGEST_PROMPT + 1)
        text = data.decode("utf-8", "replace")
    else:
        return prompt or ""
    if len(data) > LONGEST_PROMPT:
        raise InputError("the prompt is longer than 64 MiB", "no context is that long", "give only its end")
    return text.removesuffix("\n").removesuffix("\r")


def _check_text(data: bytes, name: str) -> None:
    from gpt2cli.encodings import conversion, recognised

    try:
        data.decode("utf-8")
        place = data.find(b"\0")
        what = "a NUL byte"
    except UnicodeDecodeError as error:
        place, what = error.start, "not UTF-8"
    # A read that was cut short may end inside a character; its length is an error of its own.
    if 0 <= place < LONGEST_PROMPT - 4:
        why, encoding = recognised(data, place)
        fix = conversion(name, encoding) if encoding else ""
        raise InputError(f"{name}: {what} at byte {place}", f"a prompt is UTF-8 text, and {why}", fix)


def encode_prompt(
    text: str, loaded: "LoadedModel", fix: str | None, control_tokens: bool = False
) -> list[int]:
    """The prompt's token ids: at least one, at most the model's context.

    A longer prompt is an error with this `fix`; None keeps its last tokens and says so.
    """
    from gpt2cli.generation.chat_prompt import plain_prompt

    tokenizer = loaded.tokenizer
    if not control_tokens:
        warn_of_control_tokens(text, tokenizer)
    ids = plain_prompt(tokenizer, text, control_tokens)
    if not text:
        say(f"the prompt is empty: starting from {tokenizer.decode(ids)}", "faint")
        return ids
    return fit_prompt(ids, loaded, fix)


def warn_of_control_tokens(text: str, tokenizer: "Tokenizer", own_template: bool = False) -> None:
    """Warn how a control token in the prompt is read: as plain text, or as one id with the model's own
    template.
    """
    if found := [token for token in tokenizer.control_tokens if token in text]:
        plain = "is read as ordinary text; --special reads it as one token"
        say(f"{found[0]} {'is read as one token' if own_template else plain}", "warn")


def fit_prompt(ids: list[int], loaded: "LoadedModel", fix: str | None) -> list[int]:
    """The ids, at most the model's context; the rest as `encode_prompt`."""
    limit = loaded.config.n_positions
    if len(ids) <= limit:
        return ids
    if fix is not None:
        raise InputError(f"the prompt has {len(ids)} tokens", f"this model's context holds {limit}", fix)
    say(f"the prompt has {len(ids)} tokens: the first {len(ids) - limit} are dropped", "warn")
    return ids[-limit:]


def lines_of(file: Path, encoding: str | None = None) -> list[str]:
    """The lines of a text file."""
    from gpt2cli.data.byte_source import read_options
    from gpt2cli.data.record_files import read_text

    text = read_text(file, read_options(encoding))[0]
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def arriving_lines(encoding: str | None = None) -> "Iterator[tuple[list[str], int]]":
    """Groups of lines of stdin, each as soon as it arrives, and how many lines came before it. Without an
    encoding invalid UTF-8 becomes U+FFFD.

    Raises UsageError for an encoding whose line feeds are not one byte, InputError for what is not in it.
    """
    from gpt2cli.encodings import require_encoding

    if encoding and "\n".encode(encoding := require_encoding(encoding)) != b"\n":
        raise UsageError(
            f"--encoding {encoding}: lines of standard input are read in encodings like ASCII alone",
            fix=f"iconv -f {encoding} -t utf-8",
        )
    say_if_typed()
    pending, n_before = b"", 0
    while block := os.read(sys.stdin.fileno(), 1 << 16):
        *lines, pending = (pending + block).split(b"\n")
        if len(pending) > LONGEST_PROMPT:
            raise InputError("a line on stdin is longer than 64 MiB", "no context is near that")
        if lines:
            yield (
                [_decoded(line, encoding, number) for number, line in enumerate(lines, n_before + 1)],
                n_before,
            )
        n_before += len(lines)
    if pending:
        yield [_decoded(pending, encoding, n_before + 1)], n_before


def _decoded(line: bytes, encoding: str | None, number: int) -> str:
    try:
        return line.decode(encoding or "utf-8", "strict" if encoding else "replace").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InputError(
            f"line {number} of standard input: not {encoding} at byte {error.start}", error.reason
        ) from None


def say_if_typed() -> None:
    """Tell the user that the program waits for input."""
    if sys.stdin.isatty():
        say("reading lines from the terminal; Ctrl-D ends")
