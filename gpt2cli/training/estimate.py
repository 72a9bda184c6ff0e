"""Owns what training costs in memory: an estimate before it starts, and a way out when it runs out."""

import contextlib
from collections.abc import Iterator

from gpt2cli.errors import ResourceError, is_out_of_memory
from gpt2cli.model.config import GPT2Config
from gpt2cli.recipe.schema import Batch
from gpt2cli.training.fused_cross_entropy import CHUNK


@contextlib.contextmanager
def explained(batch: Batch) -> Iterator[None]:
    """Turn each way of running out of memory into one ResourceError with a recipe that needs less."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(batch) from error
        raise


def out_of_memory(batch: Batch) -> ResourceError:
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


def estimate_bytes(
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
