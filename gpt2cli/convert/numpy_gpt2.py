"""A second GPT-2, in plain NumPy and float64, against which conversions are checked.

It shares no code and no table with `model/` or the format files: it has its own names of each
format's tensors and its own table of transposed matrices, and reads the source itself. A matrix that a
format file transposes wrongly or confuses with another changes the logits. Slow and small on purpose;
it generates no text.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt2cli.convert.unwrap_checkpoint import BODY_PREFIX, bare_names
from gpt2cli.model.config import GPT2Config

Array = NDArray[np.floating]
ROWS = 2048  # of the output matrix that are widened to float64 at a time


@dataclass(frozen=True)
class TensorNames:
    """How one format spells a GPT-2. "{}" is the block's number."""

    tokens: str
    positions: str
    norm_1: str
    query_key_value: tuple[str, ...]  # one for all three, or one each
    attention_out: str
    norm_2: str
    mlp_in: str
    mlp_out: str
    final_norm: str
    head: str
    norm_ends: tuple[str, str]  # how the names of a LayerNorm's weight and bias end
    matrix_ends: tuple[str, str]
    out_first: bool  # matrices are (out, in): y = x W^T + b instead of x W + b


_OPENAI = TensorNames(
    tokens="model/wte",
    positions="model/wpe",
    norm_1="model/h{}/ln_1",
    query_key_value=("model/h{}/attn/c_attn",),
    attention_out="model/h{}/attn/c_proj",
    norm_2="model/h{}/ln_2",
    mlp_in="model/h{}/mlp/c_fc",
    mlp_out="model/h{}/mlp/c_proj",
    final_norm="model/ln_f",
    head="",
    norm_ends=("/g", "/b"),
    matrix_ends=("/w", "/b"),
    out_first=False,
)
_HUGGING_FACE = TensorNames(  # after "transformer."
    tokens="wte.weight",
    positions="wpe.weight",
    norm_1="h.{}.ln_1",
    query_key_value=("h.{}.attn.c_attn",),
    attention_out="h.{}.attn.c_proj",
    norm_2="h.{}.ln_2",
    mlp_in="h.{}.mlp.c_fc",
    mlp_out="h.{}.mlp.c_proj",
    final_norm="ln_f",
    head="lm_head.weight",
    norm_ends=(".weight", ".bias"),
    matrix_ends=(".weight", ".bias"),
    out_first=False,
)
_BOOK = TensorNames(
    tokens="tok_emb.weight",
    positions="pos_emb.weight",
    norm_1="trf_blocks.{}.norm1",
    query_key_value=tuple(f"trf_blocks.{{}}.att.W_{part}" for part in ("query", "key", "value")),
    attention_out="trf_blocks.{}.att.out_proj",
    norm_2="trf_blocks.{}.norm2",
    mlp_in="trf_blocks.{}.ff.layers.0",
    mlp_out="trf_blocks.{}.ff.layers.2",
    final_norm="final_norm",
    head="out_head.weight",
    norm_ends=(".scale", ".shift"),
    matrix_ends=(".weight", ".bias"),
    out_first=True,
)
LAYOUTS = {
    "openai-tf": _OPENAI,
    "huggingface": _HUGGING_FACE,
    "gpt2cli": _HUGGING_FACE,
    "nanogpt": replace(_HUGGING_FACE, out_first=True),
    "llms-from-scratch": _BOOK,
    "llm.c": replace(_HUGGING_FACE, out_first=True),
}


