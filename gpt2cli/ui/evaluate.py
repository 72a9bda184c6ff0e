"""Owns what a person sees while texts are scored, and the table of the results."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt2cli.evaluation.perplexity import Scoring, Sliding, Text
from gpt2cli.ui.console import is_terminal, printable

LINE_SECONDS = 5.0  # between plain progress lines
PAPER_NOTE = (
    "paper: Radford et al. 2019, zero-shot, for this size. They undid the tokenisation of the test set"
    ' ("invertible de-tokenizers": no " @-@ ", no spaces before commas) and counted per word of the'
    " original, so it is to be read beside perplexity/word, which the tokenised text here makes higher."
)


@dataclass(frozen=True)
class Row:
    """One model's result; `paper` is the published figure for its size, where there is one."""

    model: str
    text: Text
    sliding: Sliding
    result: Scoring
    paper: float | None


def show_scoring(steps: Iterator[Scoring], console: Console, label: str) -> Scoring:
    """Draw the progress; returns the last item. Interrupted, states what there is until then."""
    last: Scoring | None = None
    try:
        for step in _bar(steps, console, label) if is_terminal(console) else _lines(steps, console, label):
            last = step
    except (KeyboardInterrupt, SystemExit):
        if last:
            console.print(printable(f"partial: {label}: {_so_far(last)}"), style="warn")
        raise
    assert last is not None, "a text without tokens is refused before"
    return last


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """The table, the same on a terminal and in a file."""
    with_paper = any(row.paper is not None for row in rows)
    lines = [[title for title, _ in _cells(rows[0], with_paper)]]
    lines += [[cell for _, cell in _cells(row, with_paper)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        numbers = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        console.print("  ".join([first.ljust(widths[0]), *numbers]))


def _cells(row: Row, with_paper: bool) -> list[tuple[str, str]]:
    result, text = row.result, row.text
    cells = [
        ("model", printable(row.model).replace("\n", " ")),
        ("loss", f"{result.loss:.4f}"),
        ("perplexity/token", f"{result.perplexity:,.2f}"),
        ("perplexity/word", f"{result.word_perplexity(text):,.2f}"),
        ("bits/byte", f"{result.bits_per_byte(text):.4f}"),
        ("tokens", f"{result.n_tokens:,}"),
        ("context", str(row.sliding.context)),
        ("stride", str(row.sliding.stride)),
        ("tokens/s", f"{result.tokens_per_second:,.0f}"),
    ]
    return cells + ([("paper", f"{row.paper:.2f}" if row.paper else "-")] if with_paper else [])


def _bar(steps: Iterator[Scoring], console: Console, label: str) -> Iterator[Scoring]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(printable(label), total=None, facts="")
        for step in steps:
            bar.update(task, completed=step.n_tokens, total=step.n_total, facts=_speed(step))
            yield step


def _lines(steps: Iterator[Scoring], console: Console, label: str) -> Iterator[Scoring]:
    said = time.monotonic()
    for step in steps:
        if time.monotonic() - said >= LINE_SECONDS and step.n_tokens < step.n_total:
            part = f"{step.n_tokens / step.n_total:4.0%}"
            console.print(printable(f"{label}: {part}  {_speed(step)}"))
            said = time.monotonic()
        yield step


def _speed(step: Scoring) -> str:
    return f"loss {step.loss:.4f}, {step.tokens_per_second:,.0f} tokens/s"


def _so_far(step: Scoring) -> str:
    return (
        f"{step.n_tokens:,} of {step.n_total:,} tokens: loss {step.loss:.4f},"
        f" perplexity/token {step.perplexity:,.2f}"
    )
