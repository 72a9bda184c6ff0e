"""Mixed precision with fp32 master weights: the fast optimizer step for bf16 on a CPU.

Under autocast each forward casts every fp32 weight to bf16, and each backward casts every gradient
back. Here the matmuls read bf16 copies and leave bf16 gradients; AdamW reads those, updates the
fp32 master weight and writes the next bf16 copy, in one pass over memory. Muon is torch's own, on
fp32 gradients. A checkpoint holds the master weights and the moments, from which the copies follow.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from gpt2cli.training.optimizer_step import OptimizerStep, clip_gradients, gradient_norm, parameter_names


class MasterWeightsStep(OptimizerStep):
    """Trains a copy of the model in which the weight of each nn.Linear is a bf16 copy.

    The copy shares everything else with the model: vectors, embeddings, adapters. Its forward runs
    under autocast, which then casts activations only.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
        copies: dict[Tensor, nn.Parameter] = {
            weight: nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=weight.requires_grad)
            for weight in weights
        }
        bf16_model = deepcopy(model, {id(p): copies.get(p, p) for p in model.parameters()})
        scaler, names = torch.amp.GradScaler("cpu", enabled=False), parameter_names(model, optimizer)
        super().__init__(bf16_model, optimizer, scaler, names)
        self._copies = {master: copy for master, copy in copies.items() if master.requires_grad}
        self._others = [p for p in model.parameters() if p.requires_grad and p not in copies]
        self._lookups = _share_embeddings(model, bf16_model, self._copies)
        # By master weight; bf16, or fp32 over several micro-batches.
        self._gradients: dict[Tensor, Tensor] = {}

    def backward(self, loss: Tensor) -> None:
        # autograd.grad, not backward(): a compiled block would fill `.grad` with one more copy.
        leaves = [*self._copies.values(), *self._others, *self._lookups.values()]
        grads = dict(zip(leaves, torch.autograd.grad(loss, leaves), strict=True))
        for parameter in self._others:
            parameter.grad = grads[parameter] if parameter.grad is None else parameter.grad + grads[parameter]
        for master, copy in self._copies.items():
            gradient = grads[copy]
            if master in self._lookups:
                rows = grads[self._lookups[master]].coalesce()
                gradient.index_add_(0, rows.indices()[0], rows.values().to(gradient.dtype))
            before = self._gradients.get(master)
            self._gradients[master] = gradient if before is None else before.float().add_(gradient)

    def gradients(self) -> list[Tensor]:
        # In fp32, as over several micro-batches.
        self._gradients = {master: gradient.float() for master, gradient in self._gradients.items()}
        return [*self._gradients.values(), *(p.grad for p in self._others if p.grad is not None)]

    def losses_and_norm(self, losses: Sequence[Tensor]) -> tuple[list[float], float]:
        squares = [_square_norm(gradient) for gradient in self._gradients.values()]
        norm = math.sqrt(sum(map(float, squares)) + float(gradient_norm(self._others)) ** 2)
        return [loss.item() for loss in losses], norm

    @torch.no_grad()
    def update(self, norm: float, max_norm: float) -> None:
        clip_gradients(self._others, norm, max_norm)
        clip = max_norm / norm if max_norm and norm > max_norm else 1.0
        for_muon = []
        for group in self.optimizer.param_groups:
            for master in group["params"]:
                if master in self._copies and "betas" not in group:
                    master.grad = self._gradients[master].float() * clip
                    for_muon.append(master)
                elif master in self._copies:
                    state, gradient = self._state(master), self._gradients[master]
                    state["step"] += 1
                    factors = _update_factors(group, float(state["step"]), clip)
                    moments = state["exp_avg"], state["exp_avg_sq"]
                    _adamw(master.data, *moments, gradient, self._copies[master].data, factors)
        self.optimizer.step()  # updates Muon's and the others: it skips weights without a gradient
        for master in for_muon:
            self._copies[master].copy_(master)

    def zero_grad(self) -> None:
        super().zero_grad()
        self._gradients.clear()

    def compile(self) -> None:
        """Compile AdamW and the norm on small tensors. Raises what the compiler raises."""
        shape = (5, 3)  # a square would be compiled for squares only
        master, exp_avg, exp_avg_sq = torch.zeros(3, *shape).unbind()
        gradient, copy = torch.ones(2, *shape, dtype=torch.bfloat16).unbind()
        _square_norm(gradient)
        _adamw(master, exp_avg, exp_avg_sq, gradient, copy, torch.ones(7))

    def _state(self, master: Tensor) -> dict[str, Tensor]:
        """The moments and the step count of a weight, initialised as torch's AdamW does."""
        state: dict[str, Tensor] = self.optimizer.state[master]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        return state


def _share_embeddings(
    model: nn.Module, bf16_model: nn.Module, copies: dict[Tensor, nn.Parameter]
) -> dict[Tensor, nn.Parameter]:
    """Let the copy look embeddings up in the fp32 master even if the tied output layer has a bf16 copy.

    fp32 rows keep the residual stream in fp32. Returns {master: the parameter of the lookup}, which
    shares the master's memory and has a sparse gradient: of the rows that the batch used.
    """
    lookups = dict[Tensor, nn.Parameter]()
    modules = dict(bf16_model.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.weight in copies:
            embedding = modules[name]
            assert isinstance(embedding, nn.Embedding)
            lookup = nn.Parameter(module.weight.detach())  # the same memory
            embedding.weight, embedding.sparse = lookup, True
            lookups[module.weight] = lookup
    return lookups


def _update_factors(group: dict[str, Any], step: float, clip: float) -> Tensor:
    """The scalars of one update as a tensor: as Python numbers they would be compiled in as constants."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    keep, rate = 1 - lr * group["weight_decay"], lr / (1 - beta1**step)
    return torch.tensor([clip, keep, rate, 1 / math.sqrt(1 - beta2**step), beta1, beta2, group["eps"]])


@torch.compile(dynamic=True)
def _square_norm(gradient: Tensor) -> Tensor:
    return gradient.float().square().sum(1).sum()


@torch.compile(dynamic=True)
def _adamw(
    master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, gradient: Tensor, copy: Tensor, factors: Tensor
) -> None:
    """AdamW (Loshchilov and Hutter 2019); compiled, it reads and writes every number once."""
    clip, keep, rate, correction, beta1, beta2, eps = factors.unbind()
    g = gradient.float() * clip
    exp_avg.copy_(exp_avg * beta1 + g * (1 - beta1))
    exp_avg_sq.copy_(exp_avg_sq * beta2 + g * g * (1 - beta2))
    master.copy_(master * keep - rate * exp_avg / (exp_avg_sq.sqrt() * correction + eps))
    copy.copy_(master)
