"""The parts of one training run, assembled alike for a new run, a resumed one and a dry run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpt2cli.cores import choose_threads, forward_seconds
from gpt2cli.errors import UsageError
from gpt2cli.recipe.schema import Recipe
from gpt2cli.recipe.sections import OptimConfig
from gpt2cli.runtime import (
    Runtime,
    choose_attention,
    choose_runtime,
    has_fast_bf16,
    keep_freed_memory,
    return_freed_memory,
)
from gpt2cli.training.estimate import explain_out_of_memory
from gpt2cli.training.optimizer_step import OptimizerStep, make_optimizer
from gpt2cli.training.ranks import ALONE, Ranks
from gpt2cli.training.task import TrainingTask
from gpt2cli.training.torch_compile import compile_blocks
from gpt2cli.training.train_state import (
    RunIdentity,
    TrainState,
    load_moments,
    read_state,
    read_threads,
    require_same_run,
)


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that the training loop needs."""

    recipe: Recipe
    runtime: Runtime
    attention: str  # "sdpa", "formula" or "blocks"
    model: Any  # a GPT-2 with the task's head, in fp32; checkpoints hold this one
    optimizer_step: OptimizerStep  # its `model` runs the forward: the model, its bf16 copy or its parts
    task: TrainingTask
    state: TrainState
    identity: RunIdentity
    notices: tuple[str, ...]  # sentences for the user: options that are not available here
    ranks: Ranks = ALONE


def set_up_training(
    task: TrainingTask, recipe: Recipe, checkpoint: Path | None, ranks: Ranks = ALONE
) -> TrainingSetup:
    """Set up a new run, or resume from `checkpoint`, whose hashes the caller has verified.

    Raises InputError if the checkpoint belongs to another run, ResourceError if memory runs out.
    """
    config, run = task.config, recipe.run
    # 6 FLOPs per parameter and token: 2 forward, 4 backward (Kaplan et al. 2020).
    flops = 6.0 * config.n_parameters * recipe.optim.steps * task.tokens_per_step
    n_tokens = recipe.batch.micro_batch * (task.row_length or config.n_positions)
    forward = forward_seconds(config.n_parameters, n_tokens)
    # A resumed run ends with the bits of an undisturbed one only with as many threads.
    recorded = read_threads(checkpoint, ranks.world) if checkpoint and not run.threads else 0
    runtime = choose_runtime(
        *(run.device, run.precision, run.threads or recorded, run.compile),
        training=True,
        flops=flops / ranks.world,
        forward=forward,
        processes=ranks.local_world,
    )
    if task.row_length is None:  # torch would compile again for each new length
        runtime = replace(runtime, compile=False)
    is_sharded = run.shard == "on" and ranks.world > 1
    if is_sharded:
        runtime = _runtime_in_parts(runtime, recipe.optim)
    elif run.shard == "on":
        lacks = "run.shard is on, but one process has no other to share with: it holds the whole model"
        runtime = replace(runtime, notices=(*runtime.notices, lacks))
    if runtime.device.type == "cpu":
        (return_freed_memory if is_sharded else keep_freed_memory)()
    attention = choose_attention(run.attention, runtime.device, config.n_positions, compiled=runtime.compile)
    notices = list(runtime.notices)
    if recorded and recorded != (own := choose_threads(0, forward, ranks.local_world)):
        notices.append(
            f"threads stay at {recorded}, as before, for the same bits; run.threads={own} would be new here"
        )
    if recipe.optim.name == "muon" and runtime.device.type == "cpu" and not has_fast_bf16(runtime.device):
        notices.append("Muon multiplies in bf16, which this processor emulates: its update takes long")

    identity, scaler_state = run_identity(recipe, task), dict[str, Any]()
    state = TrainState(best_by=recipe.eval.best)
    if checkpoint is not None:
        state, saved_identity, scaler_state = read_state(checkpoint)
        from_here = f"init={checkpoint} " if recipe.task == "pretrain" and recipe.train == "all" else ""
        require_same_run(saved_identity, identity, f"{from_here}--name NAME")

    with explain_out_of_memory(recipe.batch):
        model = task.saved_model(checkpoint, attention) if checkpoint else task.fresh_model(attention)
        for parameter in model.parameters():  # the memory layout of a new model: the same rounding
            parameter.data = parameter.data.contiguous()
        model.transformer.activation_checkpointing = run.activation_checkpointing == "on"
        scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        if scaler_state:
            scaler.load_state_dict(scaler_state)
        optimizer_step: OptimizerStep
        if is_sharded:
            from gpt2cli.training.shard import ShardedStep  # loads torch.distributed's larger half

            sharded = ShardedStep(model, recipe.optim, scaler, ranks, runtime.device)
            model, optimizer_step = sharded.whole_model, sharded
        else:
            model.to(runtime.device)
            optimizer_step = OptimizerStep(model, make_optimizer(model, recipe.optim, runtime.device), scaler)
        optimizer, names = optimizer_step.optimizer, optimizer_step.names
        if checkpoint is not None:
            load_moments(checkpoint, optimizer, names, state.updates, optimizer_step.place)
        if runtime.compile:
            compiled = optimizer_step
            if runtime.device.type == "cpu" and runtime.precision == "bf16":
                # Imported here: it loads the compiler, a second or two.
                from gpt2cli.training.master_weights import MasterWeightsStep

                compiled = MasterWeightsStep(model, optimizer)
            if notice := compile_blocks(compiled, recipe.batch.micro_batch, runtime):
                notices.append(notice)
                runtime = replace(runtime, compile=False)
            else:
                optimizer_step = compiled
    return TrainingSetup(
        recipe=recipe,
        runtime=runtime,
        attention=attention,
        model=model,
        optimizer_step=optimizer_step,
        task=task,
        state=state,
        identity=identity,
        notices=tuple(notices),
        ranks=ranks,
    )


def _runtime_in_parts(runtime: Runtime, optim: OptimConfig) -> Runtime:
    """The runtime of a sharded model. Raises UsageError for what needs the whole of it."""
    if optim.name == "muon":
        raise UsageError(
            "run.shard: on does not train with muon",
            "it orthogonalizes whole matrices, and each process holds a part",
            "optim.name=adamw",
        )
    if runtime.precision == "fp16":
        raise UsageError(
            "run.shard: on does not train in fp16",
            "each process would find its own loss scale",
            "run.precision=fp32",
        )
    without = "run.shard is on: nothing is sampled between steps"
    without += ", and blocks are not compiled" if runtime.compile else ""
    return replace(runtime, compile=False, notices=(*runtime.notices, without))


def run_identity(recipe: Recipe, task: TrainingTask) -> RunIdentity:
    """The values that must not change for a resumed run to end with an uninterrupted run's weights."""
    config = task.config
    return task.identity() | {
        "vocabulary": task.tokenizer.fingerprint[:16],
        "model.n_layer": config.n_layer,
        "model.n_head": config.n_head,
        "model.n_embd": config.n_embd,
        "model.n_inner": config.mlp_width,
        "model.context": config.n_positions,
        "seed": recipe.seed,
        "model.positions": config.positions,
        "optim.name": recipe.optim.name,
    }
