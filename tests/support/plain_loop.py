"""GPT-2's training written once more, plainly: transformers' model, torch's AdamW, cross-entropy.

Nothing of gpt2cli is imported here: this is what its training is compared with.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel


@dataclass(frozen=True)
class Example:
    """One row: `ids` (T,), and for each position the token to guess there, (T,); -100 for none."""

    ids: Sequence[int]
    targets: Sequence[int]


def windows_of(tokens: np.ndarray, starts: Iterable[int], context: int) -> list[Example]:
    """Windows of a text: each target is the token after its position. The last may be shorter."""
    ends = [min(i + context, len(tokens) - 1) for i in starts]
    return [
        Example(tokens[i:end].tolist(), tokens[i + 1 : end + 1].tolist())
        for i, end in zip(starts, ends, strict=True)
    ]


def load(folder: Path) -> GPT2LMHeadModel:
    """A model folder as transformers reads it, in fp32, with dropout off."""
    return GPT2LMHeadModel.from_pretrained(folder, torch_dtype=torch.float32).eval()


def loss_sum(model: GPT2LMHeadModel, example: Example) -> Tensor:
    """Cross-entropy of one row, summed over its targets, in nats."""
    logits = model(torch.tensor([example.ids])).logits[0]  # (T, V)
    return F.cross_entropy(logits, torch.tensor(example.targets), ignore_index=-100, reduction="sum")


def n_targets(examples: Iterable[Example]) -> int:
    return sum(target != -100 for example in examples for target in example.targets)


def mean_loss(model: GPT2LMHeadModel, examples: Sequence[Example]) -> Tensor:
    """Mean over all targets of all rows: each target weighs the same, whatever its row."""
    return torch.stack([loss_sum(model, example) for example in examples]).sum() / n_targets(examples)


def gradient_norm(model: GPT2LMHeadModel, examples: Sequence[Example]) -> float:
    """Of the mean loss, over all weights that learn. Forgets the gradients again."""
    mean_loss(model, examples).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    model.zero_grad()
    return norm


def find(
    model: GPT2LMHeadModel,
    candidates: Sequence[Sequence[Example]],
    losses: Sequence[float],
    norms: Sequence[float],
) -> list[int]:
    """Which candidate each step has learned from, by the loss and the gradient norm that it reports.

    The weights must be the same in all these steps. Fails where none fits, or more than one.
    """
    with torch.no_grad():
        known = np.array([float(mean_loss(model, rows)) for rows in candidates])
    found = []
    for loss, norm in zip(losses, norms, strict=True):
        near = np.flatnonzero(np.abs(known - loss) < 1e-5).tolist()
        fitting = [i for i in near if abs(gradient_norm(model, candidates[i]) - norm) < 1e-4 * norm]
        assert len(fitting) == 1, f"loss {loss} and gradient norm {norm} fit the candidates {fitting}"
        found += fitting
    return found


def decays(name: str) -> bool:
    """Whether AdamW pulls a weight of that name to zero: matrices and embeddings, no bias, no LayerNorm."""
    return name.endswith("weight") and "ln_" not in name


@dataclass(frozen=True)
class Step:
    loss: float
    lr: float
    grad_norm: float


def steps(
    model: GPT2LMHeadModel,
    batches: Iterable[Sequence[Example]],
    rates: Iterable[float],
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip: float,
) -> Iterator[Step]:
    """Train `model` in place, one batch a step: loss, clipped gradient, AdamW."""
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if decays(name)], "weight_decay": weight_decay},
        {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps)
    for batch, rate in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = mean_loss(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        yield Step(loss.item(), rate, norm.item())
