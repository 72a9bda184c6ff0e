"""Owns what `--dry-run` shows: every resolved value and its origin, size, memory, time, first batch.

Two real steps are timed on the session that it is given, whose weights are spent afterwards.
"""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import groupby

from rich.table import Table
from rich.text import Text

from gpt2cli.recipe.schema import fields
from gpt2cli.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2cli.training.classify_task import Classification
from gpt2cli.training.estimate import estimate_bytes, explained
from gpt2cli.training.loop import take_step
from gpt2cli.training.setup import Session
from gpt2cli.training.sft_task import InstructBatch, Instruction
from gpt2cli.training.task import Task
from gpt2cli.ui.console import is_terminal, out, printable

Row = tuple[str, str, str]
MiB = 1 << 20


def show_plan(session: Session, origins: Mapping[str, str]) -> None:
    """Print the plan to stdout: it is the data that was asked for."""
    _print_rows("value", _values(session, origins))
    _print_rows("memory", _memory(session))
    _print_rows("work", _work(session))
    console = out()
    batch = session.task.batch(0, 0)
    if isinstance(batch, InstructBatch):
        _print_learnt(batch, session.task.tokenizer)
        return
    console.print("first batch, decoded:", style="bold")
    for row in batch.input_ids.tolist():
        console.print(
            f"  {printable(repr(session.task.tokenizer.decode(row)))}", markup=False, highlight=False
        )


def _print_learnt(batch: InstructBatch, tokenizer: Tokenizer) -> None:
    """Each record with what is learnt of it marked: by colour on a terminal, «so» elsewhere."""
    console = out()
    console.print("first batch, decoded; what is marked is learnt:", style="bold")
    coloured = is_terminal(console) and not console.no_color
    for record in (record for group in batch.groups for record in group):
        line = Text("  ")
        pairs = zip(record.ids.tolist(), record.learnt.tolist(), strict=True)
        for learnt, some in groupby(pairs, key=lambda pair: pair[1]):
            text = printable(repr(_spelled([token for token, _ in some], tokenizer))[1:-1])
            if learnt and not coloured:
                text = f"«{text}»"
            line.append(text, style="good" if learnt else "faint")
        console.print(line)


def _spelled(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of ids that may end with end-of-text, which is no text but is to be seen."""
    ended = ids[-1:] == [tokenizer.end_of_text]
    return tokenizer.decode(ids[:-1]) + END_OF_TEXT if ended else tokenizer.decode(ids)


def _values(session: Session, origins: Mapping[str, str]) -> list[Row]:
    recipe = session.recipe.model_dump()

    def value(key: str) -> object:
        found: object = recipe
        for part in key.split("."):
            assert isinstance(found, dict)
            found = found[part]
        return found

    rows = [(key, printable(str(value(key))), origins[key]) for key, _, _ in fields(type(session.recipe))]
    chosen = session.runtime
    resolved = {
        "run.device": str(chosen.device),
        "run.precision": chosen.precision,
        "run.threads": str(chosen.threads),
        "run.compile": "on" if chosen.compile else "off",
        "run.attention": session.attention,
    }
    return [
        (key, f"{text} -> {resolved[key]}" if resolved.get(key, text) != text else text, origin)
        for key, text, origin in rows
    ]


def _memory(session: Session) -> list[Row]:
    config, n_rows = session.model.config, session.recipe.batch.micro_batch
    parts = estimate_bytes(
        config,
        n_rows,
        session.runtime.dtype.itemsize,
        n_learning=sum(p.numel() for p in session.model.parameters() if p.requires_grad),
        n_outputs=_outputs(session.task, n_rows * config.n_positions),
        recompute=session.recipe.run.recompute == "on",
    )
    rows = [(name, f"{size / MiB:,.0f} MiB", "") for name, size in parts.items()]
    return [
        *rows,
        ("in all", f"{sum(parts.values()) / MiB:,.0f} MiB", "estimate; the process itself adds about 400"),
    ]


def _outputs(task: Task, n_positions: int) -> int:
    """How many of a micro batch's positions meet the vocabulary."""
    if isinstance(task, Classification):
        return 0
    return task.most_learnt if isinstance(task, Instruction) else n_positions


def _work(session: Session) -> list[Row]:
    recipe, task = session.recipe, session.task
    per_step = task.tokens_per_step
    loss, seconds = _timed(session)
    left = timedelta(seconds=round(seconds * (recipe.optim.steps - session.progress.step)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return [
        ("parameters", f"{session.model.config.n_parameters:,}", ""),
        ("data", task.size, task.validation_size),
        (
            "tokens a step",
            f"{per_step:,}",
            f"{recipe.batch.micro_batch * recipe.batch.accumulation} sequences",
        ),
        ("steps", f"{recipe.optim.steps:,}", f"{recipe.optim.steps / task.steps_per_epoch:.2f} epochs"),
        ("tokens in all", f"{recipe.optim.steps * per_step:,}", ""),
        ("loss at the start", f"{loss:.3f}", "of the first timed step"),
        ("speed", f"{per_step / seconds:,.0f} tokens/s", "of the second timed step"),
        ("time", str(left), "without evaluations and saves"),
        ("peak memory", f"{peak / MiB:,.0f} MiB", "measured over the two steps"),
    ]


def _timed(session: Session) -> tuple[float, float]:
    """Loss of a first step, which pays for what happens once, and seconds of a second one."""
    losses, seconds = [], []
    for _ in range(2):
        started = time.perf_counter()
        with explained(session.recipe.batch):
            event = take_step(
                session.learner,
                session.task,
                session.progress,
                session.recipe,
                session.runtime,
            )
        losses.append(event.loss)
        seconds.append(time.perf_counter() - started)
    return losses[0], seconds[1]


def _print_rows(title: str, rows: Sequence[Row]) -> None:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    for row in rows:
        table.add_row(*(printable(cell) for cell in row))
    out().print(table)
    out().print()
