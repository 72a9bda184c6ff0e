"""The parts of a GPT-2 block: attention, the MLP, the block itself, and the cache of keys and values.

Letters in shapes: B rows in the batch, T positions, C channels (n_embd), H heads, D channels per
head (C = H * D), S positions that can be attended to (S = T without a cache). Module names are
Hugging Face's, so that a state dict needs no renaming.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cli.model.config import ROTARY_BASE, GPT2Config
from gpt2cli.model.cpu_ops import causal_attention_in_blocks, drop, gelu_by_sigmoid, has_fast_sdpa


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
    """The same function without the matmuls that a causal mask hides."""
    if mask is not None:
        return attention_formula(q, k, v, mask, dropout)
    return causal_attention_in_blocks(q, k, v, dropout)


def attention_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same function through torch's fused kernels, which never store the T x S weights."""
    if not has_fast_sdpa(q, mask, dropout):
        return attention_blocks(q, k, v, mask, dropout)
    T, S = q.shape[2], k.shape[2]
    if mask is None and 1 < T < S:  # is_causal aligns the mask at the upper left, which is wrong here
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    causal = mask is None and T > 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]] = {
    "formula": attention_formula,
    "blocks": attention_blocks,
    "sdpa": attention_sdpa,
}


Rotation = tuple[Tensor, Tensor]  # cosines and sines, (T, D) each, or (B, 1, T, D)


def rotation(positions: Tensor, width: int) -> Rotation:
    """The rotation of heads of `width` D channels at positions (T,) or (B, T), of any size.

    Pair i of channels rotates by position / 10000^(2 i / D) radians (Su et al. 2021, RoFormer, equation 15).
    """
    exact = torch.float32 if positions.device.type == "mps" else torch.float64  # fp32 blurs far positions
    pairs = torch.arange(0, width, 2, dtype=exact, device=positions.device)  # (D / 2,)
    angles = positions[..., None] * ROTARY_BASE ** (-pairs / width)  # (T, D / 2) or (B, T, D / 2)
    angles = torch.cat([angles, angles], dim=-1)
    if positions.dim() == 2:
        angles = angles[:, None]  # (B, 1, T, D), the same for each head
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries or keys (B, H, T, D) by their positions: products then depend on distances alone.

    A pair is channel i of the first half and channel i of the second, as in GPT-NeoX.
    """
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class KVCache:
    """Keys and values of the positions so far, so that each token is computed once.

    One tensor per block for keys and one for values, (B, H, n_positions, D), allocated in full at the
    start: `torch.cat` would copy all of them for every token. Once it is full the window slides: a new
    position takes the place of the oldest. Attention does not ask for an order, and rotary keys keep the
    rotation of their own position; learned positions have ended by then.
    """

    def __init__(self, config: GPT2Config, n_rows: int, like: Tensor) -> None:
        shape = (n_rows, config.n_head, config.n_positions, config.head_width)
        self.keys = [like.new_empty(shape) for _ in range(config.n_layer)]  # each (B, H, n_positions, D)
        self.values = [like.new_empty(shape) for _ in range(config.n_layer)]
        self.length = 0  # positions so far, the same for each row and block

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (B, H, T, D); returns all so far, (B, H, S, D) each, or the newest n_positions.

        The transformer advances `length` after the last block. Beyond n_positions T is 1.
        """
        T, end = k.shape[2], self.length + k.shape[2]
        place = self.length % self.keys[layer].shape[2]
        self.keys[layer][:, :, place : place + T] = k
        self.values[layer][:, :, place : place + T] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class Attention(nn.Module):
    """Causal self-attention: each position takes a weighted mean of the values before it, per head."""

    def __init__(self, config: GPT2Config, layer: int, attention: str) -> None:
        super().__init__()
        self.n_head, self.layer = config.n_head, layer
        self.attend = ATTENTION[attention]
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # q, k and v of all heads side by side
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.score_dropout = Dropout(config.dropouts["attn_pdrop"])

    def forward(
        self,
        x: Tensor,
        cache: KVCache | None,
        mask: Tensor | None,
        rotation: Rotation | None = None,
        n_last: int | None = None,
    ) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)  # each (B, T, C)
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in (q, k, v))  # (B, H, T, D)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D)
        if n_last is not None:  # earlier positions only give keys and values: T becomes n_last
            q, mask = q[:, :, -n_last:], None if mask is None else mask[:, :, -n_last:]
        y = self.attend(q, k, v, mask, self.score_dropout.active_rate)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, -1, C)  # (B, T, C), heads side by side again
        x = self.dropout(self.c_proj(y))  # (B, T, C)
        return x


