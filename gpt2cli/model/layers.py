"""Owns the parts of a GPT-2 block: attention, MLP, the block itself and the cache of keys and values.

Letters in shapes: B rows in the batch, T positions, C channels (n_embd), H heads, D channels a
head (C = H * D), S positions that can be attended to (S = T without a cache). Module names are
Hugging Face's, so that a state dict needs no renaming.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cli.model.config import GPT2Config

QUERY_BLOCK = 128


class Linear(nn.Linear):
    """nn.Linear that leaves its weights unset: `initialize` or a file fills them (see gpt2.py).

    torch's own filling would be thrown away; for 124M it takes two seconds of every start.
    """

    def reset_parameters(self) -> None: ...


class Embedding(nn.Embedding):
    """nn.Embedding, unset for the same reason."""

    def reset_parameters(self) -> None: ...


def drop(x: Tensor, rate: float) -> Tensor:
    """Dropout (Srivastava et al. 2014): each number is zero with probability `rate`, the others grow.

    On a CPU torch draws a random float an element, one after another, which takes a third of a
    small model's step (and twice that once compiled). Sixteen bits decide as well: the rate is met
    to 1e-5, and what stays grows by the rate that was really met, so that the mean is kept.
    """
    if not rate:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    n_drops = min(round(rate * 2**16), 2**16 - 1)  # of the 2^16 patterns
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # four patterns each
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= n_drops - 2**15
    return x * keep.to(x.dtype) * (2**16 / (2**16 - n_drops))


class KVCache:
    """Keys and values of the positions seen so far, so that each token is computed once.

    One tensor a block for keys and one for values, (B, H, n_positions, D), allocated in full at
    the start: growing them with `torch.cat` would copy the whole past for every token.
    """

    def __init__(self, config: GPT2Config, n_rows: int, like: Tensor) -> None:
        shape = (n_rows, config.n_head, config.n_positions, config.head_width)
        self.keys = [like.new_empty(shape) for _ in range(config.n_layer)]  # each (B, H, n_positions, D)
        self.values = [like.new_empty(shape) for _ in range(config.n_layer)]
        self.length = 0  # positions filled, the same for each row and block

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, H, T, D) behind the past; return all so far, (B, H, S, D) each.

        The trunk moves `length` forward when every block has stored its part.
        """
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def attention_formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, written out (Vaswani et al. 2017, equation 1).

    q is (B, H, T, D), k and v are (B, H, S, D); the queries are the last T of the S positions.
    `mask` (B, 1, T, S) is True where a query may look; None means causal. Returns (B, H, T, D).
    """
    T, S = q.shape[2], k.shape[2]
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[3])  # (B, H, T, S)
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)  # query t sees 0 .. S-T+t
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)  # (B, H, T, S), rows sum to 1
    return drop(weights, dropout) @ v  # (B, H, T, D)


def attention_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same function for QUERY_BLOCK queries at a time, each block with the keys that it may see.

    Saves up to half of the products, and nearly half of the weights that a backward needs.
    """
    if mask is not None:
        return attention_formula(q, k, v, mask, dropout)
    T, S, D = q.shape[2], k.shape[2], q.shape[3]
    later = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    parts = []
    for start in range(0, T, QUERY_BLOCK):
        some = q[:, :, start : start + QUERY_BLOCK] / math.sqrt(D)
        n = some.shape[2]
        seen = S - T + start + n  # keys, up to the block's last query
        scores = some @ k[:, :, :seen].transpose(2, 3)  # (B, H, n, seen)
        scores[..., seen - n :].add_(later[:n, :n])
        parts.append(drop(scores.softmax(dim=-1), dropout) @ v[:, :, :seen])  # (B, H, n, D)
    return torch.cat(parts, dim=2)  # (B, H, T, D)


def attention_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same function through torch's fused kernels; on a CPU they lack dropout and are slow in bf16."""
    if q.device.type == "cpu" and (dropout or (q.dtype is torch.bfloat16 and mask is None)):
        return attention_blocks(q, k, v, mask, dropout)
    T, S = q.shape[2], k.shape[2]
    if mask is None and 1 < T < S:  # is_causal counts from the upper left corner, which is wrong here
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    causal = mask is None and T > 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]] = {
    "formula": attention_formula,
    "blocks": attention_blocks,
    "sdpa": attention_sdpa,
}


class Attention(nn.Module):
    """Causal self-attention with all heads in one product."""

    def __init__(self, config: GPT2Config, layer: int, attention: str) -> None:
        super().__init__()
        self.n_head, self.layer, self.dropout = config.n_head, layer, config.dropout
        self.attend = ATTENTION[attention]
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # q, k and v side by side
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)  # each (B, T, C)
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in (q, k, v))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D)
        y = self.attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side again
        return drop(self.c_proj(y), self.dropout if self.training else 0.0)


def gelu(x: Tensor) -> Tensor:
    """x / 2 * (1 + tanh(u)), u = sqrt(2 / pi) * (x + 0.044715 x^3): the approximation GPT-2 was trained with.

    (1 + tanh(u)) / 2 is sigmoid(2 u). Compiled for a CPU that takes half of the time of the tanh.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    y = x.float()
    u = math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y)
    return (y * torch.sigmoid(2 * u)).to(x.dtype)


class MLP(nn.Module):
    """Two products around a GELU."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = Linear(config.n_embd, config.mlp_width)
        self.c_proj = Linear(config.mlp_width, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        h = gelu(self.c_fc(x))  # (B, T, mlp_width)
        return drop(self.c_proj(h), self.dropout if self.training else 0.0)  # (B, T, C)


class Block(nn.Module):
    """Read the normalised residual stream, add what was found to it; first attention, then MLP."""

    def __init__(self, config: GPT2Config, layer: int, attention: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, layer, attention)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, mask)  # (B, T, C)
        x = x + self.mlp(self.ln_2(x))  # (B, T, C)
        return x
