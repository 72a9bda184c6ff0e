"""`gpt2 evaluate`: models and a text in, a table of losses and perplexities out."""

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli.choose_model import find_folder
from gpt2cli.cli.options import DeviceOption, JsonOption, OfflineOption, PrecisionOption, ThreadsOption
from gpt2cli.paths import is_adapter
from gpt2cli.ui.console import err, out, print_json, say

if TYPE_CHECKING:
    from pathlib import Path

    from gpt2cli.data.corpora import FoundCorpus
    from gpt2cli.evaluation.perplexity import EncodedText, PerplexityProgress, SlidingWindow
    from gpt2cli.runtime import Runtime
    from gpt2cli.ui.tables import EvaluationRow

WIKITEXT2 = "wikitext-2-test"


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Runs, model folders or names; by default the newest model."),
    ] = None,
    on: Annotated[
        str, typer.Option("--on", metavar="TEXT", help="Name of a corpus, or a text file.")
    ] = WIKITEXT2,
    context: Annotated[
        int | None,
        typer.Option("--context", min=1, help="Tokens per window.", show_default="the model's context"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            min=1,
            help="Tokens per window step; each token is predicted from at least CONTEXT - STRIDE others.",
            show_default="half the context",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Windows per batch.", show_default="auto")
    ] = None,
    as_json: JsonOption = False,
    offline: OfflineOption = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Measure how well models predict a text: loss, perplexity, bits per byte.

    Predicts each token once, the first from end-of-text alone.
    Prints a table to stdout, or with --json one line per model.
    """
    from gpt2cli.data.corpora import find_corpus
    from gpt2cli.runtime import choose_runtime
    from gpt2cli.ui.tables import PAPER_NOTE, print_evaluation

    named = [(name, find_folder(name)) for name in models or ()]
    if not named:
        newest = find_folder(None)
        named = [(str(newest), newest)]
    runtime = choose_runtime(device, precision, threads)
    for notice in runtime.notices:
        say(f"note: {notice}")
    found = find_corpus(on, offline=offline, allow_bundled=False)
    text, sha256 = _read(found)
    tasks = _tasks(named, text, found.name, context, stride, batch)

    rows: list[EvaluationRow] = []
    try:
        for task in tasks:
            row = _measure(task, found, runtime)
            rows.append(row)
            if as_json:
                _print_json(row, task.folder, found.name, sha256, runtime)
    finally:  # print what was measured so far, whatever ended it
        if rows and not as_json:
            print_evaluation(rows, out())
            if any(row.paper for row in rows):
                say(PAPER_NOTE)


def _read(found: "FoundCorpus") -> "tuple[str, str]":
    """The whole text, checked: UTF-8 without NUL; and the SHA-256 of the file."""
    from gpt2cli.data.input_files import TextSource
    from gpt2cli.data.text_reader import SourceReader
    from gpt2cli.files import sha256_of

    (path,) = found.paths
    with closing(SourceReader(TextSource(str(path), path, "text", gzipped=False), ())) as reading:
        text = "".join(piece.text for piece in reading.pieces())
    return text, found.sha256 or sha256_of(path)


@dataclass(frozen=True)
class _Task:
    """One model to evaluate, not loaded yet."""

    name: str
    folder: "Path"
    text: "EncodedText"
    sliding: "SlidingWindow"


def _tasks(
    named: "list[tuple[str, Path]]",
    text: str,
    on: str,
    context: int | None,
    stride: int | None,
    batch: int | None,
) -> list[_Task]:
    """All checks of all models before hours go into the first; weights are not read."""
    from gpt2cli.checkpoints.folder import read_config, require_matching_vocabulary
    from gpt2cli.convert.merge_lora import find_base
    from gpt2cli.evaluation.perplexity import encode_text, sliding_window_for
    from gpt2cli.tokenizer.files import load_tokenizer

    tasks, texts = [], {}
    for name, folder in named:
        whole = find_base(folder) if is_adapter(folder) else folder
        config, tokenizer = read_config(whole), load_tokenizer(whole)
        require_matching_vocabulary(whole, tokenizer, config.vocab_size)
        if tokenizer.fingerprint not in texts:
            texts[tokenizer.fingerprint] = encode_text(text, tokenizer, on)
        sliding = sliding_window_for(config, context, stride, batch)
        tasks.append(_Task(name, folder, texts[tokenizer.fingerprint], sliding))
    return tasks


def _measure(task: _Task, found: "FoundCorpus", runtime: "Runtime") -> "EvaluationRow":
    from gpt2cli.convert.open_model import open_model
    from gpt2cli.evaluation.perplexity import measure_perplexity, paper_perplexity
    from gpt2cli.ui.progress import scoring, track
    from gpt2cli.ui.tables import EvaluationRow

    loaded = open_model(task.folder)
    model = loaded.model.to(runtime.device)
    result: PerplexityProgress | None = None
    try:
        for step in track(
            measure_perplexity(model, task.text, task.sliding, runtime), err(), scoring(task.name)
        ):
            result = step
    except (KeyboardInterrupt, SystemExit):
        if result:
            say(
                f"partial: {task.name}: {result.n_tokens:,} of {result.n_total:,} tokens:"
                f" loss {result.loss:.4f}, perplexity/token {result.perplexity:,.2f}"
            )
        raise
    assert result is not None, "a text without tokens is refused before"
    on_wikitext = found.name == WIKITEXT2 and found.origin != "path"
    paper = paper_perplexity(loaded.config, loaded.tokenizer) if on_wikitext else None
    return EvaluationRow(task.name, task.text, task.sliding, result, paper)


def _print_json(row: "EvaluationRow", folder: "Path", on: str, sha256: str, runtime: "Runtime") -> None:
    """One object per line."""
    print_json(
        {
            "model": row.model,
            "folder": str(folder),
            "on": on,
            "sha256": sha256,
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
    )
