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
    """Mean validation loss in nats per target, over `n_tokens` targets, and the task's own metrics."""

    step: int
    loss: float
    perplexity: float
    n_tokens: int
    is_best: bool
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointSaved:
    step: int
    path: Path
    is_best: bool
    seconds: float


@dataclass(frozen=True)
class Stopped:
    """The last event. `reason` is "finished", "patience", "time" or "signal"."""

    step: int
    reason: str
    signal: int = 0


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
