"""Owns what a person sees while questions are answered: a bar on a terminal, lines elsewhere."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gpt2cli.ui.console import is_terminal

LINE_SECONDS = 10.0
Item = TypeVar("Item")


def show_answering(items: Iterable[Item], console: Console, n_done: int, n_all: int) -> Iterator[Item]:
    """The same items; `n_done` of `n_all` were there before."""
    if not is_terminal(console):
        yield from _lines(items, console, n_done, n_all)
        return
    columns = (TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, redirect_stdout=False, transient=True) as bar:
        task = bar.add_task("", total=n_all, completed=n_done)
        for item in items:
            yield item
            bar.advance(task)


def _lines(items: Iterable[Item], console: Console, n_done: int, n_all: int) -> Iterator[Item]:
    console.print(f"answering {n_all - n_done} test prompts" + (f", {n_done} are answered" if n_done else ""))
    said = time.monotonic()
    for n, item in enumerate(items, n_done + 1):
        yield item
        if time.monotonic() - said >= LINE_SECONDS and n < n_all:
            console.print(f"answered {n} of {n_all}")
            said = time.monotonic()
