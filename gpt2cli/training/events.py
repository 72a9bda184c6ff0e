"""Owns the vocabulary of the training loop: what it reports, one frozen dataclass an event.

No torch here: whoever draws, logs or stores events needs numbers and paths only.
`step` counts finished optimizer steps, so the first StepDone has step 1.
"""

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
    n_tokens: int  # input tokens of this step, all micro batches
    seconds: float
    utilisation: float | None = None  # of a GPU's peak, where that is known


@dataclass(frozen=True)
class StepSkipped:
    """A step whose loss or gradient was not finite: the weights were left as they were."""

    step: int
    loss: float
    grad_norm: float
    n_skipped: int  # in a row, this one included
    limit: int


@dataclass(frozen=True)
class SpikeSeen:
    """The loss is far above its recent median; said once, training goes on."""

    step: int
    loss: float
    typical: float


@dataclass(frozen=True)
class EvalDone:
    """Mean validation loss in nats, over `n_tokens` targets, and what else the task measures."""

    step: int
    loss: float
    perplexity: float
    n_tokens: int
    is_best: bool
    seconds: float
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointSaved:
    step: int
    path: Path
    is_best: bool
    seconds: float


@dataclass(frozen=True)
class Stopped:
    """The last event. `reason` is "finished", "patience" or "signal"."""

    step: int
    reason: str
    signal: int = 0


Event = StepDone | StepSkipped | SpikeSeen | EvalDone | CheckpointSaved | Stopped


def to_json(event: Event) -> dict[str, Any]:
    """The event as one JSON object, its kind first: a line of metrics.jsonl."""
    record = {"event": type(event).__name__, **asdict(event)}
    # JSON has no NaN or infinity; null says "not a number" to every reader. A path is stored by name.
    return {key: _plain(value) for key, value in record.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
