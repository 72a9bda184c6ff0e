"""Owns the assembly of one run: runtime, model, optimizer, task and progress, fresh or resumed.

Everything that the loop needs is put together here, once, for a new run, a resumed one and a dry
run alike. What a run's folder looks like is `run.py`'s business.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpt2cli.checkpoints.folder import read_manifest, write_manifest
from gpt2cli.errors import DivergedError
from gpt2cli.recipe.loader import dump_recipe
from gpt2cli.recipe.schema import Recipe
from gpt2cli.runtime import Runtime, choose_attention, choose_runtime
from gpt2cli.training.estimate import explained
from gpt2cli.training.events import Event
from gpt2cli.training.loop import train
from gpt2cli.training.optim import make_optimizer, parameter_names
from gpt2cli.training.optimizer_step import Learner
from gpt2cli.training.run_dir import Run, save_checkpoint
from gpt2cli.training.task import WORLD, Task
from gpt2cli.training.torch_compile import compile_step
from gpt2cli.training.train_state import (
    TENSORS,
    Identity,
    Progress,
    read_facts,
    read_moments,
    refuse_differences,
    write_state,
)


@dataclass(frozen=True)
class Session:
    """A run that is ready to train. `notices` are sentences for the person who started it."""

    recipe: Recipe
    runtime: Runtime
    attention: str  # "sdpa", "formula" or "blocks"
    model: Any  # a GPT-2 under the task's head, in fp32: what is saved
    learner: Learner
    task: Task
    progress: Progress
    identity: Identity
    notices: tuple[str, ...]

    def events(self, run: Run, stop: Callable[[], int]) -> Iterator[Event]:
        """Train to the end, saving into `run`. Raises ResourceError where memory runs out."""
        with explained(self.recipe.batch):
            yield from train(
                self.learner,
                self.task,
                self.progress,
                self.recipe,
                self.runtime,
                save=lambda: self.save(run),
                stop=stop,
            )

    def save(self, run: Run) -> Path:
        """Save model and state as the checkpoint of the present step.

        Raises DivergedError for weights that are not finite: saved, they would push out whole ones.
        """
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise DivergedError(
                f"the weights at step {self.progress.step} are not finite",
                "the learning rate is far too high; the checkpoints before are kept",
                f"resume with a smaller rate: --resume optim.lr={self.recipe.optim.lr / 10:.2g}",
            )
        names, progress = parameter_names(self.model), self.progress

        def write(folder: Path) -> None:
            hashes = self.task.write_model(folder, self.model, dump_recipe(self.recipe))
            scaler = self.learner.scaler.state_dict()
            hashes |= write_state(folder, self.learner.optimizer, names, progress, self.identity, scaler)
            write_manifest(folder, hashes)

        return save_checkpoint(run, progress.step, progress.best_step, self.recipe.checkpoint.keep, write)


def open_session(task: Task, recipe: Recipe, checkpoint: Path | None) -> Session:
    """Build a fresh session, or the one that `checkpoint` (verified by the caller) continues.

    Raises InputError where the checkpoint belongs to another run, ResourceError for want of memory.
    """
    config, asked = task.config, recipe.run
    # 6 floating-point operations a parameter and token: 2 forward, 4 backward (Kaplan et al. 2020).
    work = 6.0 * config.n_parameters * recipe.optim.steps * task.tokens_per_step
    runtime = choose_runtime(
        asked.device, asked.precision, asked.threads, asked.compile, training=True, flops=work
    )
    if task.row_length is None:  # torch would compile again for each new length
        runtime = replace(runtime, compile=False)
    notices = list(runtime.notices)
    identity = identity_of(recipe, task)
    progress, scaler_state = Progress(), dict[str, Any]()
    if checkpoint is not None:
        progress, saved_identity, scaler_state = read_facts(checkpoint)
        refuse_differences(saved_identity, identity)
    attention = choose_attention(
        asked.attention, runtime.device, config.n_positions, compiled=runtime.compile
    )
    with explained(recipe.batch):
        if checkpoint is None:
            model = task.fresh_model(attention)
        else:
            model = task.saved_model(checkpoint, attention)
        for parameter in model.parameters():  # laid out like a fresh model's, to round like it
            parameter.data = parameter.data.contiguous()
        model.transformer.activation_checkpointing = asked.recompute == "on"
        model.to(runtime.device)
        optimizer = make_optimizer(model, recipe.optim, runtime.device)
        if checkpoint is not None:
            sha256 = read_manifest(checkpoint)[TENSORS]
            read_moments(checkpoint, optimizer, parameter_names(model), progress.updates, sha256)
        scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        if scaler_state:
            scaler.load_state_dict(scaler_state)
        learner = Learner(model, optimizer, scaler)
        if runtime.compile:
            fast = learner
            if runtime.device.type == "cpu" and runtime.precision == "bf16":
                from gpt2cli.training.master_weights import (
                    CopyLearner,  # brings the compiler along: a second or two
                )

                fast = CopyLearner(model, optimizer)
            if notice := compile_step(fast, recipe.batch.micro_batch, runtime):
                notices.append(notice)
                runtime = replace(runtime, compile=False)
            else:
                learner = fast
    return Session(
        recipe=recipe,
        runtime=runtime,
        attention=attention,
        model=model,
        learner=learner,
        task=task,
        progress=progress,
        identity=identity,
        notices=tuple(notices),
    )


def identity_of(recipe: Recipe, task: Task) -> Identity:
    """What must be the same for a resumed run to end in the weights of an uninterrupted one."""
    config = task.config
    return task.identity() | {
        "vocabulary": task.tokenizer.fingerprint[:16],
        "model.n_layer": config.n_layer,
        "model.n_head": config.n_head,
        "model.n_embd": config.n_embd,
        "model.n_inner": config.mlp_width,
        "model.context": config.n_positions,
        "batch.micro_batch": recipe.batch.micro_batch,
        "batch.accumulation": recipe.batch.accumulation,
        "seed": recipe.seed,
        "world size": WORLD,
    }
