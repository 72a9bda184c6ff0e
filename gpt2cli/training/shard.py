"""A model in parts: each of W processes holds 1/W of every weight, gradient and moment (`run.shard: on`).

torch's FSDP2 gathers the weights of a block for its forward and again for its backward, and leaves each
process its part of the summed gradient (Rajbhandari et al. 2020, ZeRO stage 3; Zhao et al. 2023, FSDP).
A checkpoint is that of a whole model: rank 0 asks for one tensor at a time while it writes.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gpt2cli.errors import UsageError
from gpt2cli.recipe.sections import OptimConfig
from gpt2cli.training.optimizer_step import OptimizerStep, make_optimizer
from gpt2cli.training.ranks import Ranks, or_lost
from gpt2cli.training.train_state import moments_of

T = TypeVar("T")
DONE = ""  # in place of a tensor's name: rank 0 asks for no more
VIEWS = (
    torch.ops.aten.detach.default,
    torch.ops.aten.t.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.permute.default,
)


class ShardedStep(OptimizerStep):
    """The optimizer step of one process on its parts: DTensors, split along their first dimension.

    It splits a whole model, the same on all processes, in place; block by block it goes to `device`.
    `whole_model` is what rank 0 writes: its tensors can be read within `whole_tensors`.
    """

    is_sharded = True

    def __init__(
        self,
        model: Any,
        optim: OptimConfig,
        scaler: torch.amp.GradScaler,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise UsageError("run.shard needs a newer torch", f"this is {torch.__version__}", "run.shard=off")
        self._ranks = ranks
        whole = {id(p): nn.Parameter(self._whole(name, p), p.requires_grad) for name, p in _named(model)}
        self.whole_model = deepcopy(model, whole)
        with or_lost():
            mesh = init_device_mesh(device.type, (ranks.world,))
        self._root = _Call(model)
        for module in (*model.transformer.h, self._root):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
            # The loss is divided by the targets of all processes: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        super().__init__(model, make_optimizer(model, optim, device), scaler)

    def forward(self, function: Callable[..., T], batch: Any, dtype: torch.dtype) -> T:
        with or_lost(certain=False):
            return self._root(function, batch, dtype)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        with or_lost(certain=False):
            super().backward(loss)

    def gradients(self) -> list[Tensor]:
        return []  # they are summed already

    def losses_and_norm(self, losses: Sequence[Tensor]) -> tuple[list[float], float]:
        gradients: list[Any] = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([gradient.to_local() for gradient in gradients])
        *numbers, norm_here = torch.stack([*losses, norm]).tolist()
        (square,) = self._ranks.add(norm_here**2)
        return numbers, math.sqrt(square)

    def place(self, tensor: Tensor, parameter: Any) -> Tensor:
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements
        # All have the whole: each takes its part, and none sends.
        return distribute_tensor(tensor.to(parameter.device), mesh, placements, src_data_rank=None)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._whole(name, tensor) for name, tensor in tensors.items()}

    @contextlib.contextmanager
    def whole_tensors(self) -> Iterator[None]:
        if self._ranks.is_first:
            yield
            self._ranks.tell(DONE)
        else:
            while name := self._ranks.tell(DONE):
                self._gather(name)
            yield

    def _whole(self, name: str, like: Tensor) -> Tensor:
        def fetch() -> Tensor:
            self._ranks.tell(name)
            return self._gather(name).cpu()

        return WholeTensor(like, fetch)

    def _gather(self, name: str) -> Tensor:
        """A weight or moment, whole. All processes call it alike."""
        parts: dict[str, Any] = dict(_named(self.model))
        if name not in parts:
            parts = dict(moments_of(self.optimizer, self.names))
        with or_lost():
            return parts[name].detach().full_tensor()  # type: ignore[no-any-return]


class WholeTensor(torch.Tensor):
    """A tensor in parts on several processes, as rank 0 sees it: shape and type are at hand, and the first
    operation that reads it, unlike a view, fetches it.
    """

    fetch: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, like: Tensor, fetch: Callable[[], Tensor]) -> "WholeTensor":
        cpu = torch.device("cpu")
        made: WholeTensor = torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=cpu)
        made.fetch = fetch
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in VIEWS:
            tensor, *rest = args
            like = func(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"), *rest)
            return cls(like, lambda: func(tensor.fetch(), *rest).contiguous())
        args, kwargs = pytree.tree_map_only(cls, lambda tensor: tensor.fetch(), (args, kwargs or {}))
        return func(*args, **kwargs)


class _Call(nn.Module):
    """A forward that calls any function of the model, so that FSDP gathers the outer weights around it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], batch: Any, dtype: torch.dtype) -> T:
        return function(self.model, batch, dtype)


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters())
