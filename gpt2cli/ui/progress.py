"""The progress of all long jobs, on stderr: a bar on a terminal, occasional plain lines elsewhere.

A job is an iterator of steps; a state function maps a step to its progress. Those of the commands are
below.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from gpt2cli.ui.console import amount, err, is_terminal, printable

if TYPE_CHECKING:
    from gpt2cli.convert.pipeline import ConvertProgress
    from gpt2cli.data.prepare_pipeline import PrepareProgress as Preparing
    from gpt2cli.evaluation.perplexity import PerplexityProgress
    from gpt2cli.hub.downloads import DownloadProgress
    from gpt2cli.model.config import GPT2Config

LINE_SECONDS = 5.0  # between plain lines
Step = TypeVar("Step")


@dataclass(frozen=True)
class State:
    """The progress of a job: `done` of `total` (None: unknown), in any unit."""

    label: str
    done: float = 0
    total: float | None = None
    facts: str = ""  # beside the bar: a count, a speed, a loss
    plain: str = ""  # printed instead of a bar
    note: str = ""  # a warning, with or without a bar


def track(
    steps: Iterable[Step], console: Console, state: Callable[[Step], State], every: float = LINE_SECONDS
) -> Generator[Step, None, None]:
    """The same steps, with their progress shown; a plain line at most every `every` seconds.

    A generator of steps is always closed at the end.
    """
    try:
        with showing(console, every) as show:
            for step in steps:
                now = state(step)
                show(now)
                if now.note:
                    console.print(printable(now.note), style="warn")
                yield step
    finally:
        if close := getattr(steps, "close", None):
            close()


def finish(
    steps: Iterable[Step], console: Console, state: Callable[[Step], State], every: float = LINE_SECONDS
) -> Step:
    """Run the job to its end with its progress shown; returns the last step, which holds the result."""
    with contextlib.closing(track(steps, console, state, every)) as tracked:
        *_, last = tracked
    return last


def showing(
    console: Console, every: float = LINE_SECONDS
) -> contextlib.AbstractContextManager[Callable[[State], None]]:
    """For a job that calls back instead of yielding steps: yields the function that shows a state."""
    return _bar(console) if is_terminal(console) else _lines(console, every)


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[Callable[[State], None]]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, redirect_stdout=False, transient=True) as bar:
        task = bar.add_task("", total=None, facts="")

        def show(now: State) -> None:
            label, facts = printable(now.label), printable(now.facts)
            bar.update(task, description=label, completed=now.done, total=now.total, facts=facts)

        yield show


@contextlib.contextmanager
def _lines(console: Console, every: float) -> Iterator[Callable[[State], None]]:
    said = time.monotonic()

    def show(now: State) -> None:
        nonlocal said
        if now.plain:
            console.print(printable(now.plain))
        if time.monotonic() - said >= every and now.done != now.total:
            part = f" {now.done / now.total:4.0%}" if now.total else ""
            console.print(printable(f"{now.label}{part}  {now.facts}".rstrip()))
            said = time.monotonic()

    yield show


def counting(label: str, total: int, done: int = 0) -> Callable[[object], State]:
    """Counts the steps, of which `done` were done before."""
    numbers = itertools.count(done + 1)

    def state(_: object) -> State:
        n = next(numbers)
        return State(label, n, total, f"{n:,} of {total:,}")

    return state


def preparing() -> "Callable[[Preparing], State]":
    """MB of text and tokens per second since the phase began: passes over the text differ widely."""
    phase, start = "", (0, 0, 0.0)

    def state(step: "Preparing") -> State:
        nonlocal phase, start
        now = step.n_bytes, step.n_tokens, time.monotonic()
        if step.phase != phase:
            phase, start = step.phase, now
        n_bytes, n_tokens, seconds = (b - a for a, b in zip(start, now, strict=True))
        facts = [f"{step.n_bytes / 1e6:,.0f} MB"] if step.n_total is None else []
        if seconds >= 0.1:
            facts += [f"{n_bytes / 1e6 / seconds:.1f} MB/s"]
            facts += [f"{n_tokens / seconds:,.0f} tokens/s"] if n_tokens else []
        note = f"warning: {step.warning}" if step.warning else ""
        done, total = (1, 1) if step.is_last else (step.n_read, step.n_total)
        return State(step.phase, done, total, ", ".join(facts), note=note)

    return state


def downloading() -> "Callable[[DownloadProgress], State]":
    """Bytes of all files; without a bar, each file is named once."""
    seen = set[str]()

    def state(step: "DownloadProgress") -> State:
        plain = ""
        if step.file and step.n_total and step.file not in seen:
            seen.add(step.file)
            plain = f"{step.file}  {amount(step.n_total)}"
        done, total = (step.all_done, step.all_total) if step.all_total else (step.n_done, step.n_total)
        facts = f"{amount(done)} of {amount(total)}" if total else ""
        is_news = step.note and "checking" not in step.note
        note = f"{step.file}: {step.note}" if is_news else ""
        return State(step.file, done, total, facts, plain, note)

    return state


def converting(step: "ConvertProgress") -> State:
    facts = f"{step.n_done:,} of {step.n_total:,}" if step.n_total else ""
    return State(step.phase, step.n_done, step.n_total or None, facts)


def scoring(model: str) -> "Callable[[PerplexityProgress], State]":
    def state(step: "PerplexityProgress") -> State:
        facts = f"loss {step.loss:.4f}, {step.tokens_per_second:,.0f} tokens/s"
        return State(model, step.n_tokens, step.n_total, facts)

    return state


def show_compiling(config: "GPT2Config", precision: str, way_out: str = "") -> Path:
    """Build a package, with a line on stderr before and after. Raises what `build_package` raises."""
    from gpt2cli.generation.cpu import aot_packages
    from gpt2cli.model.config import size_of
    from gpt2cli.ui.spinner import waiting

    aot_packages.require_compiler()
    console, start = err(), time.monotonic()
    shape = size_of(config) or f"{config.n_layer} blocks of {config.n_embd}"
    seconds = aot_packages.build_seconds(config)
    line = f"compiling the step of {shape} in {precision}, once, about {seconds:.0f} s{way_out}"
    if is_terminal(console):
        with waiting(console, line, delay=0):
            package = aot_packages.build_package(config, precision)
    else:
        console.print(line, style="faint")
        package = aot_packages.build_package(config, precision)
    console.print(f"compiled {shape} in {precision}: {time.monotonic() - start:.0f} s", style="faint")
    return package
