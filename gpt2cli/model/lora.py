"""Low-rank adapters: a frozen matrix plus a trained correction, W x + B A x * alpha / rank.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". Pure torch: which layers get
one, how they are initialised, and how they are merged. Their files are in `checkpoints/lora_adapter.py`.
"""

import math
from collections.abc import Collection, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cli.errors import UsageError
from gpt2cli.model.layers import Dropout

# The matrices of a block. A target is the end of a name, as peft matches it: c_proj is both.
ADAPTABLE = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
PARTS = ("lora_A", "lora_B")  # an adapter's two matrices, by peft's names


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trainable correction of rank r.

    Wrapping renames the layer's tensors (`c_attn.base.weight`), so a model with adapters cannot be saved as
    if it had none: every name that a model folder asks for is missing.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base, self.rank, self.alpha = base, rank, alpha
        self.dropout = Dropout(dropout)
        like = base.weight
        self.lora_A = nn.Parameter(like.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(like.new_zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(self.dropout(x), self.lora_A)  # (B, T, rank)
        return cast(Tensor, self.base(x)) + F.linear(low, self.lora_B) * (self.alpha / self.rank)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight with the correction added, on the CPU."""
        weight = self.base.weight.detach()
        exact = weight.cpu().double() + correction(self.lora_A, self.lora_B, self.alpha / self.rank)
        return exact.to(weight.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer with the correction added into its weights, in place."""
        self.base.weight.copy_(self.merged_weight())
        return self.base


def correction(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """B A * scale, (out, in), on the CPU in float64: the merged weight is rounded once, and does not depend
    on the order of summation.
    """
    return b.detach().cpu().double() @ a.detach().cpu().double() * scale


def add_lora(
    model: nn.Module, *, rank: int, alpha: float, dropout: float, targets: Collection[str], seed: int
) -> list[str]:
    """Freeze the model and put an adapter on each named matrix of each block; returns their names.

    For any model with a `transformer`. A starts like peft's, uniform within 1 / sqrt(in); B is zero, so
    the model computes the same as before. The same seed gives the same adapters.
    Raises UsageError for a rank that is too large, or a target that names no matrix.
    """
    names = lora_target_names(model, targets)
    for name in names:
        n_out, n_in = cast(nn.Linear, model.get_submodule(name)).weight.shape
        if rank > min(n_out, n_in):
            raise UsageError(
                f"lora.rank is {rank}, and {name} is {n_in} x {n_out}",
                f"a rank beyond {min(n_out, n_in)} costs more than the matrix itself and can do no more",
                f"lora.rank={min(8, n_out, n_in)}",
            )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        adapter = LoraLinear(cast(nn.Linear, model.get_submodule(name)), rank, alpha, dropout)
        start = torch.empty(adapter.lora_A.shape)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            adapter.lora_A.copy_(start)
        model.set_submodule(name, adapter.train(model.training))
    return names


def lora_target_names(model: nn.Module, targets: Collection[str]) -> list[str]:
    """The full names of the matrices that targets match, in the model's order.

    Raises UsageError for a target that matches none.
    """
    matrices = [
        name
        for name, _ in model.named_modules()
        if name.startswith("transformer.h.") and name.endswith(ADAPTABLE)
    ]
    assert not lora_layers(model), "the model has adapters already"
    for target in targets:
        if not any(_matches(target, name) for name in matrices):
            raise UsageError(
                f"lora.targets: {target} is not a matrix of a transformer block",
                "they are c_attn, c_fc and c_proj, or all; c_proj is in both attention and MLP",
                "lora.targets=[c_attn]",
            )
    return [name for name in matrices if any(_matches(target, name) for target in targets)]


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """{name of the matrix: its adapter}, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors: `<matrix>.lora_A` (rank, in) and `<matrix>.lora_B` (out, rank), shared."""
    return {
        f"{name}.{part}": getattr(adapter, part).detach()
        for name, adapter in lora_layers(model).items()
        for part in PARTS
    }


@torch.no_grad()
def load_lora_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the adapters from the output of `lora_state`; names and shapes must match."""
    state = lora_state(model)
    assert state.keys() == tensors.keys(), "the adapters are other ones"
    for name, tensor in state.items():
        assert tensor.shape == tensors[name].shape, name
        tensor.copy_(tensors[name])


def merge_lora(model: nn.Module) -> None:
    """Merge the adapters into a plain model, in place: W + B A * alpha / rank. All parameters train again."""
    for name, adapter in lora_layers(model).items():
        model.set_submodule(name, adapter.merged())
    model.requires_grad_(True)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the plain model that `merge_lora` would leave, on the CPU; the model stays as it is.

    The device never holds a second model: matrices come from it one at a time.
    """
    adapters = lora_layers(model)
    state = dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        matrix, _, rest = name.rpartition(".base.")
        adapter = adapters.get(matrix)
        if adapter is not None and rest == "weight":
            state[f"{matrix}.weight"] = adapter.merged_weight()
        elif adapter is not None:
            state[f"{matrix}.{rest}"] = tensor.cpu()
        elif name.rpartition(".")[0] not in adapters:  # not one of an adapter's two matrices
            state[name] = tensor.cpu()
    return state


def _matches(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")
