"""Activations of one forward pass: inputs and outputs of each module, attention weights, and the logit lens.

Hooks observe the unchanged model. Only shapes and statistics are stored, and the attention and the residual
streams that were asked for.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpt2cli.checkpoints.finite import is_finite
from gpt2cli.checkpoints.info import TensorStatistics, statistics
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.model.layers import attention_formula, rotate

# The modules in order of computation, each with the names of its input and its output. An input
# has a name where no module makes it: a sum, or a function written out in the forward pass.
BEFORE_BLOCKS = {"transformer.wte": ("", "wte"), "transformer.wpe": ("", "wpe")}
BLOCK = {
    "ln_1": ("", "ln_1"),
    "attn.c_attn": ("", "attn.c_attn"),
    "attn.c_proj": ("attn.y", "attn.c_proj"),
    "ln_2": ("after_attn", "ln_2"),
    "mlp.c_fc": ("", "mlp.c_fc"),
    "mlp.c_proj": ("mlp.gelu", "mlp.c_proj"),
    "": ("", "after_mlp"),
}
AFTER_BLOCKS = {"transformer.ln_f": ("", "ln_f"), "lm_head": ("", "logits")}
SUM = "wte+wpe"  # the input of the first block, with learned positions
SPLIT = "attn.c_attn"  # its output is q, k and v side by side
STREAM = "after_mlp"  # the residual stream after a block
ROWS = 64  # positions whose logits exist at a time


@dataclass(frozen=True)
class Activation:
    """One tensor of the forward pass. `statistics` is None for ids."""

    name: str  # "h.0.attn.q"
    shape: tuple[int, ...]
    statistics: TensorStatistics | None


@dataclass(frozen=True)
class ForwardTrace:
    """The record of one forward pass."""

    ids: tuple[int, ...]  # the T tokens that went in
    activations: tuple[Activation, ...]  # in order of computation
    attention: Tensor  # (n_layer, H, n, n) among the last n tokens
    logits: Tensor  # (V,), after the last token
    probabilities: tuple[float, ...]  # of each token after the first, given those before it; T - 1
    streams: Tensor  # (n_layer, m, C), the residual stream after each block at the last m positions


@dataclass(frozen=True)
class NextToken:
    id: int
    probability: float


@torch.inference_mode()
def trace_forward(model: GPT2LMHead, input_ids: Tensor, n_drawn: int = 0, n_streams: int = 1) -> ForwardTrace:
    """Run input_ids (1, T) through the model and record each activation.

    Attention weights are stored for the last `n_drawn` tokens only: all would be 5 GB for 48 layers of 25
    heads at T = 1024. Residual streams are stored for the last `n_streams`.
    """
    assert input_ids.shape[0] == 1 and not model.training
    T = input_ids.shape[1]
    activations = [Activation("input_ids", tuple(input_ids.shape), None)]
    rotation = model.transformer.rotation(torch.arange(T, device=input_ids.device))
    attention: list[Tensor] = []
    streams: list[Tensor] = []

    def note(name: str, tensor: Tensor) -> None:
        activations.append(Activation(name, tuple(tensor.shape), statistics(tensor)))
        if name.endswith(STREAM):
            streams.append(tensor[0, max(T - n_streams, 0) :].clone())

    def note_heads(block: str, qkv: Tensor) -> None:
        q, k, v = heads(qkv, model.config.n_head)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        weights = attention_weights(q, k)
        for name, tensor in (("q", q), ("k", k), ("v", v), ("weights", weights)):
            note(f"{block}.attn.{name}", tensor)
        first = max(T - n_drawn, 0)
        attention.append(weights[0, :, first:, first:].clone())

    with contextlib.ExitStack() as hooks:
        for module, names in _places(model.config).items():
            hook = _hook(names, note, note_heads)
            handle = model.get_submodule(module).register_forward_hook(hook)
            hooks.callback(handle.remove)
        logits = model(input_ids)  # (1, T, V)
    return ForwardTrace(
        ids=tuple(input_ids[0].tolist()),
        activations=tuple(activations),
        attention=torch.stack(attention),
        logits=logits[0, -1].clone(),
        probabilities=_probabilities(logits[0, :-1], input_ids[0, 1:]),
        streams=torch.stack(streams),
    )


@torch.inference_mode()
def logit_lens(model: GPT2LMHead, streams: Tensor, n: int) -> list[list[list[NextToken]]]:
    """The `n` likeliest next tokens, were the model to end after each block: [block][position].

    ln_f and the head, applied to residual streams (n_layer, m, C) (nostalgebraist 2020, "interpreting GPT:
    the logit lens"). After the last block this is the model's own prediction.
    """

    def likeliest(stream: Tensor) -> list[list[NextToken]]:
        found = []
        for part in torch.split(stream, ROWS):
            logits = model.lm_head(model.transformer.ln_f(part))  # (m, V)
            found += [next_tokens(row, n) for row in logits]
        return found

    return [likeliest(stream) for stream in streams]


def heads(qkv: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """c_attn's output (B, T, 3C) as q, k and v, (B, H, T, D) each."""
    B, T, width = qkv.shape
    q, k, v = (t.view(B, T, n_head, -1).transpose(1, 2) for t in torch.split(qkv, width // 3, dim=2))
    return q, k, v


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """The causal attention weights (B, H, T, S), whose rows sum to 1: the model's own formula with the
    identity as values.
    """
    return attention_formula(q, k, torch.eye(k.shape[2], dtype=q.dtype, device=q.device), None, 0.0)


def next_tokens(logits: Tensor, n: int) -> list[NextToken]:
    """The `n` most likely ids of logits (V,), most likely first, at most V; none if a logit is not finite."""
    if not is_finite(logits):
        return []
    top = logits.double().softmax(dim=-1).topk(min(n, len(logits)))
    return list(map(NextToken, top.indices.tolist(), top.values.tolist()))


def _probabilities(logits: Tensor, ids: Tensor) -> tuple[float, ...]:
    """The probability of each id (T,) under its logits (T, V)."""
    found: list[float] = []
    for part, wanted in zip(torch.split(logits, ROWS), torch.split(ids, ROWS), strict=True):
        chances = part.double().softmax(dim=-1)
        found += chances.gather(1, wanted[:, None]).squeeze(1).tolist()
    return tuple(found)


def _places(config: GPT2Config) -> dict[str, tuple[str, str]]:
    """{module: (name of its input or "", name of its output)} for all blocks."""
    is_learned = config.positions == "learned"
    places = {name: names for name, names in BEFORE_BLOCKS.items() if is_learned or "wpe" not in name}
    for layer in range(config.n_layer):
        for module, (before, after) in BLOCK.items():
            path = f"transformer.h.{layer}.{module}".rstrip(".")
            places[path] = (before and f"h.{layer}.{before}", f"h.{layer}.{after}")
    places["transformer.h.0.ln_1"] = (SUM if is_learned else "", "h.0.ln_1")
    return places | AFTER_BLOCKS


def _hook(
    names: tuple[str, str], note: Callable[[str, Tensor], None], note_heads: Callable[[str, Tensor], None]
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    before, after = names

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if before:
            note(before, inputs[0])
        note(after, output)
        if after.endswith(SPLIT):
            note_heads(after.removesuffix(f".{SPLIT}"), output)

    return hook
