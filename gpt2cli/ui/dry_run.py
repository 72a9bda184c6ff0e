"""The output of `--dry-run`, on one screen: the model, work, memory, each value under its origin, samples.

It times two real steps, so the model's weights cannot be used afterwards.
"""

import time
from collections.abc import Mapping
from datetime import timedelta
from itertools import groupby

from rich.console import Console
from rich.text import Text

from gpt2cli.errors import counted
from gpt2cli.paths import shown_model
from gpt2cli.recipe.loader import to_yaml
from gpt2cli.recipe.schema import SCRATCH, recipe_fields
from gpt2cli.runtime import peak_memory
from gpt2cli.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2cli.training.classify_task import ClassifyTask
from gpt2cli.training.estimate import count_muon, estimate_memory, explain_out_of_memory
from gpt2cli.training.loop import train_step
from gpt2cli.training.run_dir import disk_need
from gpt2cli.training.setup import TrainingSetup
from gpt2cli.training.sft_task import SftBatch, SftTask
from gpt2cli.training.task import TrainingTask
from gpt2cli.ui.console import amount, definitions, is_terminal, printable, wrapped

Row = tuple[str, ...]  # a label and what is said of it
MiB = 1 << 20
N_SAMPLES = 3
# What `model` says of the size; with a base it is the base's.
SIZES = {
    "model.n_layer": "n_layer",
    "model.n_head": "n_head",
    "model.n_embd": "n_embd",
    "model.n_inner": "mlp_width",
    "model.context": "n_positions",
}
ORIGINS = ("override", "recipe", "base", "default")


def show_dry_run(setup: TrainingSetup, origins: Mapping[str, str], console: Console) -> None:
    """Print everything to `console`: stdout, because it is the requested data. A terminal gets what fits,
    the most important first.
    """
    width = console.width if is_terminal(console) else None
    rows = [(label, ", ".join(filter(None, rest))) for label, *rest in _work(setup) + _memory(setup)]
    facts = [*_lines(_model(setup), width), *definitions(rows, width)]
    values = {origin: words for origin, words in _values(setup, origins).items() if words}
    samples = _samples(setup, console, width)
    room = console.height - 2 - len(facts) if width else 0
    lines = {origin: _lines(f"{origin}: {' '.join(words)}", width) for origin, words in values.items()}
    if width and sum(map(len, lines.values())) + len(samples) > room and "default" in lines:
        n_left_out = len(values["default"])
        lines["default"] = [f"default: {n_left_out} other keys; gpt2 recipes keys {setup.recipe.task}"]
    if width and sum(map(len, lines.values())) + len(samples) > room:
        samples = samples[:2]
    for line in facts:
        console.print(Text(printable(line)))
    for origin, found in lines.items():
        for n, part in enumerate(found):
            head = f"{origin}:" if not n else ""
            console.print(Text.assemble((head, "strong"), printable(part.removeprefix(head))))
    for sample in samples:
        console.print(sample)


def _lines(text: str, width: int | None) -> list[str]:
    return [text] if width is None else wrapped(text, width, later=2)


def _model(setup: TrainingSetup) -> str:
    """What is trained: the real size, and where its weights come from."""
    config, init = setup.model.config, setup.recipe.init
    base = getattr(getattr(setup.task, "base", None), "folder", None)
    start = "random weights" if init == SCRATCH else f"the weights of {shown_model(base) if base else init}"
    return (
        f"{sum(p.numel() for p in setup.model.parameters()):,} parameters from {start}:"
        f" {counted(config.n_layer, 'block')}, {counted(config.n_head, 'head')}, width {config.n_embd},"
        f" context {config.n_positions}, vocabulary {config.vocab_size:,}"
    )


def _samples(setup: TrainingSetup, console: Console, width: int | None) -> list[Text]:
    """The heading and up to three sequences of the first batch; in a terminal a line each."""
    batch = setup.task.batch(0, 0)
    if isinstance(batch, SftBatch):
        heading = "first batch, decoded; the loss counts what is marked:"
        shown = [_marked(record, setup.task.tokenizer, console) for group in batch.rows for record in group]
    else:
        heading = "first batch, decoded:"
        rows = batch.input_ids[:N_SAMPLES].tolist()
        shown = [Text(f"  {printable(repr(setup.task.tokenizer.decode(row)))}") for row in rows]
    for line in shown[:N_SAMPLES]:
        if width:
            line.truncate(width, overflow="ellipsis")
    return [Text(heading, style="strong"), *shown[:N_SAMPLES]]


