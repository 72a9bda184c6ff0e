"""The table of `gpt2 evaluate` on benchmarks and several texts: per source, a line per model and metric."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from gpt2cli.errors import counted
from gpt2cli.evaluation.benchmarks import BenchmarkData
from gpt2cli.evaluation.intervals import Estimate
from gpt2cli.evaluation.published import PUBLISHED, Published, published_figure
from gpt2cli.ui.console import aligned, printable
from gpt2cli.ui.tables import EvaluationRow

WIDTH = 80


@dataclass(frozen=True)
class BenchmarkRow:
    """One model on one benchmark. `size` is OpenAI's, if figures of that size can stand beside it."""

    model: str
    data: BenchmarkData
    metrics: Mapping[str, Estimate]
    n_items: int
    n_cut: int  # items whose context did not fit
    seconds: float
    size: str | None

    @property
    def items_per_second(self) -> float:
        return self.n_items / self.seconds

    def published(self, metric: str) -> float | None:
        """A figure for the whole of the benchmark's own data; none beside other items."""
        whole = self.data.is_own and self.n_items == self.data.n_all
        return published_figure(self.data.benchmark.name, metric, self.size) if whole else None


def print_benchmarks(rows: Sequence[BenchmarkRow | EvaluationRow], console: Console) -> None:
    """The table, the same on a terminal and in a file; below it protocols, sources, published figures."""
    by_source: dict[str, list[BenchmarkRow | EvaluationRow]] = {}
    for row in rows:
        by_source.setdefault(_title(row), []).append(row)
    lines: list[Sequence[str]] = [("model", "metric", "value", "95% interval", "published", "items/s")]
    for title, of_source in by_source.items():
        lines.append((title,))
        for row in of_source:
            lines += _benchmark_lines(row) if isinstance(row, BenchmarkRow) else _text_lines(row)
    for line in aligned(lines, range(2, 6)):
        console.print(line)
    console.print("intervals: Wilson's; of a perplexity, 1.96 standard errors of the mean nats")
    for of_source in by_source.values():
        for first, *others in map(_wrapped, _notes(of_source)):
            console.print(first)
            for line in others:
                console.print(f"    {line}")


def _title(row: BenchmarkRow | EvaluationRow) -> str:
    if isinstance(row, EvaluationRow):
        return printable(row.source.name).replace("\n", " ")
    data = row.data
    part = f"first {len(data.items):,} of " if len(data.items) < data.n_all else ""
    name = printable(data.benchmark.name if data.is_own else f"{data.benchmark.name}={data.source}")
    return f"{name}: {part}{data.n_all:,} items" + " (a miniature)" * data.is_miniature


def _benchmark_lines(row: BenchmarkRow) -> Iterable[Sequence[str]]:
    model, speed = _name(row.model), f"{row.items_per_second:,.1f}"
    for metric, found in row.metrics.items():
        value, low, high = (_shown(metric, x) for x in (found.value, found.low, found.high))
        title = metric if metric == "perplexity" else f"{metric} %"
        yield model, title, value, f"{low} to {high}", _figure(row.published(metric)), speed
        model = speed = ""


def shown_metric(metric: str, found: Estimate) -> str:
    """In a line of text: "accuracy 31.20 %", "perplexity 40.06"."""
    return f"{metric} {_shown(metric, found.value)}" + " %" * (metric != "perplexity")


def _shown(metric: str, value: float) -> str:
    if metric == "perplexity":
        return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"
    return f"{100 * value:.2f}"


def _text_lines(row: EvaluationRow) -> Iterable[Sequence[str]]:
    """Tokens of one text are not independent: their perplexity has no interval here."""
    per_word = row.result.word_perplexity(row.text)
    yield _name(row.model), "perplexity/token", f"{row.result.perplexity:,.2f}", "-", "-", ""
    yield "", "perplexity/word", f"{per_word:,.2f}", "-", _figure(row.paper), ""


def _notes(rows: Sequence[BenchmarkRow | EvaluationRow]) -> Iterable[str]:
    """Of one source: what was measured, on what, and the figures that others have published."""
    if isinstance(first := rows[0], EvaluationRow):
        counts = f"{first.result.n_tokens:,} tokens, {first.text.n_words:,} words"
        yield f"{first.source.name}: {counts}, SHA-256 {first.source.sha256[:12]}"
    else:
        benchmark, data = first.data.benchmark, first.data
        yield f"{benchmark.name}: {benchmark.protocol}"
        mini = ", bundled items of our own, not the benchmark" * data.is_miniature
        yield f"  source: {data.source}{mini}, SHA-256 {data.sha256[:12]}"
    for row in rows:
        if isinstance(row, BenchmarkRow) and row.n_cut:
            items = counted(row.n_cut, "item")
            yield f"  {row.model}: the context of {items} did not fit and lost its beginning"
    if isinstance(first, EvaluationRow):
        name = first.source.name if first.source.is_corpus else ""
    else:
        name = "" if first.data.is_miniature else first.data.benchmark.name
    for published in PUBLISHED:
        if published.benchmark == name:
            yield f"  published: {_published(published)}"


def _wrapped(paragraph: str) -> list[str]:
    return textwrap.wrap(printable(paragraph), WIDTH - 4)


def _published(row: Published) -> str:
    figures = ", ".join(f"{size} {_figure(value)}" for size, value in row.by_size.items())
    return f"{row.metric} {figures}{f' {row.note}' if row.note else ''} ({row.where})"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _name(model: str) -> str:
    return printable(model).replace("\n", " ")
