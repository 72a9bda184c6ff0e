"""Owns what a person sees of a download: a bar a file and one in all, or a line now and then elsewhere."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gpt2cli.hub.collecting import Fetched, Fetching
from gpt2cli.ui.console import is_terminal, printable

LINE_SECONDS = 5.0  # between plain progress lines
_UNITS = {"GB": 1e9, "MB": 1e6, "KB": 1e3, "bytes": 0}
_QUIET = ("checking", "here already: checking")  # not worth a line of their own


def show_fetching(steps: Generator[Fetching, None, None], console: Console) -> Fetched:
    """Draw the steps; returns what the last one brought. Closes the generator, however this ends."""
    fetched = None
    with closing(steps):
        for step in _bars(steps, console) if is_terminal(console) else _lines(steps, console):
            if step.note and step.note not in _QUIET:
                console.print(printable(f"{step.file}: {step.note}"), style="warn")
            fetched = step.fetched
    assert fetched is not None
    return fetched


def _bars(steps: Iterator[Fetching], console: Console) -> Iterator[Fetching]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        whole = progress.add_task("in all", total=None)
        tasks: dict[str, TaskID] = {}
        for step in steps:
            if step.file and step.n_total is not None and step.file not in tasks:
                tasks[step.file] = progress.add_task(printable(step.file))
            if step.file in tasks:
                progress.update(tasks[step.file], completed=step.n_done, total=step.n_total)
            if step.all_total:
                progress.update(whole, completed=step.all_done, total=step.all_total)
            yield step


def _lines(steps: Iterator[Fetching], console: Console) -> Iterator[Fetching]:
    said, file = time.monotonic(), ""
    for step in steps:
        if step.file not in (file, "") and step.n_total:
            file = step.file
            console.print(printable(f"{file}  {_amount(step.n_total)}"))
        if time.monotonic() - said >= LINE_SECONDS and step.n_total:
            said = time.monotonic()
            console.print(printable(f"{file}  {step.n_done / step.n_total:4.0%}"))
        yield step


def _amount(n_bytes: int) -> str:
    """For people: 548.1 MB."""
    unit = next((unit for unit in _UNITS if n_bytes >= _UNITS[unit]), "bytes")
    return f"{n_bytes / _UNITS[unit]:,.1f} {unit}" if unit != "bytes" else f"{n_bytes} bytes"
