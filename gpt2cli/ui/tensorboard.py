"""The optional TensorBoard log of a run: the numbers of its events as scalars."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.training.events import EvalDone, Event, StepDone

# event kind -> {tag: field}
_SCALARS: dict[type, dict[str, str]] = {
    StepDone: {"loss/train": "loss", "lr": "lr", "grad_norm": "grad_norm"},
    EvalDone: {"loss/validation": "loss", "perplexity": "perplexity"},
}


@contextlib.contextmanager
def tensorboard_log(folder: Path, on: bool, first_step: int) -> Iterator[Callable[[Event], None]]:
    """Yields the function that logs an event. When off, it writes and imports nothing."""
    if not on:
        yield lambda event: None
        return
    with contextlib.closing(_open_writer(folder, first_step)) as writer:

        def log(event: Event) -> None:
            for tag, field in _SCALARS.get(type(event), {}).items():
                writer.add_scalar(tag, getattr(event, field), event.step)

        yield log


def _open_writer(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "log.tensorboard is true, but tensorboard is not installed",
            fix="pip install 'gpt2cli[tensorboard]', or log.tensorboard=false",
        ) from None
    # Hides what an interrupted run logged after its checkpoint.
    return SummaryWriter(str(folder), purge_step=first_step + 1)
