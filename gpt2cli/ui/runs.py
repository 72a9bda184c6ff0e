"""What `gpt2 runs` shows: the table of runs and models, one of them in full, and the cache."""

import shlex
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from gpt2cli.errors import counted
from gpt2cli.hub.cache import CacheEntry
from gpt2cli.paths import METRICS, RESPONSES, has_home, models, shown_path
from gpt2cli.training.metrics_log import last_records
from gpt2cli.training.runs_on_disk import Checkpoint, RunEntry
from gpt2cli.ui.console import aligned, amount, printable, say

HEADINGS = ("name", "task", "base", "data", "step", "best loss", "size", "age", "state")
# Given up, in this order, where a terminal is too narrow: `show` and --json have them.
_EXPENDABLE = ("data", "base", "task")
_RIGHT = ("step", "best loss", "size", "age")
LAST_LINES = 3  # of the metrics
_SIZES = (("w", 604_800), ("d", 86_400), ("h", 3600), ("min", 60))
_STYLES = {
    "running": "good",
    "diverged": "bad",
    "damaged": "bad",
    "failed start": "warn",
    "unreadable": "warn",
}


def print_runs(entries: Sequence[RunEntry], folder: Path, console: Console) -> None:
    """A line per run in `folder` and per model; problems, and the sum of the sizes, go to stderr."""
    if not entries:
        say(f"no run in {folder}, no model in {models() if has_home() else 'GPT2_HOME'} yet")
        say("gpt2 pretrain verdict makes one, gpt2 download 124M fetches one", "faint")
        return
    rows = [_cells(entry) for entry in entries]
    columns = list(HEADINGS)
    if console.is_terminal:
        for name in _EXPENDABLE:
            if _width(rows, columns) > console.width:
                columns.remove(name)
    lines = aligned(
        [columns, *([row[name] for name in columns] for row in rows)],
        [n for n, name in enumerate(columns) if name in _RIGHT],
    )
    for line, style in zip(
        lines, ["strong", *(_STYLES.get(entry.state, "") for entry in entries)], strict=True
    ):
        console.print(line, style=style)
    for entry in entries:
        if entry.problem:
            say(f"{entry.name}: {entry.problem}", "warn")
    total = sum(entry.n_bytes for entry in entries)
    say(f"{counted(len(entries), 'entry')}, {amount(total)}; gpt2 runs show NAME says more", "faint")


def print_cache(entries: Sequence[CacheEntry], console: Console) -> None:
    rows = [
        (printable(entry.name), amount(entry.n_bytes), age(entry.changed), printable(entry.note))
        for entry in entries
    ]
    lines = aligned([("name", "size", "age", "made of"), *rows], (1, 2))
    for n, line in enumerate(lines):
        console.print(line, style="" if n else "strong")
    say(f"{amount(sum(entry.n_bytes for entry in entries))}; gpt2 runs rm NAME removes one", "faint")


# What `print_run` says of an event, and which of its facts.
_EVENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "StepDone": ("trained", ("loss", "lr", "grad_norm")),
    "StepSkipped": ("skipped", ("loss", "grad_norm")),
    "SpikeSeen": ("a spike", ("loss",)),
    "EvalDone": ("evaluated", ("loss", "perplexity", "bits_per_byte")),
    "CheckpointSaved": ("saved", ("path",)),
    "Stopped": ("ended", ("reason",)),
}


def print_run(entry: RunEntry, console: Console) -> None:
    """All that is known about one, and the commands to try next."""
    best = "" if entry.best_loss is None else f"{entry.best_loss:.4f} at step {entry.best_step}"
    facts = (
        (entry.kind, str(entry.folder)),
        ("task", entry.task),
        ("base", entry.base),
        ("data", entry.data),
        ("step", _steps(entry)),
        ("best loss", best),
        ("size", amount(entry.n_bytes)),
        ("changed", f"{datetime.fromtimestamp(entry.changed):%Y-%m-%d %H:%M}, {age(entry.changed)} ago"),
        ("state", entry.state),
        ("problem", entry.problem),
    )
    for line in aligned([(name, printable(value)) for name, value in facts if value]):
        console.print(line)
    if entry.checkpoints:
        console.print()
        rows = [_checkpoint_cells(checkpoint) for checkpoint in entry.checkpoints]
        for n, line in enumerate(aligned([("checkpoint", "size", "", ""), *rows], (1,))):
            console.print(line, style="" if n else "strong")
    if records := last_records(entry.folder / METRICS)[-LAST_LINES:]:
        console.print()
        for record in records:
            console.print(printable(_record_line(record)), style="faint")
    console.print()
    for command in next_commands(entry):
        console.print(command)


