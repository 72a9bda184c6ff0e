"""The export of one decode step: the model's graph, and its translation into machine code.

The graph is the model of `model/` itself, run once by torch.export with three of its parts swapped:
matmuls that are sums, which the compiler turns into one loop (linear.py), attention of a single query,
and a cache that is written in place. Weights are inputs of the graph, so one package works for every model
of a config. This file is also a program that builds one package: the compiler takes seconds to import,
hundreds of megabytes, and may crash. aot_packages.py stores the packages.
"""

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gpt2cli.generation.cpu.linear import in_huge_pages
from gpt2cli.generation.cpu.swap_linears import swap_layers
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, empty_model
from gpt2cli.model.layers import Attention, KVCache

# The length that the graph is traced with. torch.export specializes on lengths 0 and 1, so the step does not
# take the first token of a text; nor the last position, where a slice is the whole and has other strides.
TRACED_LENGTH, SHORTEST = 5, 2
INDUCTOR = {
    "realize_reads_threshold": 0,  # otherwise layer norm and GELU are computed again in each row's sum
    "cpp.enable_floating_point_contract_flag": "fast",  # int8 sums are compute-bound
    "compile_threads": 1,
    # Both cost more time than they save for one file; a wrong guess fails the build, which is caught.
    # Precompiled headers came with torch 2.8.
    "cpp_cache_precompile_headers": False,
    "cpp.vec_isa_ok": True,
}


def cache_dtype(precision: str) -> torch.dtype:
    return torch.float32 if precision == "fp32" else torch.bfloat16


def full_cache(config: GPT2Config, precision: str, n_wanted: int) -> KVCache:
    """The step's cache: one row, all positions, of which `n_wanted` will be used.

    If most will, it lies in huge pages: at 900 positions that saves 10 percent of an int8 token. The system
    clears all of them at the first touch, 50 ms at 124M; of small pages most are never touched.
    """
    like = torch.empty(0, dtype=cache_dtype(precision))
    if 4 * n_wanted < 3 * config.n_positions:
        return KVCache(config, 1, like)
    cache = KVCache(config, 1, like.to("meta"))
    tensors = [*cache.keys, *cache.values]
    memory = in_huge_pages((len(tensors), *tensors[0].shape), tensors[0].dtype)
    cache.keys, cache.values = list(memory[: config.n_layer]), list(memory[config.n_layer :])
    return cache


def swapped(config: GPT2Config, precision: str) -> GPT2LMHead:
    """The model of the step, without memory for its weights."""
    return swap_layers(empty_model(config), precision, "compiled")


def signature(model: GPT2LMHead) -> list[tuple[str, torch.Size, torch.dtype]]:
    """The weights that a step takes, in order: a package built for others must never run."""
    return [(name, t.shape, t.dtype) for name, t in model.named_parameters()]


class DecodeGraph(nn.Module):
    """One token in, the logits of the next one out."""

    def __init__(self, config: GPT2Config, precision: str) -> None:
        super().__init__()
        model = swapped(config, precision).eval()
        for module in model.modules():
            if isinstance(module, Attention):
                module.attend = attend_one
        self.weights = dict(model.named_parameters())  # without memory
        self._model = (model,)  # a tuple hides it from nn.Module: its weights are inputs

    def forward(
        self,
        input_ids: Tensor,
        places: Tensor,
        weights: Sequence[Tensor],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
    ) -> Tensor:
        """Logits (1, V) after input_ids (1, 1), which is written to the last of `places` (S,)."""
        cache = StepCache(places, keys, values)
        named = dict(zip(self.weights, weights, strict=True))
        logits: Tensor = torch.func.functional_call(self._model[0], named, (input_ids, cache))
        return logits[:, -1]


class StepCache(KVCache):
    """A cache of full length, written at a position that is known only at run time.

    It writes whole, contiguous inputs: of anything else the compiler makes a copy at each step.
    """

    def __init__(self, places: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.keys, self.values = list(keys), list(values)
        self.length = places.shape[0] - 1
        self._last = places[-1:]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, self._last, k.to(keys.dtype))
        values.index_copy_(2, self._last, v.to(values.dtype))
        end = self.length + 1
        return keys[:, :, :end], values[:, :, :end]


def attend_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """`attention_formula` for one query that sees everything, as sums in fp32.

    The exponentials are divided by their sum at the end: D divisions per head instead of S.
    """
    scores = (q / math.sqrt(q.shape[3]) * k.float()).sum(dim=3)  # (1, H, S)
    weights = (scores - scores.amax(dim=2, keepdim=True)).exp()  # (1, H, S)
    y = (weights[..., None] * v.float()).sum(dim=2, keepdim=True)  # (1, H, 1, D)
    return y / weights.sum(dim=2)[..., None, None]


def build(config: GPT2Config, precision: str, path: str) -> None:
    """Compile the step into a package at `path`, which ends in .pt2."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor import config as inductor

    step = DecodeGraph(config, precision)
    places = torch.arange(TRACED_LENGTH)
    weights = [torch.empty(p.shape, dtype=p.dtype) for p in step.weights.values()]
    cache = full_cache(config, precision, n_wanted=TRACED_LENGTH)
    S = torch.export.Dim("S", min=SHORTEST, max=config.n_positions - 1)
    shapes: Any = (None, {0: S}, *([None] * len(tensors) for tensors in (weights, cache.keys, cache.values)))
    arguments = (torch.zeros(1, 1, dtype=torch.long), places, weights, cache.keys, cache.values)
    exported = torch.export.export(step, arguments, dynamic_shapes=shapes, strict=False)
    known = inductor.get_config_copy()  # type: ignore[attr-defined, unused-ignore]
    options = {name: value for name, value in INDUCTOR.items() if name in known}
    aoti_compile_and_package(exported, package_path=path, inductor_configs=options)


if __name__ == "__main__":
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    build(GPT2Config(**request["config"]), request["precision"], request["path"])
