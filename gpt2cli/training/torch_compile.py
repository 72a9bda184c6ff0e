"""Owns the use of torch.compile in training: block by block, tried before it is trusted.

What else of a step is compiled belongs to its learner, which is asked to prove it here.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gpt2cli.errors import is_out_of_memory
from gpt2cli.runtime import Runtime
from gpt2cli.training.optimizer_step import Learner


def compile_step(learner: Learner, n_rows: int, runtime: Runtime) -> str | None:
    """Compile each block for (n_rows, n_positions) inputs, and what the learner adds; returns why not,
    where it cannot be done.

    The blocks share their code, so one compilation serves all of them. A forward and a backward
    prove that it works before training depends on it; where it does not, the blocks are as before.
    """
    model: Any = learner.model  # a GPT-2 under the task's head
    config = model.config
    blocks = list(model.transformer.h)
    for block in blocks:
        block.compile()
    x = torch.zeros(n_rows, config.n_positions, config.n_embd, device=runtime.device, requires_grad=True)
    model.train()
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            runtime.autocast(),
        ):
            blocks[-1](x).sum().backward()
        learner.prove()
    except (RuntimeError, OSError, ImportError) as error:
        _undo(blocks)
        if is_out_of_memory(error):
            raise
        first_line = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        return f"torch.compile does not work here ({first_line}); running without it"
    finally:
        model.zero_grad(set_to_none=True)
    return None


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled blocks as plain Python: for evaluation and samples, whose shapes are others.

    Compiling again for them would cost more than it gives.
    """
    with torch.compiler.set_stance("force_eager"):
        yield


def _undo(blocks: list[nn.Module]) -> None:
    for block in blocks:
        block._compiled_call_impl = None
    torch.compiler.reset()
