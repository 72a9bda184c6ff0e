"""The optimizer step: backward, gradient norm, clipping, AdamW, and the learning rate schedule.

`OptimizerStep` is the plain torch version, for every device and precision;
`training/master_weights.py` has the faster one for bf16 on a CPU.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gpt2cli.recipe.sections import OptimConfig

T = TypeVar("T")


class OptimizerStep:
    """One step: `forward` and `backward` per micro-batch, `losses_and_norm`, `update` if they are finite,
    `zero_grad`.
    """

    is_sharded = False  # whether the model is in parts on several processes

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self.model = model  # the one that runs the forward
        self.optimizer, self.scaler = optimizer, scaler

    def forward(self, function: Callable[..., T], batch: Any, dtype: torch.dtype) -> T:
        """A function of the task of the model and a batch."""
        return function(self.model, batch, dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the loss, a scalar, to that of the micro-batches before."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def gradients(self) -> list[Tensor]:
        """The gradients of all micro-batches so far, to be summed in place over processes."""
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def losses_and_norm(self, losses: Sequence[Tensor]) -> tuple[list[float], float]:
        """The losses of the micro-batches, scalars in fp32 on the device, as numbers; and the global norm of
        the gradient, before clipping. A GPU works ahead of the host; here alone the host waits for it.
        """
        self.scaler.unscale_(self.optimizer)
        *numbers, norm = torch.stack([*losses, gradient_norm(self.model.parameters())]).tolist()
        return numbers, norm

    def update(self, norm: float, max_norm: float) -> None:
        """Clip the gradient, of norm `norm`, to `max_norm` (0 does not clip), and take an AdamW step."""
        assert math.isfinite(norm), "clipping would spread one NaN to all gradients"
        clip_gradients(self.model.parameters(), norm, max_norm)
        self.scaler.step(self.optimizer)

    def zero_grad(self) -> None:
        """Drop the gradients, used or not, and adapt the fp16 loss scale."""
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def compile(self) -> None:
        """Compile the functions that a step runs besides the model's blocks: none here."""

    def free(self) -> None:
        """Drop the moments, two thirds of a run's memory between steps; no step can follow."""
        self.optimizer.state.clear()

    def place(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """A tensor of the parameter's shape, where the parameter is."""
        return tensor.to(parameter.device)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The moments as rank 0 can write them."""
        return tensors

    def whole_tensors(self) -> contextlib.AbstractContextManager[None]:
        """In the block rank 0 may read any weight and moment; all processes enter it."""
        return contextlib.nullcontext()

    @property
    def is_searching_loss_scale(self) -> bool:
        """Whether an overflowing fp16 gradient may only mean that the loss scale must decrease."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1


def make_optimizer(model: nn.Module, optim: OptimConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with weight decay on matrices and embeddings only.

    Decay pulls a weight towards zero, which means nothing for a bias or a LayerNorm gain.
    """
    decayed, plain = _decay_groups(model)
    groups = [
        {"params": [parameter for _, parameter in decayed], "weight_decay": optim.weight_decay},
        {"params": [parameter for _, parameter in plain], "weight_decay": 0.0},
    ]
    betas, fused = (optim.beta1, optim.beta2), device.type in ("cpu", "cuda", "mps")
    return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps, fused=fused)


def parameter_names(model: nn.Module) -> list[str]:
    """Names in the order in which the optimizer of `make_optimizer` holds the parameters."""
    decayed, plain = _decay_groups(model)
    return [name for name, _ in decayed + plain]


def learning_rate(optim: OptimConfig, step: int) -> float:
    """The learning rate of the step after `step` finished ones: linear warmup, then the decay.

    It is `lr` at the end of the warmup and, except for a constant one, `min_lr` at the last step.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    begin, last = optim.warmup_steps, optim.steps - 1
    if optim.schedule == "wsd":  # warmup, stable, decay (Hu et al. 2024, MiniCPM)
        begin = max(begin, last - (optim.decay_steps or optim.steps // 5))
    progress = min(1.0, max(0.0, (step - begin) / max(1, last - begin)))  # of the decay
    share = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "wsd": 1 - progress,
        "constant": 1.0,
    }[optim.schedule]
    return optim.min_lr + share * (optim.lr - optim.min_lr)


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The global L2 norm of the gradients, a scalar on their device; parameters without one do not count."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def clip_gradients(parameters: Iterable[Tensor], norm: float, max_norm: float) -> None:
    """Scale gradients of global norm `norm` down to `max_norm`; 0 leaves them as they are."""
    if max_norm and norm > max_norm:
        # As torch's clip_grads_with_norm_, but by a Python number, which no device waits for.
        scale = (max_norm / (torch.tensor(norm) + 1e-6)).item()
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, scale)


def _decay_groups(model: nn.Module) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    """(name, parameter) pairs of the trainable parameters: those with weight decay, and the rest."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [n for n in named if n[1].dim() >= 2], [n for n in named if n[1].dim() < 2]
