"""The tables that commands print: a classifier's scores, an evaluation, the receipt of a conversion,
the choices of a sampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt2cli.evaluation.class_metrics import ClassificationMetrics
from gpt2cli.evaluation.eval_text import EncodedText, EvalText
from gpt2cli.evaluation.perplexity import PerplexityProgress
from gpt2cli.evaluation.scoring import SlidingWindow
from gpt2cli.generation.trace import ChoiceTrace
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.ui.console import aligned, printable, shortened
from gpt2cli.ui.inspect import token_text

MOST_CLASSES = 20  # beyond that a screen has no room for a confusion matrix, nor a picture for its numbers
LONGEST_LABEL = 24  # characters in a heading
PAPER_NOTE = (
    "paper: Radford et al. 2019, zero-shot, for this size. They undid the tokenisation of the test set"
    ' ("invertible de-tokenizers": no " @-@ ", no spaces before commas) and counted per word of the'
    " original, so it is to be read beside perplexity/word, which the tokenised text here makes higher."
)


@dataclass(frozen=True)
class EvaluationRow:
    """One model's result on a text; `paper` is the published figure for the model's size, where there is
    one.
    """

    model: str
    source: EvalText
    text: EncodedText  # of the source, in the model's tokens
    sliding: SlidingWindow
    result: PerplexityProgress
    paper: float | None


def print_classes(scores: ClassificationMetrics, labels: Sequence[str], console: Console) -> None:
    """Precision, recall and F1 per class, and the confusion matrix: a row per true class."""
    names = [short_label(label) for label in labels]
    table = _table("class", "precision", "recall", "F1", "texts")
    for name, one in zip(names, scores.classes, strict=True):
        figures = (f"{value:.3f}" for value in (one.precision, one.recall, one.f1))
        table.add_row(Text(name), *figures, f"{one.support:,}")
    n_texts = sum(one.support for one in scores.classes)
    table.add_row("macro mean", "", "", f"{scores.macro_f1:.3f}", f"{n_texts:,}")
    console.print(table)
    console.print(f"accuracy {scores.accuracy:.4f}", style="strong")
    if len(labels) > MOST_CLASSES:
        return
    matrix = _table("actual \\ predicted", *names)
    for name, row in zip(names, scores.confusion, strict=True):
        matrix.add_row(Text(name), *map(str, row))
    console.print(matrix)


def print_evaluation(rows: Sequence[EvaluationRow], console: Console) -> None:
    """The table, the same on a terminal and in a file."""
    with_paper = any(row.paper is not None for row in rows)
    lines = [[title for title, _ in _evaluation_cells(rows[0], with_paper)]]
    lines += [[cell for _, cell in _evaluation_cells(row, with_paper)] for row in rows]
    for line in aligned(lines, range(1, len(lines[0]))):
        console.print(line)


def _evaluation_cells(row: EvaluationRow, with_paper: bool) -> list[tuple[str, str]]:
    result, text = row.result, row.text
    cells = [
        ("model", printable(row.model).replace("\n", " ")),
        *([("split", row.source.split)] if row.source.split else []),
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


def print_receipt(receipt: dict[str, Any], console: Console, details: str) -> None:
    """The result of the comparison, then what was converted; `details` says where each tensor stands."""
    _print_verification(receipt["verification"], console)
    if back := receipt.get("read_back"):
        console.print(f"read back: all {back['tensors']} tensors in the file are right", style="good")
    for note in receipt["notes"]:
        console.print(printable(f"note: {note}"))
    for name, label in (("kept", "kept as they are"), ("left_out", "left out")):
        if receipt.get(name):
            console.print(printable(f"{label}: {', '.join(receipt[name])}"))
    source = receipt["source"]
    files = ", ".join(source["files"])
    console.print(printable(f"source: {source['path']} ({source['format']}; {files})"))
    parameters = receipt["parameters"]
    size = f", those of {parameters['size']}" if parameters["size"] else ", not one of OpenAI's sizes"
    n_tensors = len(receipt["tensors"])
    console.print(f"tensors: {n_tensors}, all used; parameters: {parameters['count']:,}{size}")
    console.print(printable(f"each tensor's source and each file's SHA-256: {details}"), style="faint")


def _print_verification(found: dict[str, Any] | None, console: Console) -> None:
    if found is None:
        console.print("not compared with the source (--verify does it)", style="warn")
        return
    console.print(
        f"PASS: over {found['tokens']} tokens the logits differ from the NumPy reference by at most"
        f" {found['max_difference']:.1e} ({found['tolerance']:g} allowed), in fp32 by"
        f" {found['max_difference_fp32']:.1e}",
        style="good",
    )
    console.print(
        f"perplexity on a fixed paragraph: {_number(found['perplexity'])},"
        f" of the source {_number(found['perplexity_of_source'])}"
    )


def trace_lines(trace: ChoiceTrace, place: int, tokenizer: Tokenizer) -> list[str]:
    """One choice of `gpt2 generate --trace`: candidates down, stages across; a star marks the drawn
    one, a dash what a filter has removed.

    `place` is the token's number among the new ones, from 1.
    """
    rows: list[tuple[str, ...]] = [("", "id", "token", *trace.stages)]
    for one in trace.candidates:
        chances = ("-" if p == 0 else f"{p:.2%}" for p in one.probabilities)
        star = "*" if one.id == trace.id else ""
        rows.append((star, f"{one.id}", token_text(tokenizer, one.id), *chances))
    rows.append(("", "", "candidates left", *(f"{n:,}" for n in trace.n_left)))
    how = f"drawn with {trace.uniform:.4f}" if trace.n_left[-1] > 1 else "the only one left"
    title = f"token {place}: {token_text(tokenizer, trace.id)}, {how}"
    return ["", title, *aligned(rows, {1, *range(3, 3 + len(trace.stages))})]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:,.2f}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(Text(first), no_wrap=True)
    for heading in others:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    return table


def short_label(label: str) -> str:
    """A label as one terminal-safe line, truncated if long."""
    return shortened(printable(label).replace("\n", "␊").replace("\t", " "), LONGEST_LABEL)
