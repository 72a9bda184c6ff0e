"""A GPT-2 with rotary positions, written once more: transformers turns queries and keys (GPT-NeoX)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding, apply_rotary_pos_emb


@torch.no_grad()
def reference_logits(model: nn.Module, ids: Tensor, window: int | None = None) -> Tensor:
    """Logits (B, T, V) of one full forward with our weights: transformers turns queries and keys, the rest
    is written out. With a `window` each position attends to the last so many, itself included.
    """
    config: Any = model.config
    state = {name: t.detach().double() for name, t in model.state_dict().items()}
    B, T = ids.shape
    H, D, C = config.n_head, config.head_width, config.n_embd
    theirs = GPTNeoXRotaryEmbedding(
        GPTNeoXConfig(
            hidden_size=C,
            num_attention_heads=H,
            rotary_pct=1.0,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        )
    )
    cos, sin = theirs(torch.zeros(1), torch.arange(T)[None])  # (1, T, D)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    visible = (distance >= 0) & (distance < (window or T))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (C,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = state["transformer.wte.weight"][ids]
    for layer in range(config.n_layer):
        block = f"transformer.h.{layer}"
        qkv = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        q, k, v = (t.view(B, T, H, D).transpose(1, 2) for t in qkv.split(C, dim=-1))
        q, k = apply_rotary_pos_emb(q, k, cos.double(), sin.double())
        scores = (q @ k.transpose(-2, -1) / D**0.5).masked_fill(~visible, float("-inf"))
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C)
        x = x + linear(y, f"{block}.attn.c_proj")
        h = F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), approximate="tanh")
        x = x + linear(h, f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ state["transformer.wte.weight"].T
