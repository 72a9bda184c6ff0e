"""Owns what a person sees while many texts are classified: a bar on a terminal, a line now and then
elsewhere, and nothing for a few.
"""

import time
from collections.abc import Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gpt2cli.ui.console import is_terminal

Item = TypeVar("Item")
LINE_SECONDS = 5.0  # between plain progress lines
FEW = 200  # items that are done before a bar could be read


def tracked(items: Iterator[Item], n: int, console: Console) -> Iterator[Item]:
    """The items, while their number is shown. stdout is left alone: it is data."""
    if n <= FEW:
        yield from items
    elif is_terminal(console):
        columns = (TextColumn("texts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, redirect_stdout=False, transient=True) as bar:
            task = bar.add_task("", total=n)
            for item in items:
                yield item
                bar.advance(task)
    else:
        said = time.monotonic()
        for done, item in enumerate(items):
            if time.monotonic() - said >= LINE_SECONDS:
                console.print(f"{done:,} of {n:,} texts")
                said = time.monotonic()
            yield item
