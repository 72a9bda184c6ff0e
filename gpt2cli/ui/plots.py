"""The pictures of a run: loss.png from metrics.jsonl, and the confusion matrix.

Figures are matplotlib objects without pyplot, which would keep them in a global list and pick a window
system.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from gpt2cli import files
from gpt2cli.evaluation.class_metrics import ClassificationMetrics
from gpt2cli.training.metrics_log import each_record
from gpt2cli.ui.tables import MOST_CLASSES, short_label

_INK, _GREY, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_TRAIN, _VALIDATION = "#3b82b8", "#d1495b"
# Of runs in one picture, told apart by the colour-blind (Okabe and Ito 2008); then the same, dashed.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MOST_POINTS = 8192  # of the training loss; the picture is 1,200 pixels wide
_SMOOTH_FROM = 200  # points; fewer are drawn as they are
# From this ratio on, a linear axis would spend its space on the first steps.
_LOG_FROM_RATIO = 4.0


@dataclass(frozen=True)
class Curves:
    """Points by step, oldest first; of a step done twice (a resumed run), the later one."""

    train: list[tuple[int, float]]
    validation: list[tuple[int, float]]
    tokens_per_step: float  # 0.0 where it is unknown


def plot_losses(metrics: Path, out: Path, *, title: str = "", tokens_axis: bool = True) -> bool:
    """Draw training and validation loss (nats per token) over steps, and over tokens seen above.

    `out` is replaced atomically by a PNG. Returns False and writes nothing as long as there is no finite
    loss.
    """
    curves = read_curves(metrics)
    if not curves.train and not curves.validation:
        return False
    with font_list_beside(out):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    _draw_train(axes, curves.train)
    _draw_validation(axes, curves.validation)
    _dress(axes, [loss for _, loss in [*curves.train, *curves.validation]], title)
    if tokens_axis and curves.tokens_per_step:
        _add_tokens(axes, curves.tokens_per_step)
    with files.replacing_file(out) as file:
        figure.savefig(file, format="png")
    return True


def plot_runs(
    runs: Sequence[tuple[str, Path]], out: Path, x: Literal["steps", "tokens", "time"]
) -> list[str]:
    """Draw the losses of several runs, (label, metrics.jsonl): validation as a line with points, training
    pale. Writes `out` if any run has a loss. Returns the labels of runs without one.
    """
    found = [(label, read_history(metrics)) for label, metrics in runs]
    drawn = [(label, points) for label, points in found if points]
    if drawn:
        with font_list_beside(out):
            from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        for n, (label, points) in enumerate(drawn):
            _draw_history(axes, label, points, x, _COLOURS[n % len(_COLOURS)], dashed=n >= len(_COLOURS))
        losses = [point.loss for _, points in drawn for point in points]
        _dress(axes, losses, "")
        axes.set_xlabel(
            {"steps": "step", "tokens": "tokens seen", "time": "minutes of training"}[x], color=_INK
        )
        if x == "tokens":
            axes.xaxis.set_major_formatter(lambda value, _: _short_count(value))
        with files.replacing_file(out) as file:
            figure.savefig(file, format="png")
    return [label for label, points in found if not points]


def _draw_history(
    axes: Any, label: str, points: "Sequence[HistoryPoint]", x: str, colour: str, *, dashed: bool
) -> None:
    """Where there are evaluations they carry the label; the training loss is pale behind them."""

    def place(point: HistoryPoint) -> float:
        return {"steps": point.step, "tokens": point.n_tokens, "time": point.seconds / 60}[x]

    name = label.replace("$", r"\$")
    train = [point for point in points if not point.is_validation]
    validation = [point for point in points if point.is_validation]
    train = train[:: max(1, len(train) // MOST_POINTS)]
    losses = tuple(point.loss for point in train)
    smooth = _smooth(losses) if len(losses) >= _SMOOTH_FROM else losses
    style: dict[str, Any] = {"color": colour, "linestyle": "--" if dashed else "-"}
    if train:
        pale = (
            {"alpha": 0.4, "linewidth": 1.0}
            if validation
            else {"linewidth": 1.6, "label": f"{name}, training"}
        )
        axes.plot([place(point) for point in train], smooth, **style, **pale)
    if validation:
        best = min(point.loss for point in validation)
        axes.plot(
            [place(point) for point in validation],
            [point.loss for point in validation],
            **style,
            linewidth=1.8,
            marker="o",
            markersize=4 if len(validation) <= 40 else 0,
            label=f"{name}, validation, best {best:.3f}",
        )


def plot_confusion(
    scores: ClassificationMetrics, labels: Sequence[str], out: Path, *, title: str = ""
) -> None:
    """Draw the matrix, each row in shares of its class; `out` is replaced atomically by a PNG."""
    with font_list_beside(out):
        from matplotlib.figure import Figure

    k = len(labels)
    side = min(12.0, 3.2 + 0.5 * k)  # inches
    figure = Figure(figsize=(side + 0.6, side), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    shares = [[n / max(1, sum(row)) for n in row] for row in scores.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    # A dollar sign begins TeX, and a bad formula raises.
    names = [short_label(label).replace("$", r"\$") for label in labels]
    axes.set_xticks(range(k), names, rotation=45 if k > 4 else 0, ha="right" if k > 4 else "center")
    axes.set_yticks(range(k), names)
    axes.set_xlabel("predicted", color=_INK)
    axes.set_ylabel("actual", color=_INK)
    axes.tick_params(color=_GREY, labelcolor=_INK, labelsize=9 if k <= MOST_CLASSES else 6)
    for truth, row in enumerate(scores.confusion if k <= MOST_CLASSES else ()):
        for predicted, count in enumerate(row):
            color = "white" if shares[truth][predicted] > 0.5 else _INK
            axes.text(predicted, truth, f"{count:,}", ha="center", va="center", color=color, fontsize=10)
    heading = f"{title}: accuracy {scores.accuracy:.3f}, macro F1 {scores.macro_f1:.3f}"
    axes.set_title(heading.replace("$", r"\$"), loc="left", color=_INK, fontsize=10, fontweight="bold")
    with files.replacing_file(out) as file:
        figure.savefig(file, format="png")


@dataclass(frozen=True)
class Band:
    """A mean with what lies around it, by step."""

    label: str
    steps: list[int]
    low: list[float]
    mean: list[float]
    high: list[float]


def plot_bands(bands: Sequence[Band], out: Path, *, title: str = "", level: float | None = None) -> None:
    """Draw each mean as a line in a band from low to high; `level` is a dotted line across. `out` is replaced
    atomically by a PNG.
    """
    with font_list_beside(out):
        from matplotlib import colormaps
        from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained", facecolor="white")
    axes, colors = figure.add_subplot(), colormaps["tab10"]
    for i, band in enumerate(bands):
        axes.fill_between(band.steps, band.low, band.high, color=colors(i % 10), alpha=0.2, linewidth=0)
        label = band.label.replace("$", r"\$")
        axes.plot(band.steps, band.mean, color=colors(i % 10), linewidth=1.6, label=label)
    if level is not None:
        axes.axhline(level, color=_GREY, linewidth=0.8, linestyle=":")
    highest = max((value for band in bands for value in band.high[1:] or band.high), default=0.0)
    lowest = min((value for band in bands for value in band.low), default=0.0)
    if highest > lowest:  # the first evaluation, of random weights, would flatten the rest
        axes.set_ylim(lowest - 0.05 * (highest - lowest), highest + 0.05 * (highest - lowest))
    _frame(axes, "validation loss (nats per token)", title)
    with files.replacing_file(out) as file:
        figure.savefig(file, format="png")


@dataclass(frozen=True)
class HistoryPoint:
    """A loss, and how far training was then: its step, tokens and seconds of training alone."""

    step: int
    n_tokens: int
    seconds: float
    loss: float
    is_validation: bool


def read_history(metrics: Path) -> list[HistoryPoint]:
    """All finite losses in a metrics.jsonl, in its order."""
    points: list[HistoryPoint] = []
    n_tokens, seconds = 0, 0.0
    for record in each_record(metrics, lambda line: True):
        kind, step, loss = record.get("event"), record.get("step"), record.get("loss")
        if kind not in ("StepDone", "EvalDone") or not _is_finite(step):
            continue
        if kind == "StepDone":
            n_tokens += int(record["n_tokens"]) if _is_finite(record.get("n_tokens")) else 0
            seconds += record["seconds"] if _is_finite(record.get("seconds")) else 0.0
        if _is_finite(loss):
            points.append(HistoryPoint(int(step), n_tokens, seconds, float(loss), kind == "EvalDone"))
    return points


@contextlib.contextmanager
def font_list_beside(out: Path) -> Iterator[None]:
    """For the first import of matplotlib, which writes a list of fonts into the user's home: where none
    can be written to, it lies beside the picture meanwhile.
    """
    named = os.environ.get("MPLCONFIGDIR")
    home = named or os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~")
    if "matplotlib.font_manager" in sys.modules or os.access(home, os.W_OK):
        yield
        return
    with tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=out.parent) as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("MPLCONFIGDIR")
            os.environ |= {"MPLCONFIGDIR": named} if named else {}


def read_curves(metrics: Path) -> Curves:
    """The finite losses in a metrics.jsonl: of a long run every second step, or fourth, or eighth, ..."""
    train: dict[int, float] = {}
    validation: dict[int, float] = {}
    n_tokens = n_steps = n_seen = 0
    every = 1  # of so many steps one is parsed

    def is_due(line: bytes) -> bool:
        nonlocal n_seen
        if b'"StepDone"' not in line:
            return True
        n_seen += 1
        return (n_seen - 1) % every == 0

    for record in each_record(metrics, is_due):
        step, loss = record.get("step"), record.get("loss")
        if not _is_finite(step) or not _is_finite(loss):
            continue
        if record.get("event") == "StepDone":
            train[int(step)] = float(loss)
            if _is_finite(record.get("n_tokens")):
                n_tokens, n_steps = n_tokens + int(record["n_tokens"]), n_steps + 1
        elif record.get("event") == "EvalDone":
            validation[int(step)] = float(loss)
        if len(train) > MOST_POINTS:
            train, every = dict(list(train.items())[::2]), 2 * every
    return Curves(sorted(train.items()), sorted(validation.items()), n_tokens / n_steps if n_steps else 0.0)


def _is_finite(value: Any) -> TypeGuard[float]:
    # The bounds also refuse NaN, infinity and integers that no float holds.
    return isinstance(value, int | float) and -1e18 < value < 1e18


def _draw_train(axes: Any, points: list[tuple[int, float]]) -> None:
    if not points:
        return
    steps, losses = zip(*points, strict=True)
    noisy = len(points) >= _SMOOTH_FROM
    style = {"linewidth": 0.8, "alpha": 0.35} if noisy else {"linewidth": 1.6}
    marker = "o" if len(points) == 1 else None
    axes.plot(steps, losses, color=_TRAIN, marker=marker, label=None if noisy else "training", **style)
    if noisy:
        axes.plot(steps, _smooth(losses), color=_TRAIN, linewidth=1.8, label="training, smoothed")


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Moving mean with a centred window, which is narrower at both ends."""
    reach = max(1, len(values) // 50)
    total = [0.0]
    for value in values:
        total.append(total[-1] + value)
    means = []
    for i in range(len(values)):
        first, last = i - min(reach, i), min(i + min(reach, i), len(values) - 1)
        means.append((total[last + 1] - total[first]) / (last + 1 - first))
    return means


def _draw_validation(axes: Any, points: list[tuple[int, float]]) -> None:
    if not points:
        return
    steps, losses = zip(*points, strict=True)
    best_step, best = min(points, key=lambda point: point[1])
    axes.plot(
        steps,
        losses,
        color=_VALIDATION,
        linewidth=1.6,
        marker="o",
        markersize=4 if len(points) <= 40 else 0,
        # In the legend it never covers a curve, as a label beside the point would.
        label=f"validation, best {best:.3f} at step {best_step:,}",
    )
    axes.plot([best_step], [best], "o", color=_VALIDATION, markersize=9, markerfacecolor="none")


def _dress(axes: Any, losses: Sequence[float], title: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if min(losses) > 0 and max(losses) / min(losses) >= _LOG_FROM_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _frame(axes, "loss (nats per token)", title)


def _frame(axes: Any, label: str, title: str) -> None:
    """Steps below, the loss on the left, and a legend."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel(label, color=_INK)
    if title:
        # A dollar sign begins TeX, and a bad formula raises.
        axes.set_title(title.replace("$", r"\$"), loc="left", color=_INK, fontsize=12, fontweight="bold")
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.set_xlim(left=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GREY)
    axes.tick_params(which="both", color=_GREY, labelcolor=_INK, labelsize=9)
    axes.legend(frameon=False, labelcolor=_INK, fontsize=9, loc="upper right")


def _add_tokens(axes: Any, tokens_per_step: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    above = axes.secondary_xaxis(
        "top", functions=(lambda step: step * tokens_per_step, lambda tokens: tokens / tokens_per_step)
    )
    above.xaxis.set_major_locator(MaxNLocator(nbins=8))
    above.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_count(value)))
    above.set_xlabel("tokens seen", color=_GREY, fontsize=9)
    above.spines["top"].set_visible(False)
    above.tick_params(color=_GRID, labelcolor=_GREY, labelsize=8)


def _short_count(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
