"""The events that the training loop yields, one frozen dataclass each.

They hold numbers and paths only, and this file does not import torch, so that a progress bar or a
log can handle them. `step` counts finished optimizer steps: the first StepDone has step 1.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepDone:
    """One optimizer step: mean loss over its targets, in nats."""

    step: int
    n_steps: int
    loss: float
    lr: float
    grad_norm: float  # before clipping
    n_tokens: int  # input tokens of all micro-batches
    seconds: float
    utilisation: float | None = None  # MFU, a fraction; None where the device's peak is unknown


@dataclass(frozen=True)
class StepSkipped:
    """A step with a non-finite loss or gradient, which left the weights unchanged."""

    step: int
    loss: float
    grad_norm: float
    n_skipped: int  # in a row, this one included
    limit: int


@dataclass(frozen=True)
class SpikeSeen:
    """The loss is far above its recent median, `typical`. Reported once; training continues."""

    step: int
    loss: float
    typical: float


@dataclass(frozen=True)
class EvalDone:
    """Mean validation loss in nats per target, over `n_tokens` targets, and the task's own metrics.

    `is_best`: better than all evaluations before, that of step 0 included, by the recipe's `eval.best`.
    """

    step: int
    loss: float
    perplexity: float
    n_tokens: int
    is_best: bool
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    bits_per_byte: float | None = None  # of text: comparable between vocabularies; None for no text


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is on disk. `is_best`: no other one has a better evaluation."""

    step: int
    path: Path
    is_best: bool
    seconds: float


@dataclass(frozen=True)
class Stopped:
    """The last event. `reason` is "finished", "patience", "time" or "signal".

    `best` is what the best evaluation of the whole run found of `best_by`, the loss or a metric, and
    `kept` the same of the best one with a checkpoint; None without any. Step 0 has no checkpoint.
    """

    step: int
    reason: str
    signal: int = 0
    best_by: str = "loss"
    best_step: int = -1
    best: float | None = None
    kept_step: int = -1
    kept: float | None = None


Event = StepDone | StepSkipped | SpikeSeen | EvalDone | CheckpointSaved | Stopped


def to_json(event: Event) -> dict[str, Any]:
    """The event as a JSON object with its class name first: one line of metrics.jsonl."""
    record = {"event": type(event).__name__, **asdict(event)}
    # JSON has no NaN and no infinity; they become null. Of a path, the name is kept.
    return {key: _plain(value) for key, value in record.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    return None if isinstance(value, float) and not math.isfinite(value) else value
