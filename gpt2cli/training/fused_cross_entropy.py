"""The language-model loss: output layer and cross-entropy fused, chunk by chunk.

The logits of 512 positions over 50,257 tokens take 100 MB in fp32, and the textbook loss holds four
such arrays. Here the logits of a chunk, in the precision of the matmuls, are overwritten with their
gradient; only the gradients of the hidden states and of the weight outlive the chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.model.layers import fp32_logits

# Positions at a time, by device; smaller chunks save memory, and each costs a pass over the weight.
CHUNK = {"cpu": 1024, "cuda": 4096, "mps": 1024}
# Of a chunk, how many go through the softmax at once: in fp32, 32 still fit a CPU's cache. On a GPU each
# group costs ten launches, and 1024 are enough work for them.
ROWS = {"cpu": 32, "cuda": 1024, "mps": 1024}
# Rows of 50,257 logits are padded to 50,304, so that each starts at an aligned address: 5 percent
# faster for the largest matmul of the model.
MULTIPLE = 64


def cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over positions of -log softmax(hidden weight^T)[target], in nats, a scalar in fp32.

    hidden (N, C), weight (V, C), targets (N,). Matmuls use `dtype`, the softmax fp32; without a gradient the
    logits are in fp32.
    """
    if torch.is_grad_enabled():
        if dtype is torch.float16:  # the gradient of the logits is not scaled yet: in fp16 most of it is 0
            dtype = torch.float32
        return _CrossEntropySum.apply(hidden, weight, targets, dtype)  # type: ignore[no-any-return,no-untyped-call]
    kind = hidden.device.type
    w = weight.to(dtype if kind == "cuda" else torch.float32)
    chunks = zip(torch.split(hidden, CHUNK[kind]), torch.split(targets, CHUNK[kind]), strict=True)
    return torch.stack([F.cross_entropy(fp32_logits(h, w), t, reduction="sum") for h, t in chunks]).sum()


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        n_vocab = len(weight)
        w = F.pad(weight.to(dtype), (0, 0, 0, -n_vocab % MULTIPLE))  # (V', C)
        d_hidden = torch.empty_like(hidden)
        d_weight: Tensor | None = None
        total = hidden.new_zeros((), dtype=torch.float32)
        chunk = CHUNK[hidden.device.type]
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            h = hidden[rows].to(dtype)  # (n, C)
            logits = h @ w.T  # (n, V')
            logits[:, n_vocab:] = 0
            total += _turn_into_gradient(logits[:, :n_vocab], targets[rows])
            d_hidden[rows] = logits @ w
            if ctx.needs_input_grad[1]:  # with LoRA it is frozen
                part = (logits.T @ h)[:n_vocab]  # (V, C)
                # Accumulate in fp32: a bf16 sum would drop small chunks.
                d_weight = part if d_weight is None else d_weight.float().add_(part)
        if d_weight is not None:
            d_weight = d_weight.to(weight.dtype)
        ctx.gradients = (d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        d_hidden, d_weight = ctx.gradients
        del ctx.gradients  # scaled in place, which a second backward would do again
        return d_hidden.mul_(grad), None if d_weight is None else d_weight.mul_(grad), None, None


def _turn_into_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Overwrite logits (n, V) with d loss / d logits = softmax - onehot(target); returns the summed loss."""
    total = torch.zeros((), device=logits.device)
    n_rows = ROWS[logits.device.type]
    for some, t in zip(torch.split(logits, n_rows), torch.split(targets[:, None], n_rows), strict=True):
        log_p = torch.log_softmax(some, dim=-1, dtype=torch.float32)  # (n_rows, V)
        total -= log_p.gather(1, t).sum()
        p = log_p.exp_()
        some.copy_(p.scatter_add_(1, t, p.new_full(t.shape, -1.0)))
    return total
