"""`gpt2 evaluate`: models and texts in, a table of losses and perplexities out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpt2cli.cli.choose_model import find_with_adapters
from gpt2cli.cli.options import (
    AdapterOption,
    BlankLineOption,
    DeviceOption,
    EncodingOption,
    JsonOption,
    MaxBadOption,
    OfflineOption,
    PerLineOption,
    PrecisionOption,
    SplitOnOption,
    TextFieldOption,
    ThreadsOption,
)
from gpt2cli.errors import UsageError
from gpt2cli.paths import is_adapter
from gpt2cli.ui.console import err, out, print_json, say

if TYPE_CHECKING:
    from pathlib import Path

    from gpt2cli.evaluation.eval_text import EncodedText, EvalText
    from gpt2cli.evaluation.perplexity import PerplexityProgress
    from gpt2cli.evaluation.scoring import SlidingWindow
    from gpt2cli.runtime import Runtime
    from gpt2cli.ui.tables import EvaluationRow

WIKITEXT2 = "wikitext-2-test"


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Runs, model folders or names; by default the newest model."),
    ] = None,
    adapter: AdapterOption = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            "--on",
            metavar="TEXT",
            help="Name of a corpus; a file or glob of text or records, as of `gpt2 prepare`; a folder of .txt"
            " and .md files; or a folder made by `gpt2 prepare`. Repeat it to join several.",
            show_default=WIKITEXT2,
        ),
    ] = None,
    split: Annotated[
        Literal["train", "validation"] | None,
        typer.Option(help="Split of a prepared folder.", show_default="validation"),
    ] = None,
    text_field: TextFieldOption = None,
    split_on: SplitOnOption = None,
    per_line: PerLineOption = False,
    blank_line: BlankLineOption = False,
    encoding: EncodingOption = None,
    max_bad: MaxBadOption = None,
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
    """Measure how well models predict a text.

    Loss, perplexity and bits per byte.
    Predicts each token once, the first of a text from end-of-text alone.
    The first token of a prepared split is context alone.
    Prints a table to stdout, or with --json one line per model.
    """
    from gpt2cli.data.byte_source import read_options
    from gpt2cli.data.split_text import SplitRule
    from gpt2cli.evaluation.eval_text import read_eval_text
    from gpt2cli.runtime import choose_runtime
    from gpt2cli.ui.tables import PAPER_NOTE, print_evaluation

    if adapter and len(models or ()) > 1:
        raise UsageError(
            f"--adapter with {len(models or ())} models",
            "adapters belong to one base",
            f"gpt2 evaluate {(models or [''])[0]} --adapter {adapter[0]}",
        )
    named = []
    for typed in models or (None,):
        folder, adapters = find_with_adapters(typed, adapter)
        named.append(_Named(" + ".join([typed or str(folder), *(adapter or ())]), folder, adapters))
    runtime = choose_runtime(device, precision, threads)
    for notice in runtime.notices:
        say(f"note: {notice}")
    text = read_eval_text(
        on or [WIKITEXT2],
        split=split,
        text_fields=text_field or (),
        offline=offline,
        options=read_options(encoding, max_bad),
        rule=SplitRule(split_on or "", per_line, blank_line),
    )
    for note in text.notes:
        say(note, "warn")
    tasks = _tasks(named, text, context, stride, batch)

    rows: list[EvaluationRow] = []
    try:
        for task in tasks:
            row = _measure(task, text, runtime)
            rows.append(row)
            if as_json:
                _print_json(row, task.model, text, runtime)
    finally:  # print what was measured so far, whatever ended it
        if rows and not as_json:
            print_evaluation(rows, out())
            if any(row.paper for row in rows):
                say(PAPER_NOTE)


@dataclass(frozen=True)
class _Named:
    """A model of the command line, and the adapters to add to it."""

    name: str
    folder: "Path"
    adapters: "list[Path]"


@dataclass(frozen=True)
class _Task:
    """One model to evaluate, not loaded yet."""

    name: str
    model: _Named
    text: "EncodedText"
    sliding: "SlidingWindow"


def _tasks(
    named: list[_Named],
    text: "EvalText",
    context: int | None,
    stride: int | None,
    batch: int | None,
) -> list[_Task]:
    """All checks of all models before hours go into the first; weights are not read."""
    from gpt2cli.checkpoints.folder import read_config, require_matching_vocabulary
    from gpt2cli.convert.merge_lora import find_base
    from gpt2cli.evaluation.perplexity import sliding_window_for
    from gpt2cli.tokenizer.files import load_tokenizer

    tasks, texts = [], {}
    for model in named:
        name, whole = model.name, find_base(model.folder) if is_adapter(model.folder) else model.folder
        config, tokenizer = read_config(whole), load_tokenizer(whole)
        require_matching_vocabulary(whole, tokenizer, config.vocab_size)
        if tokenizer.fingerprint not in texts:
            texts[tokenizer.fingerprint] = text.encoded(tokenizer, name)
        sliding = sliding_window_for(config, context, stride, batch)
        tasks.append(_Task(name, model, texts[tokenizer.fingerprint], sliding))
    return tasks


def _measure(task: _Task, text: "EvalText", runtime: "Runtime") -> "EvaluationRow":
    from gpt2cli.convert.open_model import open_model
    from gpt2cli.evaluation.perplexity import measure_perplexity, paper_perplexity
    from gpt2cli.ui.progress import scoring, track
    from gpt2cli.ui.tables import EvaluationRow

    loaded = open_model(task.model.folder, task.model.adapters)
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
    on_wikitext = text.is_corpus and text.name == WIKITEXT2
    paper = paper_perplexity(loaded.config, loaded.tokenizer) if on_wikitext else None
    return EvaluationRow(task.name, task.text, task.sliding, result, text.split, paper)


def _print_json(row: "EvaluationRow", model: _Named, text: "EvalText", runtime: "Runtime") -> None:
    """One object per line."""
    print_json(
        {
            "model": row.model,
            "folder": str(model.folder),
            **({"adapters": [str(path) for path in model.adapters]} if model.adapters else {}),
            "on": text.name,
            "split": text.split,
            "sha256": text.sha256,
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
