"""Owns what training costs in memory: an estimate before it starts, and a way out when it runs out."""

import contextlib
import re
from collections.abc import Iterator

import torch

from gpt2cli.errors import ResourceError, is_out_of_memory
from gpt2cli.model.config import GPT2Config
from gpt2cli.recipe.schema import BatchConfig
from gpt2cli.runtime import Runtime
from gpt2cli.training.fused_cross_entropy import CHUNK
from gpt2cli.training.task import TrainingTask


@contextlib.contextmanager
def explain_out_of_memory(batch: BatchConfig) -> Iterator[None]:
    """Turn each way of running out of memory into one ResourceError with a recipe that needs less."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(batch) from error
        raise


def out_of_memory(batch: BatchConfig) -> ResourceError:
    """The error to show; the batch it proposes has as many sequences a step as before."""
    if batch.micro_batch == 1:
        fix = "run.recompute=on, a smaller model.context, or a smaller model"
    else:
        # The largest proper divisor keeps the product exact; halves where it can.
        smaller = next(n for n in range(batch.micro_batch // 2, 0, -1) if batch.micro_batch % n == 0)
        accumulation = batch.accumulation * (batch.micro_batch // smaller)
        fix = f"batch.micro_batch={smaller} batch.accumulation={accumulation}"
    sequences = batch.micro_batch * batch.accumulation
    return ResourceError(
        f"out of memory with micro_batch {batch.micro_batch}",
        f"activations grow with it; accumulation keeps the batch of {sequences} sequences at less memory",
        fix,
    )


def estimate_memory(
    config: GPT2Config,
    micro_batch: int,
    bytes_per_number: int,
    *,
    n_learning: int,
    n_outputs: int,
    recompute: bool = False,
) -> dict[str, int]:
    """Memory by purpose, in bytes. The states are exact, the activations a count of saved tensors.

    `bytes_per_number` is that of the precision: 4 for fp32, 2 for bf16 and fp16. `n_learning` counts
    the parameters that learn: frozen ones have neither gradients nor moments. `n_outputs` counts the
    positions of a micro batch that go through the vocabulary; a classifier has none. With `recompute`
    a block keeps its input alone, in fp32, and one at a time all the rest.
    """
    T, C, M = config.n_positions, config.n_embd, config.mlp_width
    # What backward needs of a block: two LayerNorms in and out, q, k, v, attention out, projection
    # (9 C), MLP before and after GELU (2 M), dropout masks and residuals (3 C).
    block = micro_batch * T * (12 * C + 2 * M) * bytes_per_number
    kept = micro_batch * T * C * 4 if recompute else block
    logits = min(CHUNK, n_outputs) * config.vocab_size * (4 + 2 * bytes_per_number)
    casts = config.n_parameters * bytes_per_number if bytes_per_number < 4 else 0
    return {
        "weights": 4 * config.n_parameters,
        "gradients": 4 * n_learning,
        "AdamW moments": 8 * n_learning,
        "half-precision copies": casts,
        "activations": config.n_layer * kept + (block if recompute else 0),
        "logits": logits,
    }


# Dense 16-bit tensor-core operations a second, by words of the device's name, from the makers' data
# sheets; the first that matches counts. What is not here gets no share: a guess would mislead.
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


def utilisation(task: TrainingTask, tokens_per_s: float, runtime: Runtime) -> float | None:
    """The share of the device's peak that the model's own operations come to.

    Recomputed blocks do not count. None on a CPU, in fp32, on an unknown device, and for rows of
    changing length, whose padding would count as work.
    """
    if runtime.device.type != "cuda" or runtime.precision == "fp32" or task.row_length is None:
        return None
    peak = peak_flops(torch.cuda.get_device_name(runtime.device))
    return None if peak is None else tokens_per_s * flops_per_token(task.config, task.row_length) / peak


def peak_flops(name: str) -> float | None:
    return next((peak for part, peak in PEAK_FLOPS.items() if re.search(rf"\b{part}\b", name)), None)


def flops_per_token(config: GPT2Config, n_positions: int) -> float:
    """Forward and backward of one token: 6 a parameter that multiplies, 12 a channel and position in
    attention, which is counted whole, as that paper does.
    """
    multiplying = config.n_parameters - config.n_positions * config.n_embd  # positions are only added
    return 6.0 * multiplying + 12.0 * config.n_layer * config.n_embd * n_positions