def _marked(record: object, tokenizer: Tokenizer, console: Console) -> Text:
    """A record with the tokens of its loss mask marked: by colour on a terminal, «so» elsewhere."""
    coloured = is_terminal(console) and not console.no_color
    line = Text("  ")
    ids, mask = record.ids.tolist(), record.loss_mask.tolist()  # type: ignore[attr-defined]
    for counts, some in groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1]):
        text = printable(repr(_spelled([token for token, _ in some], tokenizer))[1:-1])
        if counts and not coloured:
            text = f"«{text}»"
        line.append(text, style="good" if counts else "faint")
    return line


def _spelled(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of ids, with a final end-of-text visible."""
    ended = ids[-1:] == [tokenizer.end_of_text]
    return tokenizer.decode(ids[:-1]) + END_OF_TEXT if ended else tokenizer.decode(ids)


def _values(setup: TrainingSetup, origins: Mapping[str, str]) -> dict[str, list[str]]:
    """KEY=VALUE, as it would be typed, under the word for its origin; what `auto` means here in brackets."""
    recipe, chosen = setup.recipe.model_dump(), setup.runtime
    resolved = {
        "run.device": str(chosen.device),
        "run.precision": chosen.precision,
        "run.threads": str(chosen.threads),
        "run.compile": "on" if chosen.compile else "off",
        "run.attention": setup.attention,
    }
    has_base = setup.recipe.init != SCRATCH
    found: dict[str, list[str]] = {origin: [] for origin in ORIGINS}
    for key, _, _ in recipe_fields(type(setup.recipe)):
        value: object = recipe
        for part in key.split("."):
            assert isinstance(value, dict)
            value = value[part]
        origin = origins[key] if origins[key] in ORIGINS else "recipe"
        if has_base and key == "model.size":
            continue  # the base has its own
        if has_base and key in SIZES and (key != "model.context" or origin == "default"):
            origin, value = "base", getattr(setup.model.config, SIZES[key])
        elif value is None and origin == "default":
            continue  # the task's own choice; the lines above say it
        text = to_yaml(value)
        text = f"'{text}'" if " " in text else text.strip('"') or "''"
        meant = f" ({resolved[key]})" if resolved.get(key, text) != text else ""
        found[origin].append(f"{key}={text}{meant}")
    return found


def _memory(setup: TrainingSetup) -> list[Row]:
    config, n_rows = setup.model.config, setup.recipe.batch.micro_batch
    parts = estimate_memory(
        config,
        n_rows,
        setup.runtime.dtype.itemsize,
        n_trainable=sum(p.numel() for p in setup.model.parameters() if p.requires_grad),
        n_muon=count_muon(setup.model, setup.recipe.optim),
        n_outputs=_outputs(setup.task, n_rows * config.n_positions),
        activation_checkpointing=setup.recipe.run.activation_checkpointing == "on",
        device=setup.runtime.device.type,
    )
    beside = "CUDA itself" if setup.runtime.device.type == "cuda" else "the process"
    peak, of_what = peak_memory(setup.runtime.device)
    purposes = ", ".join(f"{name} {size / MiB:,.0f}" for name, size in parts.items() if size >= MiB)
    total = f"{max(sum(parts.values()) / MiB, 1):,.0f} MiB"
    return [
        (
            "memory",
            total,
            f"estimated, {beside} adds about 400" + (f"; {purposes}" if purposes else ""),
        ),
        ("peak memory", f"{peak / MiB:,.0f} MiB", f"{of_what}, measured over two steps"),
    ]


def _outputs(task: TrainingTask, n_positions: int) -> int:
    """How many positions of a micro batch get logits over the vocabulary."""
    if isinstance(task, ClassifyTask):
        return 0
    return task.max_targets if isinstance(task, SftTask) else n_positions


def _work(setup: TrainingSetup) -> list[Row]:
    recipe, task, steps = setup.recipe, setup.task, setup.recipe.optim.steps
    per_step = task.tokens_per_step
    loss, seconds = _timed(setup)
    left = timedelta(seconds=round(seconds * (steps - setup.state.step)))
    n_held, n_bytes = disk_need(setup)
    return [
        ("time", f"{left} at {per_step / seconds:,.0f} tokens/s", "without evaluations and saves"),
        ("steps", f"{steps:,}", f"{steps / task.steps_per_epoch:.2f} epochs", f"{steps * per_step:,} tokens"),
        ("step", f"{per_step:,} tokens", counted(recipe.batch.rows_per_step, "sequence")),
        ("data", task.size, "" if "validation" in task.size else task.validation_size),
        ("disk", amount(n_held * n_bytes), f"{counted(n_held, 'checkpoint')} of {amount(n_bytes)} at once"),
        ("initial loss", f"{loss:.3f}", ""),
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
