"""Owns the fast step on a CPU: bf16 copies of the matrices beside their fp32 masters.

Under autocast each forward casts every fp32 weight and each backward casts every gradient back.
Here the products read copies in bf16 and leave gradients in bf16; AdamW reads those, moves the
master and writes the next copy, all in one pass over memory. A checkpoint holds masters and
moments; copies follow from them.
"""

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from gpt2cli.training.optim import clip_gradients, gradient_norm
from gpt2cli.training.optimizer_step import Learner


class CopyLearner(Learner):
    """Learns through a twin of the model in which the weight of each nn.Linear is a bf16 copy.

    The twin shares all else with the model: vectors, embeddings, adapters. Its forward belongs
    under autocast, which then finds nothing but activations to cast.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
        copies: dict[Tensor, nn.Parameter] = {weight: _copy_of(weight) for weight in weights}
        twin = deepcopy(model, {id(p): copies.get(p, p) for p in model.parameters()})
        super().__init__(twin, optimizer, torch.amp.GradScaler("cpu", enabled=False))
        self._copies = {master: copy for master, copy in copies.items() if master.requires_grad}
        self._others = [p for p in model.parameters() if p.requires_grad and p not in copies]
        self._looked_up = _share_embeddings(model, twin, self._copies)
        self._gradients: dict[Tensor, Tensor] = {}  # {master: bf16; of several micro batches: fp32}

    def backward(self, loss: Tensor) -> None:
        # Gradients are asked for by name: what a compiled block leaves in `.grad` is one more copy.
        read = [*self._copies.values(), *self._others, *self._looked_up.values()]
        found = dict(zip(read, torch.autograd.grad(loss, read), strict=True))
        for parameter in self._others:
            parameter.grad = found[parameter] if parameter.grad is None else parameter.grad + found[parameter]
        for master, copy in self._copies.items():
            gradient = found[copy]
            if master in self._looked_up:
                rows = found[self._looked_up[master]].coalesce()
                gradient.index_add_(0, rows.indices()[0], rows.values().to(gradient.dtype))
            before = self._gradients.get(master)
            self._gradients[master] = gradient if before is None else before.float().add_(gradient)

    def gradient_norm(self) -> float:
        squares = [_square_norm(gradient) for gradient in self._gradients.values()]
        return math.sqrt(sum(map(float, squares)) + gradient_norm(self._others) ** 2)

    @torch.no_grad()
    def update(self, norm: float, limit: float) -> None:
        clip_gradients(self._others, norm, limit)
        shrink = limit / norm if limit and norm > limit else 1.0
        for group in self.optimizer.param_groups:
            for master in group["params"]:
                if master in self._copies:
                    state, gradient = self._state(master), self._gradients[master]
                    state["step"] += 1
                    factors = _factors(group, float(state["step"]), shrink)
                    moments = state["exp_avg"], state["exp_avg_sq"]
                    _adamw(master.data, *moments, gradient, self._copies[master].data, factors)
        self.optimizer.step()  # of the others: it passes over weights without a gradient

    def finish(self) -> None:
        super().finish()
        self._gradients.clear()

    def prove(self) -> None:
        """Compile what a step does besides the blocks. Raises what the compiler raises."""
        shape = (5, 3)  # of equal sides it would be compiled for squares, and again for the others
        master, exp_avg, exp_avg_sq = torch.zeros(3, *shape).unbind()
        gradient, copy = torch.ones(2, *shape, dtype=torch.bfloat16).unbind()
        _square_norm(gradient)
        _adamw(master, exp_avg, exp_avg_sq, gradient, copy, torch.ones(7))

    def _state(self, master: Tensor) -> dict[str, Tensor]:
        """AdamW's memory of a weight, as torch's own AdamW begins it."""
        state: dict[str, Tensor] = self.optimizer.state[master]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        return state


def _copy_of(master: Tensor) -> nn.Parameter:
    return nn.Parameter(master.detach().to(torch.bfloat16), requires_grad=master.requires_grad)


def _share_embeddings(
    model: nn.Module, twin: nn.Module, copies: dict[Tensor, nn.Parameter]
) -> dict[Tensor, nn.Parameter]:
    """Let the twin look rows up in the master even where the output layer multiplies by its copy.

    Rows in fp32 keep the residual stream in fp32. Returns {master: the name under which its rows are
    looked up}, with a gradient of its own: the rows that were used, where a dense one is all zeros.
    """
    looked_up = dict[Tensor, nn.Parameter]()
    theirs = dict(twin.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.weight in copies:
            embedding = theirs[name]
            assert isinstance(embedding, nn.Embedding)
            lookup = nn.Parameter(module.weight.detach())  # the same memory
            embedding.weight, embedding.sparse = lookup, True
            looked_up[module.weight] = lookup
    return looked_up


def _factors(group: dict[str, Any], step: float, shrink: float) -> Tensor:
    """The numbers of one update as a tensor: constants would be compiled in, and change each step."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    return torch.tensor(
        [
            shrink,
            1 - lr * group["weight_decay"],
            lr / (1 - beta1**step),
            1 / math.sqrt(1 - beta2**step),
            beta1,
            beta2,
            group["eps"],
        ]
    )


@torch.compile(dynamic=True)
def _square_norm(gradient: Tensor) -> Tensor:
    return gradient.float().square().sum(1).sum()


@torch.compile(dynamic=True)
def _adamw(
    master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, gradient: Tensor, copy: Tensor, factors: Tensor
) -> None:
    """AdamW (Loshchilov and Hutter 2019) in one pass: compiled, each number is read and written once."""
    shrink, keep, rate, correction, beta1, beta2, eps = factors.unbind()
    g = gradient.float() * shrink
    exp_avg.copy_(exp_avg * beta1 + g * (1 - beta1))
    exp_avg_sq.copy_(exp_avg_sq * beta2 + g * g * (1 - beta2))
    master.copy_(master * keep - rate * exp_avg / (exp_avg_sq.sqrt() * correction + eps))
    copy.copy_(master)
