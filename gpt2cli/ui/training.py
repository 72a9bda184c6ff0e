"""The display of a training run: its events as a growing table over a progress bar, or as plain lines; and
that of the learning rate finder.
"""

import signal
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from gpt2cli.training.events import (
    CheckpointSaved,
    EvalDone,
    Event,
    SpikeSeen,
    StepDone,
    StepSkipped,
    Stopped,
)
from gpt2cli.ui.console import aligned, is_terminal, print_message, printable
from gpt2cli.ui.progress import State

if TYPE_CHECKING:
    from gpt2cli.training.find_lr import RateTried

ROWS, BAR = 20, 40  # of the learning rate finder

# (heading, width) of the table on a terminal; narrower ones get the plain lines, under a bar.
_COLUMNS = (
    ("step", 11),
    ("train loss", 10),
    ("lr", 7),
    ("grad norm", 9),
    ("tok/s", 7),
    ("val loss", 8),
    ("perplexity", 10),
)
_TABLE_WIDTH = sum(width for _, width in _COLUMNS) + 2 * len(_COLUMNS) + 6


class TrainingView:
    """A context manager: `with TrainingView(...) as view: view.show(event)`.

    A line appears every `log_every` steps, at the first step seen and at the last one. Tokens per
    second count the steps since the line before, without evaluations and saves.
    """

    def __init__(
        self,
        n_steps: int,
        console: Console,
        *,
        log_every: int,
        first_step: int = 0,
        start: str = "the base",
    ) -> None:
        """`first_step`: steps done before, in a resumed run. `start`: what the model is at step 0."""
        self.n_steps, self.console, self.log_every = n_steps, console, log_every
        self.live = is_terminal(console)
        self.tabular = self.live and console.width >= _TABLE_WIDTH
        self.first_step = self.step = first_step
        self.start = start
        self._n_tokens, self._seconds, self._rate = 0, 0.0, ""
        self._said_one = self._has_headings = False
        self._progress = self._bar() if self.live else None
        if self._progress:
            self._progress.add_task("", total=n_steps, completed=first_step, rate="", loss="")

    def __enter__(self) -> "TrainingView":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def show(self, event: Event) -> None:
        _SHOW[type(event)](self, event)

    def note(self, text: str, style: str = "") -> None:
        """Print any text above the bar: a notice, a sample."""
        print_message(self.console, Text(printable(text), style=style))

    def _step_done(self, event: StepDone) -> None:
        self.step = event.step
        self._n_tokens += event.n_tokens
        self._seconds += event.seconds
        due = event.step % self.log_every == 0 or event.step == event.n_steps or not self._said_one
        if due:
            self._rate = f"{self._n_tokens / self._seconds:,.0f}" if self._seconds > 0 else ""
            self._n_tokens, self._seconds, self._said_one = 0, 0.0, True
        pace = f"{self._rate} tok/s" if self._rate else ""
        if self._progress:
            now = f"loss {event.loss:.3f}"
            self._progress.update(self._progress.task_ids[0], completed=event.step, rate=pace, loss=now)
        if not due:
            return
        loss, lr, norm = f"{event.loss:.3f}", f"{event.lr:.1e}", f"{event.grad_norm:.2f}"
        share = "" if event.utilisation is None else f"mfu {event.utilisation:.0%}"
        if self.tabular:
            self._row(self._place(event.step), loss, lr, norm, self._rate, "", "", note=share)
        else:
            parts = [self._at(event.step), f"loss {loss}", f"lr {lr}", f"norm {norm}"]
            self._line("  ".join(parts + ([pace] if pace else []) + ([share] if share else [])))

    def _eval_done(self, event: EvalDone) -> None:
        loss, perplexity = f"{event.loss:.3f}", _perplexity(event.perplexity)
        style = "good" if event.is_best else ""
        # A measure of the task says more than a perplexity, which is the loss again.
        notes = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in event.metrics.items()]
        if event.bits_per_byte is not None:
            notes.append(f"bits/byte {event.bits_per_byte:.3f}")
        over = f"over {event.n_tokens:,} {'texts' if event.metrics else 'tokens'}"
        best = ["best"] if event.is_best else []
        if self.tabular:
            row = [self._place(event.step), "", "", "", "", loss, "" if event.metrics else perplexity]
            notes += [over] if self.console.width >= 100 else []
            self._row(*row, note="  ".join(notes + best), style=style)
        else:
            notes = notes if event.metrics else [f"perplexity {perplexity}", *notes]
            cells = [f"{self._at(event.step)}  val loss {loss}", *notes]
            whole = "  ".join([*cells, over, *best])
            too_wide = self.live and len(whole) > self.console.width
            self._line("  ".join(cells + best) if too_wide else whole, style)

    def _checkpoint_saved(self, event: CheckpointSaved) -> None:
        self.note(f"saved {event.path.name} in {event.seconds:.1f} s", "faint")

    def _step_skipped(self, event: StepSkipped) -> None:
        self.note(
            f"warning: step {event.step} was skipped: loss {event.loss:.3f},"
            f" gradient norm {event.grad_norm:.2f} "
            f"({event.n_skipped} in a row; the run stops after {event.limit})",
            "warn",
        )

    def _spike_seen(self, event: SpikeSeen) -> None:
        self.note(
            f"warning: the loss at step {event.step} is {event.loss:.3f},"
            f" far above its recent {event.typical:.3f}",
            "warn",
        )

    def _stopped(self, event: Stopped) -> None:
        if event.reason == "signal":
            why = f"stopped by {signal.Signals(event.signal).name}"
        else:
            why = _REASONS[event.reason]
        measure = {"loss": "validation loss"}.get(event.best_by, event.best_by.replace("_", " "))
        best = _best_so_far(event, measure, self.start)
        self.note(f"{why} at step {event.step} of {self.n_steps}" + (f"; {best}" if best else ""), "strong")
        if event.reason in ("finished", "patience") and event.best_step == 0 and event.kept is not None:
            effect = "did not make it better" if event.kept == event.best else "made it worse"
            self.note(
                f"warning: training {effect}: {measure} {event.best:.3f} before,"
                f" {event.kept:.3f} at the best saved step; a smaller optim.lr may help",
                "warn",
            )

    def _row(self, *cells: str, note: str = "", style: str = "") -> None:
        if not self._has_headings:  # below what is said of the run
            self._line("  ".join(heading.rjust(width) for heading, width in _COLUMNS), "strong")
            self._has_headings = True
        row = "  ".join(cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=False))
        self._line(f"{row}  {note}".rstrip(), style)

    def _place(self, step: int) -> str:
        return f"{step}/{self.n_steps}"

    def _at(self, step: int) -> str:
        return f"step {self._place(step)}"

    def _line(self, text: str, style: str = "") -> None:
        # Text, not str: Rich would interpret markup, and colour numbers.
        self.console.print(Text(text, style=style), soft_wrap=True)

    def _bar(self) -> Progress:
        """The progress bar, as wide as fits. stdout is untouched: it is data."""
        steps = TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False)
        columns: list[ProgressColumn] = [steps, TimeRemainingColumn(compact=True)]
        if self.console.width >= 40:
            columns.insert(0, BarColumn(bar_width=None))
        if self.console.width >= 60:
            columns += [TextColumn("left {task.fields[rate]}", markup=False)]
        if self.console.width >= 50:
            columns.append(TextColumn("{task.fields[loss]}", markup=False))
        return Progress(
            *columns,
            console=self.console,
            redirect_stdout=False,
            transient=True,
            expand=True,
            speed_estimate_period=600,  # seconds; the default of 30 is too short for slow steps
        )


