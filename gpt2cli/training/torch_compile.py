"""torch.compile for training, per block, tested with one forward and backward before use."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from gpt2cli.errors import is_out_of_memory
from gpt2cli.runtime import Runtime
from gpt2cli.training.optimizer_step import OptimizerStep


def compile_blocks(optimizer_step: OptimizerStep, n_rows: int, runtime: Runtime) -> str | None:
    """Compile every block for (n_rows, n_positions) inputs, and the optimizer step's own functions.

    Returns None, or why compiling fails here; the blocks are then unchanged. The blocks share their
    code, so one compilation is enough for all. A forward and a backward of one block test it.
    """
    # Inductor prints a traceback even for errors it recovers from, such as a damaged cache.
    # TORCH_LOGS still takes precedence.
    torch._logging.set_logs(all=logging.ERROR)  # type: ignore[attr-defined]
    model: Any = optimizer_step.model  # a GPT-2 under the task's head
    config = model.config
    blocks = list(model.transformer.h)
    for block in blocks:
        block.compile()
    x = torch.zeros(n_rows, config.n_positions, config.n_embd, device=runtime.device, requires_grad=True)
    rotation = model.transformer.rotation(torch.arange(config.n_positions, device=runtime.device))
    model.train()
    try:
        with warnings.catch_warnings(action="ignore"), runtime.autocast():
            blocks[-1](x, rotation=rotation).sum().backward()
        optimizer_step.compile()
    except Exception as error:  # a compiler fails in many ways; memory aside, none is fatal
        for block in blocks:
            block._compiled_call_impl = None
        torch.compiler.reset()
        if is_out_of_memory(error):
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        return f"torch.compile does not work here ({first_line}); running without it"
    finally:
        model.zero_grad(set_to_none=True)
    return None


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled blocks eagerly: evaluation and samples have other shapes, and compiling for those
    would cost more time than it saves.
    """
    with torch.compiler.set_stance("force_eager"):
        yield
