"""Where a run's numbers may go besides its own folder: TensorBoard, Weights & Biases.

A sink is a context manager over a `LoggedRun` that yields a function of a step and numbers by tag. The
recipe's `log` section has a key for each.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.errors import ServiceError, UsageError
from gpt2cli.recipe.schema import Recipe
from gpt2cli.training.events import EvalDone, Event, StepDone

Write = Callable[[int, Mapping[str, float]], None]

# event kind -> {tag: field}
_SCALARS: dict[type, dict[str, str]] = {
    StepDone: {"loss/train": "loss", "lr": "lr", "grad_norm": "grad_norm"},
    EvalDone: {"loss/validation": "loss", "perplexity": "perplexity", "bits_per_byte": "bits_per_byte"},
}


@dataclass(frozen=True)
class LoggedRun:
    """A run that is about to train, from `first_step` finished steps on."""

    folder: Path
    recipe: Recipe
    first_step: int
    offline: bool  # the network is forbidden


@contextlib.contextmanager
def log_sinks(run: LoggedRun) -> Iterator[Callable[[Event], None]]:
    """Yields the function that logs an event in each sink that the recipe turns on; none imports anything.

    Raises UsageError for a sink whose package is not installed, ServiceError for one that cannot begin.
    """
    with contextlib.ExitStack() as stack:
        wanted = [sink for key, sink in SINKS.items() if getattr(run.recipe.log, key)]
        writers = [stack.enter_context(sink(run)) for sink in wanted]

        def log(event: Event) -> None:
            if writers and (numbers := _numbers(event)):
                for write in writers:
                    write(event.step, numbers)

        yield log


def _numbers(event: Event) -> dict[str, float]:
    fields = {tag: getattr(event, field) for tag, field in _SCALARS.get(type(event), {}).items()}
    metrics = event.metrics if isinstance(event, EvalDone) else {}
    return {tag: value for tag, value in (fields | metrics).items() if value is not None}


@contextlib.contextmanager
def _tensorboard(run: LoggedRun) -> Iterator[Write]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _not_installed("tensorboard") from None
    folder = str(run.folder / "tensorboard")
    # purge_step hides what an interrupted run logged after its checkpoint.
    writer: Any = SummaryWriter(folder, purge_step=run.first_step + 1)
    with contextlib.closing(writer):

        def write(step: int, numbers: Mapping[str, float]) -> None:
            for tag, value in numbers.items():
                writer.add_scalar(tag, value, step)

        yield write


@contextlib.contextmanager
def _wandb(run: LoggedRun) -> Iterator[Write]:
    """A resumed run continues the first session's wandb run, whose id is in the folder; its x axis is `step`,
    because wandb's own counter cannot go back to a checkpoint.
    """
    try:
        import wandb
    except ImportError:
        raise _not_installed("wandb") from None
    try:
        session = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "gpt2cli"),
            name=run.folder.name,
            id=_wandb_id(run),
            resume="allow",
            dir=str(run.folder),
            config=run.recipe.model_dump(mode="json"),
            mode="offline" if run.offline else None,  # None: what WANDB_MODE says
            settings=wandb.Settings(console="off"),  # the display stays ours
        )
    except wandb.Error as error:
        why = str(error).partition("\n")[0]
        fix = "wandb login, export WANDB_MODE=offline, or log.wandb=false"
        fix = "unset WANDB_PROJECT, or give it another name" if "project name" in why else fix
        raise ServiceError("log.wandb: Weights & Biases cannot begin", why, fix) from None
    session.define_metric("step")
    session.define_metric("*", step_metric="step")
    code = 1
    try:
        yield lambda step, numbers: session.log({"step": step, **numbers})
        code = 0
    finally:
        session.finish(exit_code=code)


def _wandb_id(run: LoggedRun) -> str:
    path = run.folder / "wandb" / "id"
    if run.first_step and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    path.parent.mkdir(exist_ok=True)
    path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _not_installed(package: str) -> UsageError:
    return UsageError(
        f"log.{package} is true, but {package} is not installed",
        fix=f"pip install {package}, or log.{package}=false",
    )


SINKS: dict[str, Callable[[LoggedRun], AbstractContextManager[Write]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
