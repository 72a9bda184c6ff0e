"""Owns the loss of a language model: output projection and cross-entropy in one, chunk by chunk.

Logits of 512 positions over 50,257 tokens take 100 MB in fp32, and the textbook way holds four
such arrays. Here a chunk's logits turn into their own gradient in place and are gone before the
next chunk; only gradients of the hidden states and of the weight stay.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # positions at a time; finer chunks save memory and cost a pass over the weight each


def cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over positions of -log softmax(hidden weight^T)[target], in nats, a scalar in fp32.

    hidden (N, C), weight (V, C), targets (N,). Products are computed in `dtype`, the softmax in fp32.
    """
    if torch.is_grad_enabled():
        return _CrossEntropySum.apply(hidden, weight, targets, dtype)  # type: ignore[no-any-return,no-untyped-call]
    w = weight.to(dtype)
    chunks = zip(torch.split(hidden.to(dtype), CHUNK), torch.split(targets, CHUNK), strict=True)
    return torch.stack([F.cross_entropy((h @ w.T).float(), t, reduction="sum") for h, t in chunks]).sum()


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        w = weight.to(dtype)
        d_hidden = torch.empty_like(hidden)
        d_weight: Tensor | None = None
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(targets), CHUNK):
            rows = slice(start, start + CHUNK)
            h, t = hidden[rows].to(dtype), targets[rows, None]  # (n, C), (n, 1)
            log_p = torch.log_softmax(h @ w.T, dim=-1, dtype=torch.float32)  # (n, V)
            total -= log_p.gather(1, t).sum()
            # d(-log p_t)/d logits = softmax - onehot(t), built where log p was.
            d_logits = log_p.exp_()
            d_logits.scatter_add_(1, t, d_logits.new_full(t.shape, -1.0))
            d = d_logits.to(dtype)
            d_hidden[rows] = d @ w
            if ctx.needs_input_grad[1]:  # not under adapters, where it is frozen
                part = (d.T @ h).to(weight.dtype)  # (V, C)
                d_weight = part if d_weight is None else d_weight.add_(part)
        ctx.gradients = (d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        d_hidden, d_weight = ctx.gradients
        del ctx.gradients  # scaled in place: a second backward would scale them twice
        return d_hidden.mul_(grad), None if d_weight is None else d_weight.mul_(grad), None, None
