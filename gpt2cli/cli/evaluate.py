"""`gpt2 evaluate`: models, texts and benchmarks in, a table of losses, perplexities and accuracies out."""

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal

import typer

from gpt2cli.cli.choose_model import find_with_adapters
from gpt2cli.cli.evaluate_facts import item_facts, result_facts
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
from gpt2cli.cores import forward_seconds
from gpt2cli.errors import UsageError
from gpt2cli.paths import expand, is_adapter
from gpt2cli.ui.console import err, out, print_json, say
from gpt2cli.ui.spinner import load_torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpt2cli.checkpoints.folder import LoadedModel
    from gpt2cli.evaluation.benchmarks import BenchmarkData, ItemResult
    from gpt2cli.evaluation.eval_text import EncodedText, EvalText
    from gpt2cli.evaluation.on_option import EvaluationTarget
    from gpt2cli.evaluation.perplexity import PerplexityProgress
    from gpt2cli.evaluation.scoring import Branches, SlidingWindow
    from gpt2cli.runtime import Runtime
    from gpt2cli.ui.benchmarks import BenchmarkRow
    from gpt2cli.ui.tables import EvaluationRow


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
            metavar="TEXT,...",
            help="Name of a corpus; a file or glob of text or records, as of `gpt2 prepare`; a folder of .txt"
            " and .md files; or a folder made by `gpt2 prepare`. Or a benchmark: lambada:word, lambada:token,"
            " hellaswag, hellaswag:completion, cbt-cn, cbt-ne; BENCHMARK=FILE reads a file of its form."
            " Several, separated by commas, make one table.",
            show_default="wikitext-2-test",
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
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Items per benchmark: the first so many.", show_default="all"),
    ] = None,
    items_out: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=expand, metavar="FILE", help="Write each item's scores here, as JSON lines."
        ),
    ] = None,
    as_json: JsonOption = False,
    offline: OfflineOption = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Measure how well models predict texts and do on benchmarks.

    Loss, perplexity and bits per byte of texts; accuracy on LAMBADA, HellaSwag and CBT.
    Predicts each token of a text once, the first from end-of-text alone.
    The first token of a prepared split is context alone.
    Prints a table to stdout, or with --json one line per model and text or benchmark.
    """
    load_torch()
    from gpt2cli.data.byte_source import read_options
    from gpt2cli.data.text_reader import SplitRule
    from gpt2cli.evaluation.benchmarks import read_benchmark
    from gpt2cli.evaluation.eval_text import EvalText, read_eval_text
    from gpt2cli.evaluation.on_option import parse_on
    from gpt2cli.runtime import choose_runtime, require_device

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
    kind = require_device(device).type
    entries = parse_on(",".join(on or ["wikitext-2-test"]))
    options, rule = read_options(encoding, max_bad), SplitRule(split_on or "", per_line, blank_line)
    _require_use(
        entries,
        texts={
            "--split": split,
            "--text-field": text_field,
            "--split-on": split_on,
            "--per-line": per_line,
            "--blank-line": blank_line,
            "--encoding": encoding,
            "--max-bad": max_bad,
            "--context": context,
            "--stride": stride,
            "--batch": batch,
        },
        benchmarks={"--limit": limit, "--out": items_out},
    )
    sources: list[EvalText | BenchmarkData] = [
        read_benchmark(entry.benchmark, entry.source, limit, offline)
        if entry.benchmark
        else read_eval_text(
            entry.source or "",
            split=split,
            text_fields=text_field or (),
            offline=offline,
            options=options,
            rule=rule,
        )
        for entry in entries
    ]
    for source in sources:
        for note in source.notes if isinstance(source, EvalText) else ():
            say(note, "warn")
    plans = _plans(named, sources, context, stride, batch, kind)
    forward = max(work.forward for _, works in plans for work in works)
    runtime = choose_runtime(device, precision, threads, forward=forward)
    for notice in runtime.notices:
        say(f"note: {notice}")

    rows: list[EvaluationRow | BenchmarkRow] = []
    try:
        with _items_file(items_out) as file:
            for model, works in plans:
                for row in _measured(model, works, runtime, file):
                    rows.append(row)
                    if as_json:
                        print_json({**model.facts(), **result_facts(row, runtime)})
    finally:  # print what was measured so far, whatever ended it
        if rows and not as_json:
            _print_table(rows, is_one_text=len(sources) == 1 and entries[0].benchmark is None)


@dataclass(frozen=True)
class _Named:
    """A model of the command line, and the adapters to add to it."""

    name: str
    folder: Path
    adapters: list[Path]

    def facts(self) -> dict[str, object]:
        added = {"adapters": [str(path) for path in self.adapters]} if self.adapters else {}
        return {"model": self.name, "folder": str(self.folder), **added}


@dataclass(frozen=True)
class _TextWork:
    """A text to measure a model on, in the model's tokens."""

    source: "EvalText"
    text: "EncodedText"
    sliding: "SlidingWindow"
    forward: float  # seconds of a batch, on one core

    def measure(
        self, name: str, loaded: "LoadedModel", runtime: "Runtime", file: IO[str] | None
    ) -> "EvaluationRow":
        from gpt2cli.evaluation.perplexity import measure_perplexity, paper_perplexity
        from gpt2cli.evaluation.published import WIKITEXT2
        from gpt2cli.ui.progress import scoring, track
        from gpt2cli.ui.tables import EvaluationRow

        result: PerplexityProgress | None = None
        try:
            steps = measure_perplexity(loaded.model, self.text, self.sliding, runtime)
            for step in track(steps, err(), scoring(name)):
                result = step
        except (KeyboardInterrupt, SystemExit):
            if result:
                say(
                    f"partial: {name}: {result.n_tokens:,} of {result.n_total:,} tokens:"
                    f" loss {result.loss:.4f}, perplexity/token {result.perplexity:,.2f}"
                )
            raise
        assert result is not None, "a text without tokens is refused before"
        on_wikitext = self.source.is_corpus and self.source.name == WIKITEXT2
        paper = paper_perplexity(loaded.config, loaded.tokenizer) if on_wikitext else None
        return EvaluationRow(name, self.source, self.text, self.sliding, result, paper)


