"""Owns what a person sees while text becomes tokens: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import time
from collections.abc import Generator, Iterator

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from gpt2cli.data.prepare import Progress
from gpt2cli.ui.console import is_terminal, printable

LINE_SECONDS = 5.0  # between plain progress lines


def show_preparing(steps: Generator[Progress, None, None], console: Console) -> Progress:
    """Draw the progress; returns the last item. Closes the generator, however this ends."""
    with contextlib.closing(steps):
        shown = _bar(steps, console) if is_terminal(console) else _lines(steps, console)
        for step in shown:
            if step.warning:
                console.print(f"warning: {printable(step.warning)}", style="warn")
    return step


def _bar(steps: Iterator[Progress], console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("tokens", total=None, speed="")
        speed = _Speed()
        for step in steps:
            bar.update(
                task, description=step.phase, completed=step.n_read, total=step.n_total, speed=speed.of(step)
            )
            yield step


def _lines(steps: Iterator[Progress], console: Console) -> Iterator[Progress]:
    said, speed = time.monotonic(), _Speed()
    for step in steps:
        text = speed.of(step)
        if time.monotonic() - said >= LINE_SECONDS and not step.is_last:
            part = f"{step.n_read / step.n_total:4.0%}" if step.n_total else f"{step.n_bytes / 1e6:,.0f} MB"
            console.print(f"{step.phase} {part}  {text}")
            said = time.monotonic()
        yield step


class _Speed:
    """MB of text and tokens a second since the phase began: passes over the text differ widely."""

    def __init__(self) -> None:
        self._phase, self._n_bytes, self._n_tokens, self._at = "", 0, 0, 0.0

    def of(self, step: Progress) -> str:
        now = time.monotonic()
        if step.phase != self._phase:
            self._phase, self._at = step.phase, now
            self._n_bytes, self._n_tokens = step.n_bytes, step.n_tokens
        seconds = now - self._at
        if seconds < 0.1:
            return ""
        speed = f"{(step.n_bytes - self._n_bytes) / 1e6 / seconds:.1f} MB/s"
        n_tokens = step.n_tokens - self._n_tokens
        return f"{speed}, {n_tokens / seconds:,.0f} tokens/s" if n_tokens else speed
