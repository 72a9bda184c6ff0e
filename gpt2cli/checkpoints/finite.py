"""Checks that weights and logits are finite. Every reader, writer and sampler uses it."""

import math

import torch
from torch import Tensor

from gpt2cli.errors import DivergedError, Gpt2Error


def require_finite(values: Tensor | float, error: Gpt2Error) -> None:
    """Raises `error` if one of the values is NaN or infinite."""
    if not is_finite(values):
        raise error


def is_finite(values: Tensor | float) -> bool:
    if isinstance(values, float):
        return math.isfinite(values)
    low, high = torch.aminmax(values.detach())  # passes NaN on, and makes no mask
    return math.isfinite(low) and math.isfinite(high)


def bad_logits(where: str, fix: str) -> DivergedError:
    """The error for a model that computes NaN; `where` may say at which tokens."""
    return DivergedError(
        f"the model's logits are not finite{where}",
        "its weights hold NaN or infinity, or overflow in this precision",
        fix,
    )
