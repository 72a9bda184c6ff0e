"""Owns how a loss becomes other weights: backward, the gradient's norm, clipping, AdamW.

`Learner` is torch's own way, for every device and precision. `copies.py` has the faster one for a
CPU. Which batches make a step, and whether it counts, is the loop's business.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gpt2cli.recipe.schema import OptimConfig


class OptimizerStep:
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


def make_optimizer(model: nn.Module, optim: OptimConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with decay on matrices and embeddings only.

    Decay pulls a weight to zero; for a bias or a LayerNorm gain zero is nothing to be pulled to.
    Parameters keep the model's order within a group; `parameter_names` gives the names to match.
    """
    decayed, plain = _decay_groups(model)
    groups = [
        {"params": [parameter for _, parameter in decayed], "weight_decay": optim.weight_decay},
        {"params": [parameter for _, parameter in plain], "weight_decay": 0.0},
    ]
    betas, fused = (optim.beta1, optim.beta2), device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps, fused=fused)


def parameter_names(model: nn.Module) -> list[str]:
    """Names in the order in which the optimizer of `make_optimizer` holds the parameters."""
    decayed, plain = _decay_groups(model)
    return [name for name, _ in decayed + plain]


def learning_rate(optim: OptimConfig, step: int) -> float:
    """The rate for the step after `step` finished ones: linear warmup, then half a cosine.

    Reaches `lr` at the end of the warmup and `min_lr` at the last step.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    last = max(1, optim.steps - 1 - optim.warmup_steps)
    progress = min(1.0, (step - optim.warmup_steps) / last)
    return optim.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (optim.lr - optim.min_lr)


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """The global norm of the gradients that are there."""
    return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def clip_gradients(parameters: Iterable[Tensor], norm: float, limit: float) -> None:
    """Shorten the gradients, of global norm `norm`, to `limit`; a limit of 0 leaves them."""
    if limit and norm > limit:
        nn.utils.clip_grads_with_norm_(parameters, limit, torch.tensor(norm))


def _decay_groups(model: nn.Module) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [n for n in named if n[1].dim() >= 2], [n for n in named if n[1].dim() < 2]
