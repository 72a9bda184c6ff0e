"""The output of `--dry-run`: each resolved value and its origin, memory, work and the first batch.

It times two real steps, so the model's weights cannot be used afterwards.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt2cli.errors import counted
from gpt2cli.recipe.schema import recipe_fields
from gpt2cli.runtime import peak_memory
from gpt2cli.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2cli.training.classify_task import ClassifyTask
from gpt2cli.training.estimate import estimate_memory, explain_out_of_memory
from gpt2cli.training.loop import train_step
from gpt2cli.training.run_dir import disk_need
from gpt2cli.training.setup import TrainingSetup
from gpt2cli.training.sft_task import SftBatch, SftTask
from gpt2cli.training.task import TrainingTask
from gpt2cli.ui.console import amount, is_terminal, printable

Row = tuple[str, str, str]
MiB = 1 << 20


def show_dry_run(setup: TrainingSetup, origins: Mapping[str, str], console: Console) -> None:
    """Print everything to `console`: stdout, because it is the requested data."""
    _print_rows(console, "value", _values(setup, origins))
    _print_rows(console, "memory", _memory(setup))
    _print_rows(console, "work", _work(setup))
    batch = setup.task.batch(0, 0)
    if isinstance(batch, SftBatch):
        _print_loss_mask(console, batch, setup.task.tokenizer)
        return
    console.print("first batch, decoded:", style="bold")
    for row in batch.input_ids.tolist():
        console.print(f"  {printable(repr(setup.task.tokenizer.decode(row)))}", markup=False, highlight=False)


def _print_loss_mask(console: Console, batch: SftBatch, tokenizer: Tokenizer) -> None:
    """Each record with the tokens of its loss mask marked: by colour on a terminal, «so» elsewhere."""
    console.print("first batch, decoded; the loss counts what is marked:", style="bold")
    coloured = is_terminal(console) and not console.no_color
    for record in (record for group in batch.rows for record in group):
        line = Text("  ")
        pairs = zip(record.ids.tolist(), record.loss_mask.tolist(), strict=True)
        for counts, some in groupby(pairs, key=lambda pair: pair[1]):
            text = printable(repr(_spelled([token for token, _ in some], tokenizer))[1:-1])
            if counts and not coloured:
                text = f"«{text}»"
            line.append(text, style="good" if counts else "faint")
        console.print(line)


def _spelled(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of ids, with a final end-of-text visible."""
    ended = ids[-1:] == [tokenizer.end_of_text]
    return tokenizer.decode(ids[:-1]) + END_OF_TEXT if ended else tokenizer.decode(ids)


def _values(setup: TrainingSetup, origins: Mapping[str, str]) -> list[Row]:
    recipe = setup.recipe.model_dump()

    def value(key: str) -> object:
        found: object = recipe
        for part in key.split("."):
            assert isinstance(found, dict)
            found = found[part]
        return found

    rows = [
        (key, printable(str(value(key))), origins[key].rpartition("/")[2])
        for key, _, _ in recipe_fields(type(setup.recipe))
    ]
    chosen = setup.runtime
    resolved = {
        "run.device": str(chosen.device),
        "run.precision": chosen.precision,
        "run.threads": str(chosen.threads),
        "run.compile": "on" if chosen.compile else "off",
        "run.attention": setup.attention,
    }
    return [
        (key, f"{text} -> {resolved[key]}" if resolved.get(key, text) != text else text, origin)
        for key, text, origin in rows
    ]


def _memory(setup: TrainingSetup) -> list[Row]:
    config, n_rows = setup.model.config, setup.recipe.batch.micro_batch
    parts = estimate_memory(
        config,
        n_rows,
        setup.runtime.dtype.itemsize,
        n_trainable=sum(p.numel() for p in setup.model.parameters() if p.requires_grad),
        n_outputs=_outputs(setup.task, n_rows * config.n_positions),
        activation_checkpointing=setup.recipe.run.activation_checkpointing == "on",
        device=setup.runtime.device.type,
    )
    rows = [(name, f"{size / MiB:,.0f} MiB", "") for name, size in parts.items()]
    beside = "CUDA itself" if setup.runtime.device.type == "cuda" else "the process"
    return [
        *rows,
        ("total", f"{sum(parts.values()) / MiB:,.0f} MiB", f"estimate; {beside} adds about 400 MiB"),
    ]


def _outputs(task: TrainingTask, n_positions: int) -> int:
    """How many positions of a micro batch get logits over the vocabulary."""
    if isinstance(task, ClassifyTask):
        return 0
    return task.max_targets if isinstance(task, SftTask) else n_positions


def _work(setup: TrainingSetup) -> list[Row]:
    recipe, task = setup.recipe, setup.task
    per_step = task.tokens_per_step
    loss, seconds = _timed(setup)
    left = timedelta(seconds=round(seconds * (recipe.optim.steps - setup.state.step)))
    n_held, n_bytes = disk_need(setup)
    peak, of_what = peak_memory(setup.runtime.device)
    return [
        ("parameters", f"{setup.model.config.n_parameters:,}", ""),
        ("data", task.size, task.validation_size),
        (
            "tokens per step",
            f"{per_step:,}",
            f"{counted(recipe.batch.rows_per_step, 'sequence')}",
        ),
        ("steps", f"{recipe.optim.steps:,}", f"{recipe.optim.steps / task.steps_per_epoch:.2f} epochs"),
        ("tokens in total", f"{recipe.optim.steps * per_step:,}", ""),
        ("initial loss", f"{loss:.3f}", "of the first timed step"),
        ("speed", f"{per_step / seconds:,.0f} tokens/s", "of the second timed step"),
        ("time", str(left), "without evaluations and saves"),
        ("disk", amount(n_held * n_bytes), f"{counted(n_held, 'checkpoint')} of {amount(n_bytes)} at once"),
        ("peak memory", f"{peak / MiB:,.0f} MiB", f"{of_what}, measured over the two steps"),
    ]


def _timed(setup: TrainingSetup) -> tuple[float, float]:
    """Loss of the first step, which includes one-time costs, and seconds of the second."""
    losses, seconds = [], []
    for _ in range(2):
        started = time.perf_counter()
        with explain_out_of_memory(setup.recipe.batch):
            event = train_step(setup)
        losses.append(event.loss)
        seconds.append(time.perf_counter() - started)
    return losses[0], seconds[1]


def _print_rows(console: Console, title: str, rows: Sequence[Row]) -> None:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    for row in rows:
        table.add_row(*(printable(cell) for cell in row))
    console.print(table)
    console.print()
