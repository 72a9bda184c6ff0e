"""Owns `gpt2 evaluate`: models and a text in, a table out. What is measured is `judging/perplexity.py`'s."""

from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli.options import DeviceOption, JsonOption, PrecisionOption, ThreadsOption

if TYPE_CHECKING:
    from pathlib import Path

    from gpt2cli.data.corpora import Found
    from gpt2cli.judging.perplexity import Sliding, Text
    from gpt2cli.runtime import Runtime
    from gpt2cli.ui.evaluating import Row
    from gpt2cli.weights.folder import LoadedModel

# --context, --stride and --batch as they were given
Wanted = tuple[int | None, int | None, int | None]
WIKITEXT2 = "wikitext-2-test"


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Runs, model folders or names; otherwise the newest model there is.",
            show_default=False,
        ),
    ] = None,
    on: Annotated[
        str, typer.Option("--on", metavar="TEXT", help="A corpus by its name, or a text file.")
    ] = WIKITEXT2,
    context: Annotated[
        int | None,
        typer.Option("--context", help="Tokens in a window.", show_default="all that the model sees"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            help="How far the window moves: a token is predicted from at least CONTEXT - STRIDE others.",
            show_default="half of the context",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", help="Windows computed together.", show_default="by their length"),
    ] = None,
    as_json: JsonOption = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Measure how well models predict a text: loss, perplexity, bits per byte.

    Every token of the text is predicted once, the first one from end-of-text alone. stdout gets a
    table, or with --json an object a line for each model.
    """
    from gpt2cli.data.corpora import find_corpus
    from gpt2cli.home import find_model
    from gpt2cli.runtime import choose_runtime
    from gpt2cli.ui.console import out
    from gpt2cli.ui.evaluating import PAPER_NOTE, print_rows

    named = [(name, find_model(name)) for name in models] if models else [_newest()]
    runtime = choose_runtime(device, precision, threads)
    for notice in runtime.notices:
        _say(f"note: {notice}")
    found = find_corpus(on, offline=offline, allow_bundled=False)
    text = _read(found)
    wanted = (context, stride, batch)
    for _, folder in named[1:]:  # what is wrong with the last model is said before hours go into the first
        _prepare(folder, text, found, wanted)

    rows: list[Row] = []
    try:
        for name, folder in named:
            row = _measure(name, folder, text, found, wanted, runtime)
            rows.append(row)
            if as_json:
                _print_json(row, folder, found, runtime)
    finally:  # what was measured until here is the user's, whatever ended it
        if rows and not as_json:
            print_rows(rows, out())
            if any(row.paper for row in rows):
                _say(PAPER_NOTE)


def _newest() -> "tuple[str, Path]":
    from gpt2cli.home import find_model

    folder = find_model(None)
    _say(f"model: {folder}")
    return str(folder), folder


def _read(found: "Found") -> str:
    """The whole text, checked: UTF-8 without NUL."""
    from contextlib import closing

    from gpt2cli.data.pieces import Reading
    from gpt2cli.data.sources import Source

    (path,) = found.paths
    with closing(Reading(Source(str(path), path, "text", gzipped=False), ())) as reading:
        return "".join(piece.text for piece in reading.pieces())


def _measure(
    name: str, folder: "Path", text: str, found: "Found", wanted: Wanted, runtime: "Runtime"
) -> "Row":
    from gpt2cli.judging.perplexity import paper_perplexity, score
    from gpt2cli.ui.console import err
    from gpt2cli.ui.evaluating import Row, show_scoring

    loaded, measured, sliding = _prepare(folder, text, found, wanted)
    model = loaded.model.to(runtime.device)
    result = show_scoring(score(model, measured, sliding, runtime), err(), name)
    on_wikitext = found.name == WIKITEXT2 and found.origin != "path"
    paper = paper_perplexity(loaded.config, loaded.tokenizer) if on_wikitext else None
    return Row(name, measured, sliding, result, paper)


def _prepare(
    folder: "Path", text: str, found: "Found", wanted: Wanted
) -> "tuple[LoadedModel, Text, Sliding]":
    from gpt2cli.judging.perplexity import sliding_for, text_for
    from gpt2cli.weights.folder import load_model

    loaded = load_model(folder)
    return loaded, text_for(text, loaded.tokenizer, found.name), sliding_for(loaded.config, *wanted)


def _print_json(row: "Row", folder: "Path", found: "Found", runtime: "Runtime") -> None:
    """One object a line; ASCII, so that nothing in it can steer a terminal."""
    import json
    import sys

    facts = {
        "model": row.model,
        "folder": str(folder),
        "on": found.name,
        "sha256": found.sha256,
        "loss": row.result.loss,
        "perplexity": row.result.perplexity,
        "word_perplexity": row.result.word_perplexity(row.text),
        "bits_per_byte": row.result.bits_per_byte(row.text),
        "n_tokens": row.result.n_tokens,
        "n_words": row.text.n_words,
        "n_bytes": row.text.n_bytes,
        "context": row.sliding.context,
        "stride": row.sliding.stride,
        "windows": row.result.n_windows,
        "tokens_per_second": round(row.result.tokens_per_second, 2),
        "device": str(runtime.device),
        "precision": runtime.precision,
        "paper_perplexity": row.paper,
    }
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    """A line on stderr, safe for a terminal whatever is in it."""
    from gpt2cli.ui.console import err, printable

    err().print(printable(text))