@dataclass(frozen=True)
class _BenchmarkWork:
    """A benchmark to measure a model on, in the model's tokens."""

    data: "BenchmarkData"
    encoded: "Sequence[Branches]"
    forward: float  # seconds of a batch, on one core

    def measure(
        self, name: str, loaded: "LoadedModel", runtime: "Runtime", file: IO[str] | None
    ) -> "BenchmarkRow":
        from gpt2cli.evaluation.benchmarks import run_benchmark, summarize
        from gpt2cli.evaluation.published import published_size
        from gpt2cli.ui.benchmarks import BenchmarkRow, shown_metric
        from gpt2cli.ui.progress import counting, track

        benchmark, n_items = self.data.benchmark, len(self.data.items)
        results: list[ItemResult] = []
        start = time.monotonic()
        try:
            steps = run_benchmark(loaded.model, self.data, self.encoded, runtime)
            for result in track(steps, err(), counting(f"{name}: {benchmark.name}", n_items)):
                results.append(result)
                if file:
                    file.write(json.dumps(item_facts(name, self.data, result)) + "\n")
        except (KeyboardInterrupt, SystemExit):
            if results:
                found = summarize(benchmark, results)
                figures = ", ".join(shown_metric(metric, value) for metric, value in found.items())
                say(f"partial: {name}: {benchmark.name}: {len(results):,} of {n_items:,} items: {figures}")
            raise
        return BenchmarkRow(
            name,
            self.data,
            summarize(benchmark, results),
            n_items,
            sum(result.n_cut > 0 for result in results),
            time.monotonic() - start,
            published_size(loaded.config, loaded.tokenizer),
        )


_Plan = tuple[_Named, list[_TextWork | _BenchmarkWork]]