def next_commands(entry: RunEntry) -> list[str]:
    """Commands that work on it now, as one types them here."""
    is_downloaded = entry.kind == "model" and has_home() and entry.folder.parent == models()
    folder = shlex.quote(entry.name if is_downloaded else shown_path(entry.folder.absolute()))
    resume = f"gpt2 {entry.task} {folder}/recipe.yaml --resume"
    if entry.state in ("failed start", "damaged"):
        return [f"gpt2 runs rm {folder}"]
    if entry.state == "diverged" and entry.checkpoints:
        pointers = [name for checkpoint in entry.checkpoints for name in checkpoint.pointers]
        return [f"{resume} --from {'best' if 'best' in pointers else 'last'} optim.lr=VALUE"]
    if entry.state in ("stopped", "diverged"):
        begin = [resume] if entry.state == "stopped" else []
        return begin + (_uses(entry, folder) if entry.checkpoints else [f"gpt2 runs rm {folder}"])
    if entry.state in ("newer version", "unreadable") or not (entry.checkpoints or entry.kind == "model"):
        return []
    prune = any(checkpoint.is_resumable for checkpoint in entry.checkpoints) and entry.state == "finished"
    return _uses(entry, folder) + ([f"gpt2 runs prune {folder}"] if prune else [])


def _uses(entry: RunEntry, folder: str) -> list[str]:
    if entry.task in ("finetune-classify", "classifier"):
        return [f"gpt2 classify {folder} 'a text'"]
    if entry.task == "finetune-instruct":
        answers = [f"head -n 3 {folder}/{RESPONSES}"] if (entry.folder / RESPONSES).exists() else []
        return [f"gpt2 chat {folder}", *answers]
    return [f"gpt2 generate --model {folder}", f"gpt2 inspect {folder}"]


def as_json(entry: RunEntry) -> dict[str, Any]:
    """The facts for a script; times in ISO 8601, sizes in bytes."""
    return {
        "name": entry.name,
        "kind": entry.kind,
        "folder": str(entry.folder),
        "state": entry.state,
        "task": entry.task,
        "base": entry.base,
        "data": entry.data,
        "step": entry.step,
        "steps": entry.n_steps,
        "best_loss": entry.best_loss,
        "best_step": entry.best_step,
        "bytes": entry.n_bytes,
        "changed": datetime.fromtimestamp(entry.changed).astimezone().isoformat(timespec="seconds"),
        "checkpoints": [
            {
                "path": str(checkpoint.path),
                "step": checkpoint.step,
                "bytes": checkpoint.n_bytes,
                "resumable": checkpoint.is_resumable,
                "pointers": list(checkpoint.pointers),
            }
            for checkpoint in entry.checkpoints
        ],
        "problem": entry.problem,
    }


def age(changed: float) -> str:
    """How long ago, in one unit: 5 min, 3 h, 2 d, 6 w."""
    seconds = max(0.0, time.time() - changed)
    return next((f"{seconds // size:.0f} {unit}" for unit, size in _SIZES if seconds >= size), "0 min")


def _cells(entry: RunEntry) -> dict[str, str]:
    values = (
        entry.name,
        entry.task.removeprefix("finetune-"),
        "" if entry.base == "scratch" else _short_path(entry.base),
        _short_path(entry.data),
        _steps(entry),
        "" if entry.best_loss is None else f"{entry.best_loss:.3f}",
        amount(entry.n_bytes),
        age(entry.changed),
        entry.state,
    )
    return {
        name: printable(value).replace("\n", " ") or "-" for name, value in zip(HEADINGS, values, strict=True)
    }


def _checkpoint_cells(checkpoint: Checkpoint) -> tuple[str, ...]:
    pruned = "" if checkpoint.is_resumable else "without optimizer state"
    return (checkpoint.path.name, amount(checkpoint.n_bytes), ", ".join(checkpoint.pointers), pruned)


def _steps(entry: RunEntry) -> str:
    if entry.step is None:
        return ""
    return f"{entry.step}/{'?' if entry.n_steps is None else entry.n_steps}"


def _short_path(name: str) -> str:
    """A path's last name; of a run's checkpoint its run, too."""
    path = Path(name)
    return (
        f"{path.parts[-3]}/{path.name}"
        if path.parent.name == "checkpoints" and len(path.parts) > 2
        else path.name
    )


def _record_line(record: dict[str, Any]) -> str:
    """An event of metrics.jsonl on one line: step 500, evaluated: loss 3.21, perplexity 24.8."""
    said, keys = _EVENTS.get(str(record.get("event")), (str(record.get("event")), ()))
    metrics = record.get("metrics")
    facts = {**record, **metrics} if isinstance(metrics, dict) else record
    names = (*keys, *metrics) if isinstance(metrics, dict) else keys
    cells = [
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{value}"
        for name in names
        if (value := facts.get(name)) is not None
    ]
    return f"step {record.get('step')}, {said}: {', '.join(cells)}".removesuffix(": ")


def _width(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> int:
    widths = (max(cell_len(text) for text in (name, *(row[name] for row in rows))) for name in columns)
    return sum(widths) + 2 * (len(columns) - 1)