def trying(tried: "RateTried") -> State:
    """The progress of the learning rate finder."""
    from gpt2cli.training.find_lr import STEPS

    return State("learning rates", tried.step, STEPS, f"lr {tried.lr:.1e}  loss {tried.smoothed:.3f}")


def rate_lines(tried: "Sequence[RateTried]") -> list[str]:
    """The losses of the learning rate finder: about ROWS lines with rate, loss, its running mean, and a bar
    for how far that is above the lowest one.
    """
    best = min(tried, key=lambda one: one.smoothed)
    shown = [one for one in tried if one.step % max(1, len(tried) // ROWS) == 0 or one is best]
    lowest, highest = best.smoothed, max(one.smoothed for one in shown)
    rows = [("lr", "loss", "smoothed", "")]
    for one in shown:
        share = (one.smoothed - lowest) / (highest - lowest) if highest > lowest else 0.0
        bar = "#" * round(share * BAR) + " lowest" * (one is best)
        rows.append((f"{one.lr:.1e}", f"{one.loss:.3f}", f"{one.smoothed:.3f}", bar))
    return aligned(rows, right=range(3))


def _best_so_far(event: Stopped, measure: str, start: str) -> str:
    """The best evaluation, and where its weights are not saved, the best one whose weights are; else ""."""
    if event.best is None:
        return ""
    if event.kept is None or event.kept_step == event.best_step:
        return f"best {measure} {event.best:.3f} at step {event.best_step}"
    other = f"{start} at step 0" if event.best_step == 0 else f"step {event.best_step}, not saved any more,"
    return f"best saved: step {event.kept_step}, {measure} {event.kept:.3f}; {other} had {event.best:.3f}"


def _perplexity(value: float) -> str:
    return f"{value:,.1f}" if value < 1e6 else f"{value:.1e}"


_SHOW: dict[type, Callable[[TrainingView, Any], None]] = {
    StepDone: TrainingView._step_done,
    EvalDone: TrainingView._eval_done,
    CheckpointSaved: TrainingView._checkpoint_saved,
    StepSkipped: TrainingView._step_skipped,
    SpikeSeen: TrainingView._spike_seen,
    Stopped: TrainingView._stopped,
}

_REASONS = {
    "finished": "finished",
    "patience": "stopped early because the validation loss no longer falls,",
    "time": "stopped after run.max_minutes,",
}
