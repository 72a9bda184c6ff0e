"""The learning rate finder: a short training whose rate rises exponentially (Smith 2017, section 3.3).

"Cyclical Learning Rates for Training Neural Networks". The loss falls, levels off, then explodes. Rates above
its minimum no longer train. A training that keeps its rate for long needs a smaller one: a tenth, the rule of
fastai's finder (Howard and Gugger 2020).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpt2cli.errors import DivergedError
from gpt2cli.training.loop import train_step
from gpt2cli.training.setup import TrainingSetup

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100
MEMORY = 0.9  # of the running mean of the losses
EXPLODED = 2.0  # times the lowest loss so far
SAFETY = 10.0


@dataclass(frozen=True)
class RateTried:
    """One step: its rate, its loss in nats, and the running mean of the losses, which has no bias to 0."""

    step: int
    lr: float
    loss: float
    smoothed: float


def try_rates(setup: TrainingSetup) -> Iterator[RateTried]:
    """Train a fresh setup, which cannot be used afterwards. Ends at the highest rate, or where the loss
    explodes or is not finite.
    """
    mean, lowest, ratio = 0.0, math.inf, (HIGHEST / LOWEST) ** (1 / (STEPS - 1))
    for step in range(1, STEPS + 1):
        lr = LOWEST * ratio ** (step - 1)
        loss = train_step(setup, lr).loss
        if not math.isfinite(loss):
            return
        mean = MEMORY * mean + (1 - MEMORY) * loss
        smoothed = mean / (1 - MEMORY**step)
        yield RateTried(step, lr, loss, smoothed)
        if smoothed > EXPLODED * lowest:
            return
        lowest = min(lowest, smoothed)


def suggested_rate(tried: Sequence[RateTried]) -> float:
    """A tenth of the rate at which the smoothed loss was lowest, to two digits.

    Raises DivergedError if no step had a finite loss.
    """
    if not tried:
        raise DivergedError(
            "no learning rate was found", "the first loss is not finite", "run.precision=fp32"
        )
    best = min(tried, key=lambda one: one.smoothed)
    return float(f"{best.lr / SAFETY:.1e}")
