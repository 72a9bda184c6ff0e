"""The optimizer step: backward, gradient norm, clipping, AdamW or Muon, and the learning rate schedule.

`OptimizerStep` is the plain torch version, for every device and precision;
`training/master_weights.py` has the faster one for bf16 on a CPU.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gpt2cli.errors import UsageError
from gpt2cli.recipe.sections import OptimConfig

T = TypeVar("T")


class OptimizerStep:
    """One step: `forward` and `backward` per micro-batch, `losses_and_norm`, `update` if they are finite,
    `zero_grad`.
    """

    is_sharded = False  # whether the model is in parts on several processes

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        names: list[str] | None = None,
    ) -> None:
        self.model = model  # the one that runs the forward
        self.optimizer, self.scaler = optimizer, scaler
        self.names = names or parameter_names(model, optimizer)  # of the optimizer's parameters, in its order

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
        """Clip the gradient, of norm `norm`, to `max_norm` (0 does not clip), and let the optimizer step."""
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


class MuonAndAdamW(torch.optim.Optimizer):
    """Both as one optimizer: their groups in one list, Muon's first, and one state."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})  # the same groups, not copies
        self._parts = (muon, adamw)
        muon.state = adamw.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()


def make_optimizer(model: nn.Module, optim: OptimConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) with weight decay on matrices and embeddings only.

    Decay pulls a weight towards zero, which means nothing for a bias or a LayerNorm gain. `muon` (Jordan et
    al. 2024) takes the matrices of the blocks over: it orthogonalizes their momentum. With updates scaled to
    the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2) one learning rate
    and one weight decay serve both.

    Raises UsageError for Muon if torch is too old for it.
    """
    for_muon = {parameter for _, parameter in muon_matrices(model, optim)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    others = [parameter for parameter in trained if parameter not in for_muon]
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas, fused = (optim.beta1, optim.beta2), device.type in ("cpu", "cuda", "mps")
    adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps, fused=fused)
    if optim.name == "adamw":
        return adamw
    if not hasattr(torch.optim, "Muon"):
        raise UsageError(
            "optim.name is muon, which this torch does not have",
            f"it came with torch 2.9, and this is {torch.__version__}",
            "pip install 'torch>=2.9', or optim.name=adamw",
        )
    matrices = [parameter for parameter in trained if parameter in for_muon]
    muon = torch.optim.Muon(
        matrices, lr=optim.lr, weight_decay=optim.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return MuonAndAdamW(muon, adamw)


def muon_matrices(model: nn.Module, optim: OptimConfig) -> list[tuple[str, Tensor]]:
    """(name, parameter) pairs of the matrices that Muon trains: those of the blocks; none with AdamW."""
    if optim.name != "muon":
        return []
    named = model.named_parameters()
    return [(n, p) for n, p in named if p.requires_grad and p.dim() == 2 and n.startswith("transformer.h.")]


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names in the order in which an optimizer of the model holds the parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


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
