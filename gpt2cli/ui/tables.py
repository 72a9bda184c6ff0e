"""Owns how a classifier's scores look: a table by class and a confusion matrix, and confusion.png."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt2cli import files
from gpt2cli.evaluation.classes import Scores
from gpt2cli.ui.console import printable

_INK, _GREY = "#1f2933", "#7b8794"
LONGEST = 24  # characters of a label in a heading
NUMBERED = 20  # classes; beyond that a picture has no room for a number in each cell, nor a screen


def show_scores(scores: Scores, labels: Sequence[str], console: Console) -> None:
    names = [_short(label) for label in labels]
    table = _table("class", "precision", "recall", "F1", "texts")
    for name, one in zip(names, scores.classes, strict=True):
        figures = (f"{value:.3f}" for value in (one.precision, one.recall, one.f1))
        table.add_row(Text(name), *figures, f"{one.support:,}")
    n_texts = sum(one.support for one in scores.classes)
    table.add_row("macro mean", "", "", f"{scores.macro_f1:.3f}", f"{n_texts:,}")
    console.print(table)
    console.print(f"accuracy {scores.accuracy:.4f}", style="strong")
    if len(labels) > NUMBERED:
        return
    matrix = _table("is \\ said", *names)
    for name, row in zip(names, scores.confusion, strict=True):
        matrix.add_row(Text(name), *map(str, row))
    console.print(matrix)


def plot_confusion(scores: Scores, labels: Sequence[str], out: Path, *, title: str = "") -> None:
    """Draw the matrix, each row in shares of its class; `out` is replaced atomically by a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    k = len(labels)
    side = min(12.0, 3.2 + 0.5 * k)  # inches
    figure = Figure(figsize=(side + 0.6, side), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = [[n / max(1, sum(row)) for n in row] for row in scores.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    # A dollar sign would begin TeX, and a bad formula would raise.
    names = [_short(label).replace("$", r"\$") for label in labels]
    axes.set_xticks(range(k), names, rotation=45 if k > 4 else 0, ha="right" if k > 4 else "center")
    axes.set_yticks(range(k), names)
    axes.set_xlabel("said", color=_INK)
    axes.set_ylabel("is", color=_INK)
    axes.tick_params(color=_GREY, labelcolor=_INK, labelsize=9 if k <= NUMBERED else 6)
    for truth, row in enumerate(scores.confusion if k <= NUMBERED else ()):
        for said, count in enumerate(row):
            color = "white" if shares[truth][said] > 0.5 else _INK
            axes.text(said, truth, f"{count:,}", ha="center", va="center", color=color, fontsize=10)
    heading = f"{title}: accuracy {scores.accuracy:.3f}, macro F1 {scores.macro_f1:.3f}"
    axes.set_title(heading.replace("$", r"\$"), loc="left", color=_INK, fontsize=10, fontweight="bold")
    with files.replacing_file(out) as file:
        figure.savefig(file, format="png")


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(Text(first), no_wrap=True)
    for heading in others:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    return table


def _short(label: str) -> str:
    text = printable(label).replace("\n", "␊").replace("\t", " ")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
