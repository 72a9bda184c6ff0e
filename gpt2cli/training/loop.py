"""The training loop: forward, backward, clip, step, evaluate, save. A generator of events.

Every task trains with it. The caller iterates, and draws, logs or samples between two events, when
the model is in a consistent state; it may stop iterating at any event.
"""

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gpt2cli.errors import DivergedError
from gpt2cli.evaluation.class_metrics import Prediction
from gpt2cli.evaluation.perplexity import perplexity_of
from gpt2cli.training.estimate import explain_out_of_memory, model_flops_utilisation
from gpt2cli.training.events import (
    CheckpointSaved,
    EvalDone,
    Event,
    SpikeSeen,
    StepDone,
    StepSkipped,
    Stopped,
)
from gpt2cli.training.optimizer_step import learning_rate
from gpt2cli.training.setup import TrainingSetup
from gpt2cli.training.torch_compile import uncompiled
from gpt2cli.training.train_state import RECENT_LOSSES, TrainState

SPIKE = 5.0  # times the median of the recent losses
LEAST_SPIKE = 1.0  # nats above it: near a loss of 0 every hard text is many times the median


def train(
    setup: TrainingSetup,
    *,
    save: Callable[[], Path],
    stop: Callable[[], int],
    save_now: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train from `setup.state` to the recipe's last step.

    `save` writes a checkpoint and returns its folder. `stop` is polled before each step and each
    validation batch; it returns 0, or the number of the signal on which the loop saves and ends.
    `save_now` is polled before each step; it returns True once per request for a checkpoint.

    Raises DivergedError, without saving, after too many consecutive non-finite steps or a validation
    loss that is not finite; ResourceError when memory runs out.
    """
    ends_at = time.monotonic() + 60 * (setup.recipe.run.max_minutes or math.inf)
    recipe, state = setup.recipe, setup.state
    n_steps, patience = recipe.optim.steps, recipe.eval.patience
    ranks, save_is_asked = setup.ranks, False
    # The step and the evaluation that are on disk: an evaluation changes the state as well.
    saved = (state.step, state.evaluated) if state.step else None
    with explain_out_of_memory(recipe.batch):
        while True:
            step = state.step
            save_is_asked = save_is_asked or save_now()
            asked = ranks.most(stop(), time.monotonic() >= ends_at, save_is_asked)
            signal, is_out_of_time, is_wanted = asked
            if signal or is_out_of_time:
                if saved != (step, state.evaluated):
                    yield _save(setup, save)
                yield _stopped(state, "signal" if signal else "time", signal)
                return

            is_last = step >= n_steps
            if state.evaluated != step and (is_last or step % recipe.eval.every == 0):
                evaluation = evaluate(setup, stop)
                if evaluation is None:
                    continue  # interrupted by a signal: handled at the top of the loop
                yield evaluation

            stops_early = bool(patience) and state.without_gain >= patience
            ends = is_last or stops_early
            every = recipe.checkpoint.every
            is_due = step % every == 0 if every else state.evaluated == step
            is_due = is_due or ends or state.would_be_kept
            if step and (is_wanted or is_due):
                save_is_asked = False
                if saved != (step, state.evaluated):
                    yield _save(setup, save)
                    saved = (step, state.evaluated)
            if ends:
                yield _stopped(state, "finished" if is_last else "patience")
                return

            event = train_step(setup)
            yield event
            if isinstance(event, StepDone):
                if spike := _detect_spike(state, event):
                    yield spike
            elif event.n_skipped > event.limit:
                raise DivergedError(
                    f"training diverged at step {event.step}: {event.n_skipped} steps in a row not finite",
                    f"loss {event.loss:g}, gradient norm {event.grad_norm:g}",
                    "a smaller learning rate",
                )


def train_step(setup: TrainingSetup, lr: float | None = None) -> StepDone | StepSkipped:
    """One optimizer step over `batch.accumulation` micro-batches, at the schedule's learning rate unless one
    is given; skipped if it is not finite.
    """
    started = time.perf_counter()
    recipe, task, runtime, state = setup.recipe, setup.task, setup.runtime, setup.state
    ranks = setup.ranks
    optimizer_step, step = setup.optimizer_step, state.step
    model = optimizer_step.model
    lr = learning_rate(recipe.optim, step) if lr is None else lr
    for group in optimizer_step.optimizer.param_groups:
        group["lr"] = lr

    # Count the targets of the whole step first: if each micro-batch were divided by its own count,
    # the weight of a target would depend on how many others share its micro-batch.
    micros = ranks.share(recipe.batch.accumulation)
    batches = [task.batch(step, micro).to(runtime.device) for micro in micros]
    n_targets, n_tokens = ranks.add(
        sum(batch.n_targets for batch in batches), sum(batch.input_ids.numel() for batch in batches)
    )

    model.train()
    loss_sums = []
    for micro, batch in zip(micros, batches, strict=True):  # batch.input_ids is (B, T)
        seed_dropout(recipe.seed, step, micro)
        with runtime.autocast():
            loss_sum = optimizer_step.forward(task.loss_sum, batch, runtime.dtype)  # scalar, in nats
        optimizer_step.backward(loss_sum / n_targets)
        loss_sums.append(loss_sum.detach())

    if ranks.world > 1:
        ranks.reduce(optimizer_step.gradients())
    numbers, grad_norm = optimizer_step.losses_and_norm(loss_sums)
    (loss,) = ranks.add(sum(number / n_targets for number in numbers))
    finite = math.isfinite(loss) and math.isfinite(grad_norm)
    if finite:
        optimizer_step.update(grad_norm, recipe.optim.clip)
        state.updates += 1
    optimizer_step.zero_grad()

    state.step += 1
    if not finite:
        # An fp16 gradient that overflows while the loss scale is still decreasing is not a divergence.
        state.skipped_in_a_row += not (math.isfinite(loss) and optimizer_step.is_searching_loss_scale)
        return StepSkipped(state.step, loss, grad_norm, state.skipped_in_a_row, recipe.run.max_skipped_steps)
    state.skipped_in_a_row = 0
    seconds = time.perf_counter() - started
    mfu = model_flops_utilisation(task, n_tokens / seconds / ranks.world, runtime)
    return StepDone(state.step, recipe.optim.steps, loss, lr, grad_norm, int(n_tokens), seconds, mfu)


@torch.no_grad()
def evaluate(setup: TrainingSetup, stop: Callable[[], int]) -> EvalDone | None:
    """Mean loss over the validation batches, recorded in `setup.state`; None if a signal interrupts.

    Raises DivergedError for a loss that is not finite.
    """
    started = time.perf_counter()
    task, runtime, state, ranks = setup.task, setup.runtime, setup.state, setup.ranks
    optimizer_step = setup.optimizer_step
    optimizer_step.model.eval()
    total, n_targets = 0.0, 0
    predictions: list[Prediction] = []
    with uncompiled():
        for batch, is_own in ranks.deal(task.evaluation_batches()):
            if any(ranks.most(stop())):
                return None
            batch = batch.to(runtime.device)
            with runtime.autocast():
                loss_sum, predicted = optimizer_step.forward(task.evaluate_batch, batch, runtime.dtype)
            if is_own:
                total, n_targets = total + loss_sum.item(), n_targets + batch.n_targets
                predictions += predicted
    total, n_all = ranks.add(total, n_targets)
    predictions, loss = ranks.collect(predictions), total / n_all
    if not math.isfinite(loss):
        raise DivergedError(
            f"training diverged: the validation loss at step {state.step} is {loss:g}",
            "the weights give logits that are not finite",
            "a smaller learning rate",
        )

    metrics = task.metrics(predictions)
    is_best = state.add_evaluation(state.step, loss, metrics)
    perplexity = perplexity_of(loss)
    seconds = time.perf_counter() - started
    n_bytes = task.evaluation_bytes
    bits = loss * n_all / math.log(2) / n_bytes if n_bytes else None
    return EvalDone(state.step, loss, perplexity, int(n_all), is_best, seconds, metrics, bits)


def seed_dropout(seed: int, step: int, micro: int) -> None:
    """Make dropout a function of (seed, step, micro-batch).

    Dropout draws from torch's global generator and accepts no other. Seeding it before each forward
    keeps evaluations, samples and resumes from changing the masks.
    """
    digest = hashlib.blake2b(f"{seed} {step} {micro} 0".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


def _save(setup: TrainingSetup, save: Callable[[], Path]) -> CheckpointSaved:
    """Save on rank 0; the others wait until it is on disk."""
    started, state = time.perf_counter(), setup.state
    if state.would_be_kept:
        state.keep(state.step, state.value)
    with setup.optimizer_step.whole_tensors():
        path = save() if setup.ranks.is_first else Path()
    path = setup.ranks.tell(path)
    return CheckpointSaved(state.step, path, state.kept_step == state.step, time.perf_counter() - started)


def _stopped(state: TrainState, reason: str, signal: int = 0) -> Stopped:
    return Stopped(
        step=state.step,
        reason=reason,
        signal=signal,
        best_by=state.best_by,
        best_step=state.best_step,
        best=state.best_value,
        kept_step=state.kept_step,
        kept=state.kept_value,
    )


def _detect_spike(state: TrainState, event: StepDone) -> SpikeSeen | None:
    """Report a loss far above the recent median, once per climb."""
    recent = state.recent_losses
    typical = statistics.median(recent) if len(recent) >= 8 else math.inf
    was_in_spike, state.in_spike = state.in_spike, event.loss > max(SPIKE * typical, typical + LEAST_SPIKE)
    if not state.in_spike:  # losses of a spike must not raise the median
        state.recent_losses = [*recent, event.loss][-RECENT_LOSSES:]
    return SpikeSeen(event.step, event.loss, typical) if state.in_spike and not was_in_spike else None