def _plans(
    named: list[_Named],
    sources: "list[EvalText | BenchmarkData]",
    context: int | None,
    stride: int | None,
    batch: int | None,
    device: str,
) -> list[_Plan]:
    """Check every model before hours go into the first one; reads no weights."""
    from gpt2cli.checkpoints.folder import read_config, require_matching_vocabulary
    from gpt2cli.convert.merge_lora import find_base
    from gpt2cli.evaluation.benchmarks import encode_items, require_room
    from gpt2cli.evaluation.eval_text import EvalText
    from gpt2cli.evaluation.perplexity import sliding_window_for
    from gpt2cli.evaluation.scoring import BATCH_TOKENS
    from gpt2cli.tokenizer.files import load_tokenizer

    plans: list[_Plan] = []
    texts: dict[tuple[str, int], EncodedText] = {}
    items: dict[tuple[str, int], tuple[Branches, ...]] = {}
    for model in named:
        whole = find_base(model.folder) if is_adapter(model.folder) else model.folder
        config, tokenizer = read_config(whole), load_tokenizer(whole)
        require_matching_vocabulary(whole, tokenizer, config.vocab_size)
        works: list[_TextWork | _BenchmarkWork] = []
        for number, source in enumerate(sources):
            key = tokenizer.fingerprint, number
            if isinstance(source, EvalText):
                if key not in texts:
                    texts[key] = source.encoded(tokenizer, model.name)
                sliding = sliding_window_for(config, context, stride, batch, device)
                forward = forward_seconds(config.n_parameters, sliding.batch * sliding.context)
                works.append(_TextWork(source, texts[key], sliding, forward))
            else:
                if key not in items:
                    items[key] = encode_items(source, tokenizer)
                require_room(source, items[key], config)
                forward = forward_seconds(config.n_parameters, BATCH_TOKENS[device])
                works.append(_BenchmarkWork(source, items[key], forward))
        plans.append((model, works))
    return plans


def _measured(
    model: _Named, works: "Sequence[_TextWork | _BenchmarkWork]", runtime: "Runtime", file: IO[str] | None
) -> "Iterator[EvaluationRow | BenchmarkRow]":
    """Load the model once and measure it on everything. It is gone before the next one comes."""
    from gpt2cli.convert.open_model import open_model
    from gpt2cli.generation.cpu.swap_linears import swap_for_many_rows

    loaded = open_model(model.folder, model.adapters)
    loaded.model.to(runtime.device)
    swap_for_many_rows(loaded.model.transformer, runtime.precision)
    for work in works:
        yield work.measure(model.name, loaded, runtime, file)


def _require_use(
    entries: "Sequence[EvaluationTarget]", texts: dict[str, object], benchmarks: dict[str, object]
) -> None:
    """Raise UsageError for an option that applies to nothing in --on."""
    for kind, wanted, options in (("a text", False, texts), ("a benchmark", True, benchmarks)):
        given = [option for option, value in options.items() if value]
        if given and not any((entry.benchmark is not None) == wanted for entry in entries):
            raise UsageError(f"{given[0]} is for {kind}", "--on names none", f"leave {given[0]} out")


@contextlib.contextmanager
def _items_file(path: Path | None) -> "Iterator[IO[str] | None]":
    """The new file for the items' scores, if one is asked for. Raises UsageError if it is there already."""
    from gpt2cli import files

    if path is None:
        yield None
        return
    try:
        with files.naming(path), open(path, "x", encoding="utf-8") as file:
            yield file
    except FileExistsError:
        raise UsageError(f"--out {path}: exists", fix=f"rm {path}, or name another file") from None


def _print_table(rows: "list[EvaluationRow | BenchmarkRow]", is_one_text: bool) -> None:
    from gpt2cli.ui.benchmarks import print_benchmarks
    from gpt2cli.ui.tables import PAPER_NOTE, EvaluationRow, print_evaluation

    texts = [row for row in rows if isinstance(row, EvaluationRow)]
    if is_one_text:
        print_evaluation(texts, out())
    else:
        print_benchmarks(rows, out())
    if any(row.paper for row in texts):
        say(PAPER_NOTE)