def reference_logits(
    raw: Mapping[str, Array],
    format: str,
    config: GPT2Config,
    prompts: Sequence[Sequence[int]],
    *,
    rounded: Callable[[Array], Array] = lambda array: array,
    score_scales: Sequence[float] = (),
    transposed: bool = False,
) -> list[NDArray[np.float64]]:
    """Logits (T, V) of each prompt of T ids, from a source's own tensors.

    `rounded` brings a tensor to the precision that the converted model has. `score_scales`, one for each
    block, multiply attention's scores, by way of the query. `transposed` transposes
    the square output matrix of each attention, to detect a source that stores it so.
    """
    layout = LAYOUTS[format]
    originals = bare_names("the source", raw)
    n_query = config.n_embd

    def get(name: str, layer: int = 0) -> Array | None:
        original = originals.get(name.format(layer), originals.get(f"{BODY_PREFIX}{name.format(layer)}"))
        if original is None:
            return None
        found = raw[original]
        if score_scales and name.startswith(layout.query_key_value):
            scale = np.ones(3 * n_query, dtype=np.float32)
            scale[:n_query] = score_scales[layer]
            found = found.astype(np.result_type(found, np.float32)) * scale  # of (in, out), or of a bias
        return rounded(found)

    def wide(name: str, layer: int = 0) -> NDArray[np.float64]:
        found = get(name, layer)
        assert found is not None, name  # the format file has made sure of it
        return found.astype(np.float64)

    def linear(x: NDArray[np.float64], name: str, layer: int, transpose: bool = False) -> NDArray[np.float64]:
        weight, bias = wide(name + layout.matrix_ends[0], layer), get(name + layout.matrix_ends[1], layer)
        weight = weight.reshape(weight.shape[-2:])  # TensorFlow's have a 1 in front
        y = x @ (weight.T if layout.out_first != transpose else weight)
        return y if bias is None else y + bias

    def norm(x: NDArray[np.float64], name: str, layer: int = 0) -> NDArray[np.float64]:
        weight, bias = wide(name + layout.norm_ends[0], layer), get(name + layout.norm_ends[1], layer)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        y: NDArray[np.float64] = centred / np.sqrt(variance + config.layer_norm_epsilon)
        y = y * weight
        return y if bias is None else y + bias

    tokens = get(layout.tokens)
    if tokens is None:  # one matrix under its other name
        tokens = get(layout.head)
    assert tokens is not None
    activation = _ACTIVATIONS[config.activation_function]
    # The prompts lie one after another, N tokens together: each weight is read and widened once.
    ends = np.cumsum([len(ids) for ids in prompts])[:-1]
    ids, places = np.concatenate([*prompts]), np.concatenate([np.arange(len(ids)) for ids in prompts])
    x, is_rotary = tokens[ids].astype(np.float64), config.positions == "rotary"  # (N, C)
    if not is_rotary:
        positions = get(layout.positions)
        assert positions is not None
        x = x + positions[places].astype(np.float64)
    for layer in range(config.n_layer):
        normed = norm(x, layout.norm_1, layer)
        joined = [linear(normed, name, layer) for name in layout.query_key_value]
        qkv = np.split(np.concatenate(joined, axis=-1), ends)  # (T, 3C) each
        mixed = np.concatenate([_attend(one, config.n_head, is_rotary) for one in qkv])  # (N, C)
        x = x + linear(mixed, layout.attention_out, layer, transposed)
        hidden = activation(linear(norm(x, layout.norm_2, layer), layout.mlp_in, layer))
        x = x + linear(hidden, layout.mlp_out, layer)
    x = norm(x, layout.final_norm)
    head = tokens
    if not config.tie_word_embeddings:
        own = get(layout.head)
        assert own is not None
        head = own
    return np.split(_project_to_vocabulary(x, head[: config.vocab_size]), ends)


def loss_of(logits: NDArray[np.float64], ids: Sequence[int]) -> float:
    """Mean negative log-likelihood, in nats, of each id after the first, given those before it.

    Infinite where there is no second id to predict.
    """
    if len(ids) < 2:
        return math.inf
    shifted = logits[:-1] - logits[:-1].max(axis=-1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=-1))
    return float((log_sums - shifted[np.arange(len(ids) - 1), list(ids[1:])]).mean())


def _attend(qkv: NDArray[np.float64], n_head: int, is_rotary: bool) -> NDArray[np.float64]:
    """Causal attention of one prompt: (T, 3C) to (T, C), head after head."""
    T, width = qkv.shape[0], qkv.shape[1] // 3
    D = width // n_head
    future = np.triu(np.ones((T, T), dtype=bool), k=1)
    heads = []
    for head in range(n_head):
        q, k, v = (qkv[:, part * width + head * D :][:, :D] for part in range(3))  # (T, D) each
        if is_rotary:
            q, k = _rotated(q), _rotated(k)
        scores = q @ k.T / math.sqrt(D)
        scores[future] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads.append(weights / weights.sum(axis=-1, keepdims=True) @ v)
    return np.concatenate(heads, axis=-1)


def _rotated(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotary positions: of (T, D), channels c and c + D / 2 are a complex number, times e^(i angle)."""
    T, D = x.shape
    angles = np.outer(np.arange(T), 10_000.0 ** (-np.arange(0, D, 2) / D))
    rotated = (x[:, : D // 2] + 1j * x[:, D // 2 :]) * np.exp(1j * angles)
    return np.concatenate([rotated.real, rotated.imag], axis=-1)


def _gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hendrycks and Gimpel 2016, in the tanh form that OpenAI trained with."""
    y: NDArray[np.float64] = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return y


def _exact_gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same before that approximation."""
    below: NDArray[np.float64] = 0.5 * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)))
    return x * below


_ACTIVATIONS = {"gelu_new": _gelu, "gelu": _exact_gelu}


def _project_to_vocabulary(x: NDArray[np.float64], head: Array) -> NDArray[np.float64]:
    logits = np.empty((len(x), len(head)))  # (T, V)
    for row in range(0, len(head), ROWS):
        logits[:, row : row + ROWS] = x @ head[row : row + ROWS].astype(np.float64).T
    return logits
