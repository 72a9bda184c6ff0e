"""Other people's GPT-2 modules in plain torch, with just their names and layouts: what their files hold."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fill(model: nn.Module, std: float = 0.14, seed: int = 0) -> nn.Module:
    """Noise large enough that a mistake anywhere shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scales = ("ln_1.weight", "ln_2.weight", "ln_f.weight", "scale")
            parameter.normal_(1.0 if name.endswith(scales) else 0.0, std, generator=generator)
    return model.eval()


class NanoNorm(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class NanoAttention(nn.Module):
    """Without flash attention, so with the mask buffer that old checkpoints have."""

    def __init__(self, width: int, n_head: int, context: int, bias: bool) -> None:
        super().__init__()
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)
        self.n_head = n_head
        self.register_buffer("bias", torch.tril(torch.ones(context, context)).view(1, 1, context, context))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
            for part in self.c_attn(x).split(C, dim=2)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
        scores = scores.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        return self.c_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, T, C))


class NanoMLP(nn.Module):
    def __init__(self, width: int, bias: bool, gelu: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.c_proj = nn.Linear(4 * width, width, bias=bias)
        self.gelu = nn.GELU(approximate=gelu)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class NanoBlock(nn.Module):
    def __init__(self, width: int, n_head: int, context: int, bias: bool, gelu: str) -> None:
        super().__init__()
        self.ln_1 = NanoNorm(width, bias)
        self.attn = NanoAttention(width, n_head, context, bias)
        self.ln_2 = NanoNorm(width, bias)
        self.mlp = NanoMLP(width, bias, gelu)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """nanoGPT's GPT; its constructor takes what it stores as model_args, and which GELU it has."""

    def __init__(
        self,
        n_layer: int,
        n_head: int,
        n_embd: int,
        block_size: int,
        vocab_size: int,
        bias: bool = True,
        dropout: float = 0.0,
        gelu: str = "tanh",
    ) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "drop": nn.Dropout(dropout),
                "h": nn.ModuleList(NanoBlock(n_embd, n_head, block_size, bias, gelu) for _ in range(n_layer)),
                "ln_f": NanoNorm(n_embd, bias),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(ids.shape[1]))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


NANO_ARGS: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 32,
    "bias": True,
    "vocab_size": 50257,
    "dropout": 0.0,
}


def nano_checkpoint(model: NanoGPT, **args: Any) -> dict[str, Any]:
    """What train.py saves, after one step of AdamW."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=0.0,
    )
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": NANO_ARGS | args,
        "iter_num": 10,
        "best_val_loss": torch.tensor(3.5),
        "config": {"dataset": "openwebtext", "compile": True, "learning_rate": 6e-4},
    }


class BookNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, unbiased=False)
        return self.scale * (x - mean) / torch.sqrt(var + 1e-5) + self.shift


class BookGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class BookAttention(nn.Module):
    def __init__(self, width: int, context: int, n_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.W_query, self.W_key, self.W_value = (nn.Linear(width, width, bias=qkv_bias) for _ in range(3))
        self.out_proj = nn.Linear(width, width)
        self.register_buffer("mask", torch.triu(torch.ones(context, context), diagonal=1))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            linear(x).view(B, T, self.n_heads, C // self.n_heads).transpose(1, 2)
            for linear in (self.W_query, self.W_key, self.W_value)
        )
        scores = (q @ k.transpose(2, 3)).masked_fill(self.mask.bool()[:T, :T], -torch.inf)
        weights = torch.softmax(scores / (C // self.n_heads) ** 0.5, dim=-1)
        return self.out_proj((weights @ v).transpose(1, 2).reshape(B, T, C))


class BookFeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), BookGELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class BookBlock(nn.Module):
    def __init__(self, width: int, context: int, n_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.att = BookAttention(width, context, n_heads, qkv_bias)
        self.ff = BookFeedForward(width)
        self.norm1, self.norm2 = BookNorm(width), BookNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.att(self.norm1(x))
        return x + self.ff(self.norm2(x))


class BookGPT(nn.Module):
    """GPTModel of "Build a Large Language Model (From Scratch)"."""

    def __init__(
        self,
        n_layers: int = 2,
        n_heads: int = 2,
        emb_dim: int = 16,
        context: int = 32,
        qkv_bias: bool = False,
        vocab_size: int = 50257,
    ) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(vocab_size, emb_dim)
        self.pos_emb = nn.Embedding(context, emb_dim)
        self.trf_blocks = nn.Sequential(
            *(BookBlock(emb_dim, context, n_heads, qkv_bias) for _ in range(n_layers))
        )
        self.final_norm = BookNorm(emb_dim)
        self.out_head = nn.Linear(emb_dim, vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))
