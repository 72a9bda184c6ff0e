"""Training from Python: the events of a run, one after another."""

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpt2cli.api.wording import python_words, require_text
from gpt2cli.data.prepare_pipeline import PrepareProgress
from gpt2cli.errors import UsageError
from gpt2cli.recipe.loader import load_recipe
from gpt2cli.recipe.schema import ClassifyRecipe, PretrainRecipe, Recipe
from gpt2cli.training import loop
from gpt2cli.training import run_dir as runs
from gpt2cli.training.events import EvalDone, Event, Stopped
from gpt2cli.training.open_task import (
    Origin,
    open_classification,
    open_instruction_tuning,
    open_pretraining,
)
from gpt2cli.training.run_record import (
    explain_divergence,
    recipe_of_run,
    record_session,
    require_optimizer_state,
    resume_point,
    run_name_of,
)
from gpt2cli.training.setup import set_up_training
from gpt2cli.training.task import TrainingTask

LOG = logging.getLogger("gpt2cli")


@python_words()
def train(
    recipe: str | Path,
    *,
    name: str | None = None,
    resume: bool = False,
    offline: bool = False,
    **overrides: Any,
) -> Iterator[Event]:
    """Train as a recipe describes, and yield the events: steps, evaluations, checkpoints, the end.

    The recipe is a YAML file or a shipped one's name. Overrides are keywords with two underscores for the
    dot: `optim__lr=1e-3` is `optim.lr=1e-3` on the command line. The run in `runs/` is the one that the
    command line makes, but for samples and for the report or the answers after the last step; the recipe's
    command with `--resume` adds these. Training happens between two events: leave the loop, and it ends, with
    the checkpoints so far.

    Raises UsageError at once for a recipe that is wrong; at the first event InputError for data and
    ResourceError for a run that is locked; later DivergedError.

    >>> events = gpt2cli.train("tiny.yaml", name="doc", optim__steps=4, optim__lr=1e-3)
    >>> losses = [event.loss for event in events if type(event).__name__ == "StepDone"]
    >>> len(losses)
    4
    >>> gpt2cli.load("runs/doc").config.n_layer
    1
    """
    source = str(recipe)
    if name is not None:
        require_text(name, "name")
    given = [f"{key.replace('__', '.')}={_as_yaml(key, value)}" for key, value in overrides.items()]
    task = load_recipe(source, given).recipe.task  # whatever is wrong with it is said at once
    return _events(source, task, given, name, resume, offline)


def _events(
    source: str, task_name: str, given: list[str], name: str | None, resume: bool, offline: bool
) -> Iterator[Event]:
    with python_words():
        yield from _trained(source, task_name, given, name, resume, offline)


def _trained(
    source: str, task_name: str, given: list[str], name: str | None, resume: bool, offline: bool
) -> Iterator[Event]:
    run = runs.find_run(name or run_name_of(source), resume=resume)
    command = f"gpt2 {task_name} {source}"
    found = recipe_of_run(
        run, given, partial(load_recipe, source), f"{command} --resume" if resume else "", _notice
    )
    recipe = found.loaded.recipe
    with runs.start_run(run, task_name):
        runs.sweep(run)
        checkpoint = resume_point(run, None, command, _notice) if resume else None
        if checkpoint:
            require_optimizer_state(checkpoint, recipe)
        with _open(recipe, offline, checkpoint) as (task, origin):
            setup = set_up_training(task, task.recipe, checkpoint)
            runs.require_room_to_train(run, setup)
            for sentence in setup.notices:
                _notice(f"warning: {sentence}")
            record_session(run, setup, checkpoint, found.given, origin, sys.argv, _notice)
            with explain_divergence(run, setup):
                for event in loop.train(
                    setup, save=lambda: runs.save_checkpoint(run, setup, _notice), stop=lambda: 0
                ):
                    runs.append_event(run, event)
                    if isinstance(event, EvalDone | Stopped):
                        _plot(run)
                    yield event


def _open(
    recipe: Recipe, offline: bool, checkpoint: Path | None
) -> contextlib.AbstractContextManager[tuple[TrainingTask, Origin]]:
    if isinstance(recipe, PretrainRecipe):
        return open_pretraining(recipe, offline, checkpoint, _notice, _prepare)
    if isinstance(recipe, ClassifyRecipe):
        return open_classification(recipe, offline, checkpoint, _notice)
    return open_instruction_tuning(recipe, offline, checkpoint, _notice)


def _prepare(steps: Iterable[PrepareProgress]) -> PrepareProgress:
    last = None
    for last in steps:
        if last.warning:
            _notice(f"warning: {last.warning}")
    assert last is not None, "a preparation ends with a step"
    return last


def _plot(run: runs.RunDir) -> None:
    from gpt2cli.ui.plots import plot_losses

    plot_losses(run.metrics, run.plot, title=run.name)


def _as_yaml(key: str, value: Any) -> str:
    """An override's value as JSON, which YAML contains."""
    try:
        return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
    except TypeError:
        kind = type(value).__name__
        raise UsageError(f"{key} is a {kind}", "a recipe has texts, numbers and lists of them") from None


def _notice(sentence: str) -> None:
    """Warnings become Python's; notes go to the log `gpt2cli`, which shows them on request."""
    if sentence.startswith("warning: "):
        warnings.warn(sentence.removeprefix("warning: "), stacklevel=2)
    else:
        LOG.info(sentence.removeprefix("note: "))