def gelu(x: Tensor) -> Tensor:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))): the approximation GPT-2 was trained with."""
    return gelu_by_sigmoid(x) if torch.compiler.is_compiling() else F.gelu(x, approximate="tanh")


def exact_gelu(x: Tensor) -> Tensor:
    """x times the share of a normal distribution below x (Hendrycks and Gimpel 2016); Cerebras-GPT has it."""
    return F.gelu(x)


ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {"gelu_new": gelu, "gelu": exact_gelu}


class MLP(nn.Module):
    """Two linear layers around a GELU, position by position."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, config.mlp_width)
        self.c_proj = Linear(config.mlp_width, config.n_embd)
        self.activation = ACTIVATION[config.activation_function]
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.c_fc(x))  # (B, T, mlp_width), 4 * C
        x = self.dropout(self.c_proj(h))  # (B, T, C)
        return x


class Block(nn.Module):
    """Pre-norm residual block: x += attention(ln_1(x)); x += mlp(ln_2(x))."""

    def __init__(self, config: GPT2Config, layer: int, attention: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, layer, attention)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
        rotation: Rotation | None = None,
        n_last: int | None = None,
    ) -> Tensor:
        wanted = x if n_last is None else x[:, -n_last:]  # (B, T, C), of the positions that are asked for
        x = wanted + self.attn(self.ln_1(x), cache, mask, rotation, n_last)  # (B, T, C)
        x = x + self.mlp(self.ln_2(x))  # (B, T, C)
        return x


class Dropout(nn.Module):
    """In training zeroes each number with probability `rate` and scales the others by 1 / (1 - rate)
    (Srivastava et al. 2014).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    @property
    def active_rate(self) -> float:
        return self.rate if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.active_rate)


class Linear(nn.Linear):
    """nn.Linear without torch's initialization, which takes two seconds for 124M: `initialize` (gpt2.py) or a
    file sets the weights.
    """

    def reset_parameters(self) -> None: ...


class OutputLayer(Linear):
    """The output layer, (V, C) without a bias; its logits are in fp32, also under autocast."""

    def forward(self, hidden: Tensor) -> Tensor:
        return fp32_logits(hidden, self.weight)  # (..., V)


def fp32_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden (..., C) times weight (V, C) transposed, (..., V) in fp32 from matmuls of any precision.

    A logit of -100 rounded to bf16 moves in steps of 0.5: losses change by 0.01, and tokens tie for the first
    place. CUDA sums half-precision matmuls in fp32 and can return that; elsewhere they run in fp32.
    """
    is_half_on_cuda = hidden.device.type == "cuda" and weight.dtype is not torch.float32
    has_kernel = hasattr(torch.ops.aten.mm, "dtype")  # since torch 2.8, without a backward
    with torch.autocast(hidden.device.type, enabled=False):
        if is_half_on_cuda and has_kernel and not torch.is_grad_enabled():
            rows = hidden.to(weight.dtype).flatten(0, -2)  # (N, C)
            return torch.mm(rows, weight.T, out_dtype=torch.float32).view(*hidden.shape[:-1], -1)
        return F.linear(hidden.float(), weight.float())


class Embedding(nn.Embedding):
    """nn.Embedding, uninitialized for the same reason."""

    def reset_parameters(self) -> None: ...
