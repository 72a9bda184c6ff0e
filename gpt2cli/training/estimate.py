"""Estimates of what training costs: memory before it starts, and the model FLOPs utilisation of a GPU."""

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import nn

from gpt2cli.errors import ResourceError, is_out_of_memory
from gpt2cli.model.config import GPT2Config
from gpt2cli.recipe.schema import Recipe
from gpt2cli.recipe.sections import BatchConfig, OptimConfig
from gpt2cli.runtime import Runtime
from gpt2cli.training.fused_cross_entropy import CHUNK
from gpt2cli.training.optimizer_step import muon_matrices
from gpt2cli.training.task import TrainingTask

# Peak dense 16-bit tensor-core FLOP/s by words of the device's name, from the vendors' data sheets;
# the first match counts. Other devices get no MFU: a guessed peak would mislead.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}


def estimate_memory(
    config: GPT2Config,
    micro_batch: int,
    bytes_per_number: int,
    *,
    n_trainable: int,
    n_muon: int = 0,
    n_outputs: int,
    activation_checkpointing: bool = False,
    device: str = "cpu",
) -> dict[str, int]:
    """Bytes by purpose. Weights, gradients and moments are exact, activations count the saved tensors.

    `bytes_per_number` follows from the precision: 4 for fp32, 2 for bf16 and fp16. Only the
    `n_trainable` parameters have gradients and moments, `n_muon` of them Muon's single one. `n_outputs`
    counts the positions of a micro-batch that reach the output layer; a classifier has none. With activation
    checkpointing each block keeps only its input, in fp32, and one block at a time has the rest.
    """
    T, C, M = config.n_positions, config.n_embd, config.mlp_width
    # What backward needs of a block: two LayerNorms in and out, q, k, v, attention out, projection
    # (9 C), MLP before and after GELU (2 M), dropout masks and residuals (3 C); rotated q and k (2 C).
    rotated = 2 * C if config.positions == "rotary" else 0
    block = micro_batch * T * (12 * C + rotated + 2 * M) * bytes_per_number
    kept = micro_batch * T * C * 4 if activation_checkpointing else block
    logits = min(CHUNK[device], n_outputs) * config.vocab_size * (4 + 2 * bytes_per_number)
    casts = config.n_parameters * bytes_per_number if bytes_per_number < 4 else 0
    return {
        "weights": 4 * config.n_parameters,
        "gradients": 4 * n_trainable,
        "AdamW moments": 8 * (n_trainable - n_muon),
        **({"Muon momentum": 4 * n_muon} if n_muon else {}),
        "half-precision weights": casts,
        "activations": config.n_layer * kept + (block if activation_checkpointing else 0),
        "logits": logits,
    }


def checkpoint_bytes(model: nn.Module, recipe: Recipe, n_vocab: int) -> int:
    """Bytes of one checkpoint: fp32 weights, the moments of each trained one, the tokenizer.

    A language model's adapters are stored without their base, a classifier's beside the merged model.
    """
    n_all = sum(parameter.numel() for parameter in model.parameters())
    n_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    n_stored = n_all
    if recipe.train == "lora":
        n_stored = n_trained + (n_all if recipe.task == "finetune-classify" else 0)
    n_moments = 2 * n_trained - count_muon(model, recipe.optim)
    # GPT-2's vocabulary and merges take some 70 bytes per token; the other files are small.
    return 4 * n_stored + 4 * n_moments + 100 * n_vocab + (32 << 10)


def count_muon(model: nn.Module, optim: OptimConfig) -> int:
    """How many numbers of a model Muon trains."""
    return sum(parameter.numel() for _, parameter in muon_matrices(model, optim))


@contextlib.contextmanager
def explain_out_of_memory(batch: BatchConfig) -> Iterator[None]:
    """Turn every kind of out-of-memory error into a ResourceError that proposes a smaller micro-batch."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(batch) from error
        raise


def out_of_memory(batch: BatchConfig) -> ResourceError:
    """The error; the batch that its fix proposes has as many sequences per step as `batch`."""
    if batch.micro_batch == 1:
        fix = "run.activation_checkpointing=on, a smaller model.context, or a smaller model"
    else:
        # The largest proper divisor keeps the product exact: half of it where that is whole.
        smaller = next(n for n in range(batch.micro_batch // 2, 0, -1) if batch.micro_batch % n == 0)
        accumulation = batch.accumulation * (batch.micro_batch // smaller)
        fix = f"batch.micro_batch={smaller} batch.accumulation={accumulation}"
    return ResourceError(
        f"out of memory with batch.micro_batch={batch.micro_batch}",
        "activations grow with the micro-batch; accumulation trains on the same"
        f" {batch.rows_per_step} sequences per step with less memory",
        fix,
    )


def model_flops_utilisation(task: TrainingTask, tokens_per_s: float, runtime: Runtime) -> float | None:
    """MFU (Chowdhery et al. 2022, PaLM): the model's own FLOP/s as a fraction of the device's peak.

    Recomputed activations do not count. None on a CPU, in fp32, on an unknown device, and for
    batches of varying length, whose padding would count as work.
    """
    if runtime.device.type != "cuda" or runtime.precision == "fp32" or task.row_length is None:
        return None
    peak = peak_flops(torch.cuda.get_device_name(runtime.device))
    return None if peak is None else tokens_per_s * flops_per_token(task.config, task.row_length) / peak


def peak_flops(device_name: str) -> float | None:
    return next((peak for part, peak in PEAK_FLOPS.items() if re.search(rf"\b{part}\b", device_name)), None)


def flops_per_token(config: GPT2Config, n_positions: int) -> float:
    """Forward and backward: 6 FLOPs per parameter of a matmul, 12 per channel and position in attention.

    Attention counts as if it were not causal, as in the paper.
    """
    in_matmuls = config.n_parameters - config.n_position_parameters  # wpe is only added
    return 6.0 * in_matmuls + 12.0 * config.n_layer * config.n_embd * n_positions
