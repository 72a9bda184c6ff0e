"""Owns THE loop: forward, backward, clip, step, evaluate, save; a generator of events.

Every task trains with it. Whoever iterates draws, logs, samples, or walks away; between two
events the model is whole. The loop opens no file: `save` does, and says where.
"""

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from gpt2cli.errors import DivergedError
from gpt2cli.evaluation.classes import Verdict
from gpt2cli.recipe.schema import Recipe
from gpt2cli.runtime import Runtime
from gpt2cli.training.events import (
    CheckpointSaved,
    EvalDone,
    Event,
    SpikeSeen,
    StepDone,
    StepSkipped,
    Stopped,
)
from gpt2cli.training.optim import learning_rate
from gpt2cli.training.optimizer_step import Learner
from gpt2cli.training.task import RANK, Task
from gpt2cli.training.torch_compile import uncompiled
from gpt2cli.training.train_state import RECENT, Progress
from gpt2cli.training.utilisation import utilisation

SPIKE = 5.0  # times the median of the recent losses


def train(
    learner: Learner,
    task: Task,
    progress: Progress,
    recipe: Recipe,
    runtime: Runtime,
    *,
    save: Callable[[], Path],
    stop: Callable[[], int],
) -> Iterator[Event]:
    """Train from `progress` to the recipe's last step. `progress` moves with the model.

    `stop` is polled in every phase and returns a signal number, or 0; the loop then saves and
    ends. Raises DivergedError after too many steps in a row without a finite loss or gradient.
    """
    n_steps, every, patience = recipe.optim.steps, recipe.checkpoint.every, recipe.eval.patience
    # What is on the disk: an evaluation changes the progress too. A fresh run has nothing there.
    saved = (progress.step, progress.evaluated) if progress.step else None
    while True:
        step = progress.step
        if signal := stop():
            if saved != (step, progress.evaluated):
                yield _save(progress, save)
            yield Stopped(step, "signal", signal)
            return

        at_end = step >= n_steps
        if progress.evaluated != step and (at_end or step % recipe.eval.every == 0):
            evaluated = evaluate(learner.model, task, progress, runtime, stop)
            if evaluated is None:
                continue  # interrupted: the top of the loop saves and ends
            yield evaluated

        out_of_patience = bool(patience) and progress.without_gain >= patience
        ends = at_end or out_of_patience
        is_due = step % every == 0 if every else progress.evaluated == step
        if (ends or is_due or progress.best_step == step) and step and saved != (step, progress.evaluated):
            yield _save(progress, save)
            saved = (step, progress.evaluated)
        if ends:
            yield Stopped(step, "finished" if at_end else "patience")
            return

        event = take_step(learner, task, progress, recipe, runtime)
        yield event
        if isinstance(event, StepSkipped):
            if event.n_skipped > event.limit:
                progress.skipped_in_a_row = 0  # a resume, at a smaller rate, may try as often again
                yield _save(progress, save)  # the weights are those of the last finite step
                raise DivergedError(
                    f"training diverged at step {event.step}: {event.n_skipped} steps in a row not finite",
                    f"loss {event.loss:g}, gradient norm {event.grad_norm:g}; finite weights are saved",
                    f"resume with a smaller rate: --resume optim.lr={recipe.optim.lr / 3:.2g}",
                )
        elif spike := _watch(progress, event):
            yield spike


def take_step(
    learner: Learner,
    task: Task,
    progress: Progress,
    recipe: Recipe,
    runtime: Runtime,
) -> StepDone | StepSkipped:
    """One optimizer step over `accumulation` micro batches."""
    started = time.perf_counter()
    step, model = progress.step, learner.model
    lr = learning_rate(recipe.optim, step)
    for group in learner.optimizer.param_groups:
        group["lr"] = lr

    # The whole step's targets are counted first: dividing each micro batch by its own count would
    # weigh a target by the company it keeps.
    batches = [task.batch(step, micro).to(runtime.device) for micro in range(recipe.batch.accumulation)]
    n_targets = sum(task.n_targets(batch) for batch in batches)
    model.train()
    loss = 0.0
    for micro, batch in enumerate(batches):
        seed_dropout(recipe.seed, step, micro, RANK)
        with runtime.autocast():
            loss_sum = task.loss_sum(model, batch, runtime.dtype)
        learner.backward(loss_sum / n_targets)
        loss += loss_sum.item() / n_targets

    norm = learner.gradient_norm()
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite:
        learner.update(norm, recipe.optim.clip)
        progress.updates += 1
    learner.finish()

    progress.step += 1
    if not finite:
        progress.skipped_in_a_row += not (math.isfinite(loss) and learner.searches_scale)
        return StepSkipped(progress.step, loss, norm, progress.skipped_in_a_row, recipe.run.max_bad_steps)
    progress.skipped_in_a_row = 0
    n_tokens = sum(batch.input_ids.numel() for batch in batches)
    seconds = time.perf_counter() - started
    share = utilisation(task, n_tokens / seconds, runtime)
    return StepDone(progress.step, recipe.optim.steps, loss, lr, norm, n_tokens, seconds, share)


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Task, progress: Progress, runtime: Runtime, stop: Callable[[], int]
) -> EvalDone | None:
    """Mean loss over the validation batches, noted in `progress`; None where a signal came first."""
    started = time.perf_counter()
    model.eval()
    total, n_targets = 0.0, 0
    verdicts: list[Verdict] = []
    with uncompiled():
        for batch in task.evaluation_batches():
            if stop():
                return None
            batch = batch.to(runtime.device)
            with runtime.autocast():
                loss_sum, found = task.judge(model, batch, runtime.dtype)
            total, n_targets = total + loss_sum.item(), n_targets + task.n_targets(batch)
            verdicts += found
    loss = total / n_targets
    is_best = loss < progress.best_loss
    if is_best:
        progress.best_loss, progress.best_step = loss, progress.step
    progress.without_gain = 0 if is_best else progress.without_gain + 1
    progress.evaluated = progress.step
    perplexity = math.exp(min(loss, 700.0))  # beyond that a float ends
    seconds, measures = time.perf_counter() - started, task.measures(verdicts)
    return EvalDone(progress.step, loss, perplexity, n_targets, is_best, seconds, measures)


def seed_dropout(seed: int, step: int, micro: int, rank: int) -> None:
    """Make dropout a function of (seed, step, micro batch, rank).

    Dropout draws from torch's global generator and takes no other. Seeding it before each forward
    cuts every path by which something else (an evaluation, a sample, a resume) could change it.
    """
    digest = hashlib.blake2b(f"{seed} {step} {micro} {rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


def _save(progress: Progress, save: Callable[[], Path]) -> CheckpointSaved:
    started = time.perf_counter()
    path = save()
    is_best = progress.best_step == progress.step
    return CheckpointSaved(progress.step, path, is_best, time.perf_counter() - started)


def _watch(progress: Progress, event: StepDone) -> SpikeSeen | None:
    """Notice a loss far above what is usual, once for each climb."""
    recent = progress.recent_losses
    typical = statistics.median(recent) if len(recent) >= 8 else math.inf
    was_in_spike, progress.in_spike = progress.in_spike, event.loss > SPIKE * typical
    if not progress.in_spike:  # a spike must not become what is usual
        progress.recent_losses = [*recent, event.loss][-RECENT:]
    return SpikeSeen(event.step, event.loss, typical) if progress.in_spike and not was_in_spike else None
