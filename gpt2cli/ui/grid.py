"""The table of a grid, as text, Markdown and JSON, and its picture."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from gpt2cli import __version__
from gpt2cli.evaluation.seed_statistics import MeanOverSeeds
from gpt2cli.training.grid import CellSummary, GridReport, GridRun
from gpt2cli.ui.console import aligned, printable
from gpt2cli.ui.plots import Band, plot_bands

NOTE = (
    "Mean and standard deviation over the seeds. Differences are those from the best cell, paired by seed,"
    " with their 95 % interval (Student's t); where it holds 0 the difference is within the noise. Time is"
    " that of the training steps alone, up to the first evaluation that found at most the loss."
)


def grid_lines(report: GridReport, width: int | None = None) -> list[str]:
    """The table as aligned lines for stdout; where they are wider than `width`, without rates and times."""
    rows = [_header(report), *(_row(cell) for cell in report.cells)]
    lines = aligned(rows, right=range(1, 7))
    if width is not None and max(map(cell_len, lines)) > width:
        lines = aligned([[*row[:4], row[7]] for row in rows], right=range(1, 4))
    return [printable(line) for line in lines]


def grid_markdown(report: GridReport, command: Sequence[str], picture: str) -> str:
    """A page with the command, the table and the picture."""
    rows = [_header(report), *(_row(cell) for cell in report.cells)]
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    table = [f"| {' | '.join(row)} |" for row in cells]
    table.insert(1, "|---|" + "---:|" * 6 + "---|")
    return "\n".join(
        [
            *("```", shlex.join(command), "```", ""),
            *table,
            *("", f"{NOTE} gpt2cli {__version__}.", "", f"![Validation loss by step]({picture})", ""),
        ]
    )


def grid_facts(report: GridReport, folder: Path, picture: Path) -> dict[str, Any]:
    """The table for scripts."""
    return {
        "folder": str(folder),
        "picture": str(picture),
        "loss": report.loss if math.isfinite(report.loss) else None,
        "cells": [_facts(cell) for cell in report.cells],
    }


def plan_lines(runs: Sequence[GridRun]) -> list[str]:
    """A line per run: how it stands, its folder, and the recipe's overrides."""
    rows = [(run.status, str(run.folder), shlex.join(run.overrides)) for run in runs]
    return [printable(line) for line in aligned(rows)]


def plot_grid(report: GridReport, out: Path, title: str) -> None:
    """Each cell's validation loss by step: the mean over the seeds, in a band from the least to the most."""
    bands = []
    for cell in report.cells:
        curves = [{step: loss for step, _, loss in one.curve} for one in cell.results if not one.is_diverged]
        shared = sorted(set[int]().union(*curves[:1]).intersection(*curves))
        columns = [[curve[step] for curve in curves] for step in shared]
        if shared:
            means = [sum(column) / len(column) for column in columns]
            bands.append(Band(cell.cell, shared, [*map(min, columns)], means, [*map(max, columns)]))
    plot_bands(bands, out, title=title, level=report.loss if math.isfinite(report.loss) else None)


def _header(report: GridReport) -> list[str]:
    return [
        *("cell", "seeds", "best loss", "from the best", "tokens/s"),
        *(f"steps to {report.loss:.3f}", f"seconds to {report.loss:.3f}", ""),
    ]


def _row(cell: CellSummary) -> list[str]:
    difference = "best" if cell.best else ""
    notes = [f"{cell.n_diverged} of {len(cell.results)} diverged"] if cell.n_diverged else []
    if found := cell.difference:
        interval = "" if found.half_width is None else f" ± {found.half_width:.4f}"
        difference = f"{found.mean:+.4f}{interval}"
        notes += ["within the noise"] if found.is_noise else []
        notes += ["one seed: no interval"] if found.is_noise is None else []
    if cell.best and (reached := cell.steps_to.n if cell.steps_to else 0) < cell.best.n:
        notes.append(f"{reached} of {cell.best.n} reached the loss")
    return [
        *(cell.cell, str(cell.best.n if cell.best else 0), _mean(cell.best, ".4f"), difference),
        *(
            _mean(cell.tokens_per_second, ",.0f"),
            _mean(cell.steps_to, ",.0f"),
            _mean(cell.seconds_to, ",.1f"),
        ),
        "; ".join(notes),
    ]


def _mean(found: MeanOverSeeds | None, form: str) -> str:
    if found is None:
        return "-"
    return f"{found.mean:{form}}" + ("" if found.std is None else f" ± {found.std:{form}}")


def _facts(cell: CellSummary) -> dict[str, Any]:
    def numbers(found: MeanOverSeeds | None) -> dict[str, Any] | None:
        return asdict(found) if found else None

    found = cell.difference
    return {
        "cell": cell.cell,
        "n_diverged": cell.n_diverged,
        "best_loss": numbers(cell.best),
        "tokens_per_second": numbers(cell.tokens_per_second),
        "steps_to_loss": numbers(cell.steps_to),
        "seconds_to_loss": numbers(cell.seconds_to),
        "difference": asdict(found) | {"within_the_noise": found.is_noise} if found else None,
        "runs": [
            {
                "folder": str(one.folder),
                "seed": one.seed,
                "diverged": one.is_diverged,
                "best_loss": one.best if one.curve else None,
                "tokens_per_second": one.tokens_per_second,
            }
            for one in cell.results
        ],
    }
