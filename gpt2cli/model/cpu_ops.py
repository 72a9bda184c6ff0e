"""Three model operations, optimized for CPU: dropout, GELU, causal attention.

Each equals the textbook version in layers.py and is faster for the reason given here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def drop(x: Tensor, rate: float) -> Tensor:
    """Dropout: each number of x becomes zero with probability `rate`; the others grow to keep the mean.

    On a CPU torch draws one random float per element, which takes a third of a small model's step (and
    twice that when compiled). Sixteen bits suffice: the rate is exact to 1e-5, and the scale fits it.
    """
    if not rate:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    n_drops = min(round(rate * 2**16), 2**16 - 1)  # of the 2^16 patterns
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # four patterns each
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= n_drops - 2**15
    return x * keep.to(x.dtype) * (2**16 / (2**16 - n_drops))


def gelu_by_sigmoid(x: Tensor) -> Tensor:
    """GELU's tanh approximation as x * sigmoid(2 u), u = sqrt(2 / pi) * (x + 0.044715 x^3).

    (1 + tanh(u)) / 2 is sigmoid(2 u). Compiled for a CPU it takes half the time of the tanh.
    """
    y = x.float()
    u = math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y)
    return (y * torch.sigmoid(2 * u)).to(x.dtype)


def causal_attention_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, n_queries: int = 128
) -> Tensor:
    """Causal attention for `n_queries` at a time, each block with the keys that it may see.

    q is (B, H, T, D), k and v are (B, H, S, D); returns (B, H, T, D). Saves up to half of the matmul work,
    and nearly half of the weights stored for the backward pass.
    """
    T, S, D = q.shape[2], k.shape[2], q.shape[3]
    later = torch.full((n_queries, n_queries), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    parts = []
    for start in range(0, T, n_queries):
        some = q[:, :, start : start + n_queries] / math.sqrt(D)
        n = some.shape[2]
        seen = S - T + start + n  # keys, up to the block's last query
        scores = some @ k[:, :, :seen].transpose(2, 3)  # (B, H, n, seen)
        scores[..., seen - n :].add_(later[:n, :n])
        parts.append(drop(scores.softmax(dim=-1), dropout) @ v[:, :, :seen])  # (B, H, n, D)
    return torch.cat(parts, dim=2)  # (B, H, T, D)


def has_fast_sdpa(q: Tensor, mask: Tensor | None, dropout: float) -> bool:
    """Whether torch's fused attention is right and fast; on a CPU it lacks dropout, and is slow in bf16 if
    causal. On Apple GPUs it was silently wrong in several releases, on views such as ours.
    """
    if q.device.type == "mps":
        return False
    return q.device.type != "cpu" or not (dropout or (q.dtype is torch.bfloat16 and mask is None))
