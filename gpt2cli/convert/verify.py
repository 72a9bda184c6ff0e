"""Owns the proof that a converted model is the model it was made from.

Both compute logits for the same fixed texts in float64: the source through `reference.py`, the
converted model through its own modules. In float64 rounding can neither hide a mistake nor feign
one: an exact conversion differs by 1e-10, a wrong one by whole units. What the converted model
does in fp32, as it is used, stands beside it in the receipt.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2cli.convert.foreign_model import Source
from gpt2cli.convert.numpy_gpt2 import ROWS, Array, loss_of, reference_logits
from gpt2cli.errors import InputError
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.tokenizer.base import Tokenizer

TOLERANCE = 1e-4
PROMPTS = (
    "Every effort moves you",
    "The capital of France is",
    "def add(a, b):\n    return",
)
# Plain English, so that a trained model finds it easy and a broken one does not.
PARAGRAPH = (
    "When the rain stopped, the two children went out to look for their dog. They walked down to the"
    " river, where the water was high and brown, and called his name. An old man who was mending a net"
    " said that he had seen a dog that morning on the other side of the bridge. They thanked him and ran"
    " across. The dog was sitting in front of the bakery, waiting for somebody to open the door."
)


@dataclass(frozen=True)
class Verification:
    """What was compared and what came out. Differences are the largest over all logits."""

    tokens: int
    max_difference: float  # both sides in float64
    max_difference_fp32: float  # the converted model as it is used
    tolerance: float
    passed: bool
    perplexity: float  # of the converted model on the fixed paragraph
    perplexity_of_source: float

    def as_json(self) -> dict[str, Any]:
        """For the receipt. JSON has no infinity, which an untrained model's perplexity may reach."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Expected:
    """What the source computes; taken down before its tensors are let go."""

    prompts: list[list[int]]  # the last is the paragraph
    logits: list[NDArray[np.float64]]  # (T, V) each


def expect(source: Source, dtype: torch.dtype) -> Expected:
    """The source's logits, its tensors brought to `dtype` as the converted ones are.

    Raises InputError where the source itself holds the attention's square matrices turned over:
    no shape can show that, only that the model makes sense the other way round.
    """
    prompts = [_encode(text, source.tokenizer, source.config.n_positions) for text in (*PROMPTS, PARAGRAPH)]

    def rounded(array: Array) -> Array:
        if dtype == torch.float32:
            return array.astype(np.float32, copy=False)
        return torch.from_numpy(array.astype(np.float32)).to(dtype).float().numpy()

    logits = reference_logits(source.raw, source.format, source.config, prompts, rounded=rounded)
    loss, knows_nothing = loss_of(logits[-1], prompts[-1]), math.log(source.config.vocab_size)
    if loss > 0.5 * knows_nothing:  # hardly trained, or broken
        (other,) = reference_logits(
            source.raw, source.format, source.config, prompts[-1:], rounded=rounded, turned=True
        )
        turned = loss_of(other, prompts[-1])
        if turned < 0.95 * knows_nothing and turned < loss - 0.5:
            name = next(t.source for n, t in source.tensors.items() if n.endswith("attn.c_proj.weight"))
            raise InputError(
                f"{source.path}: {name} and its like in each block are stored the wrong way round",
                f"the loss on plain English is {loss:.2f}, and {turned:.2f} with them turned over",
                "write the checkpoint again with these square matrices transposed",
            )
    return Expected(prompts, logits)


def compare(expected: Expected, model: GPT2LMHead) -> Verification:
    """Run the converted model on the same ids. Raises nothing: the caller decides what a failure means."""
    in_float64 = logits_in_float64(model, expected.prompts)
    with torch.inference_mode():
        in_fp32 = [model(torch.tensor([ids]))[0].double().numpy() for ids in expected.prompts]
    paragraph = expected.prompts[-1]
    difference, in_use = _largest(expected.logits, in_float64), _largest(expected.logits, in_fp32)
    return Verification(
        tokens=sum(len(ids) for ids in expected.prompts),
        max_difference=difference,
        max_difference_fp32=in_use,
        tolerance=TOLERANCE,
        passed=difference < TOLERANCE and math.isfinite(in_use),  # False for NaN too
        perplexity=_perplexity(in_float64[-1], paragraph),
        perplexity_of_source=_perplexity(expected.logits[-1], paragraph),
    )


@torch.inference_mode()
def logits_in_float64(model: GPT2LMHead, prompts: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
    """Logits (T, V) of the model's own modules in float64, of which one block at a time is in memory."""
    trunk = model.transformer
    streams: list[Tensor] = []
    for ids in prompts:
        tokens, positions = torch.tensor([ids]), torch.arange(len(ids))
        streams.append(trunk.wte(tokens).double() + trunk.wpe(positions).double())  # (1, T, C)
    wide = copy.deepcopy(trunk.h[0]).double()
    for block in trunk.h:
        wide.load_state_dict(block.state_dict())  # widens while it copies
        streams = [wide(x) for x in streams]
    last_norm = copy.deepcopy(trunk.ln_f).double()
    streams = [last_norm(x) for x in streams]
    return [_scores(x[0], model.lm_head.weight).numpy() for x in streams]


def _scores(x: Tensor, weight: Tensor) -> Tensor:
    """x (T, C) times weight (V, C) turned over, in float64, with few rows of it widened at a time."""
    scores, wide = x.new_empty(len(x), len(weight)), x.new_empty(ROWS, x.shape[1])
    for row in range(0, len(weight), ROWS):
        rows = weight[row : row + ROWS]
        scores[:, row : row + ROWS] = x @ wide[: len(rows)].copy_(rows).T
    return scores  # (T, V)


def _encode(text: str, tokenizer: Tokenizer, limit: int) -> list[int]:
    """The ids of a text, without the characters that a small vocabulary lacks; at least two."""
    try:
        ids = tokenizer.encode(text)
    except InputError:
        ids = []
        for character in text:
            try:
                ids += tokenizer.encode(character)
            except InputError:
                continue
    ids = ids[:limit]
    return ids if len(ids) > 1 else [0, tokenizer.end_of_text][:limit]


def _largest(wanted: Sequence[NDArray[np.float64]], found: Sequence[NDArray[np.float64]]) -> float:
    return float(max(np.abs(a - b).max() for a, b in zip(wanted, found, strict=True)))


def _perplexity(logits: NDArray[np.float64], ids: Sequence[int]) -> float:
    loss = loss_of(logits, ids)
    return math.exp(loss) if loss < 700 else math.inf
