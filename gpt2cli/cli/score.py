"""`gpt2 score`: lines of text in, the log-probability of each under a model out."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli.choose_model import preloading
from gpt2cli.cli.options import (
    AdapterOption,
    DeviceOption,
    EncodingOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    ThreadsOption,
    arriving_lines,
    lines_of,
)
from gpt2cli.errors import Gpt2Error, InputError, UsageError
from gpt2cli.paths import expand
from gpt2cli.ui.console import err, print_json, say
from gpt2cli.ui.spinner import load_torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gpt2cli.tokenizer.base import Tokenizer

STDIN = Path("-")
FEW = 200  # texts; fewer are done before a bar could be read


def score(
    file: Annotated[
        Path,
        typer.Argument(parser=expand, metavar="FILE", help="A file with one text per line; -: stdin."),
    ],
    model: ModelOption = None,
    adapter: AdapterOption = None,
    encoding: EncodingOption = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Measure how likely each line of a file is.

    Each line is scored by itself after end-of-text, so that all its tokens count.
    Prints one log-probability per line, in nats;
    with --json one object with text, logprob, tokens and perplexity.
    """
    if file == STDIN and sys.stdin is None:  # closed by the parent process
        raise UsageError("-: standard input is closed", fix="gpt2 score FILE")
    groups: Iterable[tuple[list[str], int]]
    if file == STDIN:
        groups, name = arriving_lines(encoding), "line "
    else:
        groups, name = [(lines_of(file, encoding), 0)], f"{file}:"
    with preloading(model, adapter) as (folder, adapters):
        load_torch()
        from gpt2cli.evaluation.scoring import score_texts
        from gpt2cli.generation.load import load_for_scoring
        from gpt2cli.ui.progress import counting, track

        loaded, runtime = load_for_scoring(
            folder, adapters, device, precision, threads, lambda sentence, _: say(sentence, "warn")
        )
    for texts, n_before in groups:
        rows = _encoded(texts, loaded.tokenizer, name, n_before)
        scores = score_texts(loaded.model, rows, runtime)
        if len(texts) > FEW:
            scores = track(scores, err(), counting("scoring", len(texts)))
        for text, logprobs in zip(texts, scores, strict=True):
            if as_json:
                print_json(_facts(text, logprobs))
            else:
                sys.stdout.write(f"{math.fsum(logprobs):.4f}\n")
        sys.stdout.flush()


def _encoded(texts: list[str], tokenizer: "Tokenizer", name: str, n_before: int) -> "Iterator[list[int]]":
    from gpt2cli.evaluation.scoring import after_beginning

    for number, text in enumerate(texts, n_before + 1):
        try:
            yield after_beginning(tokenizer, tokenizer.encode(text))
        except Gpt2Error as error:  # a character that a character model does not know
            raise InputError(f"{name}{number}: {error.what}", error.why, error.fix) from None


def _facts(text: str, logprobs: tuple[float, ...]) -> dict[str, Any]:
    """An empty line has no tokens, and no perplexity."""
    from gpt2cli.evaluation.perplexity import perplexity_of

    total, n = math.fsum(logprobs), len(logprobs)
    perplexity = perplexity_of(-total / n) if n else None
    return {"text": text, "logprob": total, "tokens": n, "perplexity": perplexity}
