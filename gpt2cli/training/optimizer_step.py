"""Owns how a loss becomes other weights: backward, the gradient's norm, clipping, AdamW.

`Learner` is torch's own way, for every device and precision. `copies.py` has the faster one for a
CPU. Which batches make a step, and whether it counts, is the loop's business.
"""

import math

import torch
from torch import Tensor, nn

from gpt2cli.training.optim import clip_gradients, gradient_norm


class Learner:
    """A model, its optimizer, and the loss scaling that fp16 needs.

    A step is `backward` for each micro batch, `gradient_norm`, `update` if the norm is finite, and
    `finish` in any case.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self.model = model  # what a forward goes through
        self.optimizer, self.scaler = optimizer, scaler

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient to that of the micro batches before."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def gradient_norm(self) -> float:
        """The global norm, before clipping."""
        self.scaler.unscale_(self.optimizer)
        return gradient_norm(self.model.parameters())

    def update(self, norm: float, limit: float) -> None:
        """A step of AdamW along the gradient of norm `norm`, shortened to `limit`; 0 does not shorten."""
        assert math.isfinite(norm), "clipping would spread one NaN to all gradients"
        clip_gradients(self.model.parameters(), norm, limit)
        self.scaler.step(self.optimizer)

    def finish(self) -> None:
        """Forget the gradients, whether they were used or not."""
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def prove(self) -> None:
        """Compile what a step does besides the blocks, of which there is nothing here."""

    @property
    def searches_scale(self) -> bool:
        """Whether a gradient beyond fp16's range may only mean that the loss scale must come down."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1
