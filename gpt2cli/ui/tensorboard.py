"""The optional TensorBoard log of a run: the numbers of its events as scalars."""

from pathlib import Path
from types import TracebackType
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.training.events import EvalDone, Event, StepDone

# event kind -> {tag: field}
_SCALARS: dict[type, dict[str, str]] = {
    StepDone: {"loss/train": "loss", "lr": "lr", "grad_norm": "grad_norm"},
    EvalDone: {"loss/validation": "loss", "perplexity": "perplexity"},
}


class TensorBoardLog:
    """A context manager. When off, it writes and imports nothing."""

    def __init__(self, folder: Path, on: bool, first_step: int) -> None:
        self._writer: Any = _open_writer(folder, first_step) if on else None

    def __enter__(self) -> "TensorBoardLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, event: Event) -> None:
        if self._writer is None:
            return
        for tag, field in _SCALARS.get(type(event), {}).items():
            self._writer.add_scalar(tag, getattr(event, field), event.step)


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
