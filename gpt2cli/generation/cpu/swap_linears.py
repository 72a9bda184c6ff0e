"""Owns which products a model decodes with on a CPU, and puts them in the place of its linear layers.

The model around them stays the one of `model/`. products.py has those for one row, blocked.py those
for several; compiled.py owns what is faster still. benchmarks/decode.py measures all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gpt2cli.generation.cpu.blocked import BlockedBf16Linear, BlockedInt8Linear, BlockedLinear, can_block
from gpt2cli.generation.cpu.linear import (
    Bf16Embedding,
    Bf16Linear,
    Int8Linear,
    Packed,
    RowEmbedding,
    RowLinear,
    SplitLinear,
)
from gpt2cli.model.gpt2 import GPT2LMHead

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
Use = Literal["row", "rows", "compiled"]


def pack_for_decoding(model: GPT2LMHead, precision: str | None = None, use: Use = "row") -> GPT2LMHead:
    """Exchange the products of a model on a CPU, in place, and return it.

    `precision` "fp32", "bf16" or "int8" is that of the matrices; without it they keep their own.
    `use` says what it is packed for: one row, several rows together, or one row in a compiled step.
    Vectors stay in fp32. The memory of the weights is used again: afterwards the model can only decode,
    and whoever else holds its tensors finds others in them.
    Which products are taken depends on these words, the processor and the number of threads, never
    on a timing: with them a seed gives the same text again; with others, in bf16 and int8, perhaps not.
    On other devices, and in fp16, nothing changes.
    """
    weight = model.lm_head.weight
    precision = precision or PRECISIONS.get(weight.dtype)
    if weight.device.type != "cpu" or precision is None:
        return model
    return exchange_products(model, precision, "row" if use == "rows" and not can_block(precision) else use)


def exchange_products(model: GPT2LMHead, precision: str, use: Use) -> GPT2LMHead:
    """The same without asking where the model is; on "meta" it gives the shapes alone."""
    products = PRODUCTS[use][precision]
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, products.linear(child))
            elif isinstance(child, nn.LayerNorm):
                child.float()
    head, trunk = model.lm_head, model.transformer
    trunk.wpe = products.positions(trunk.wpe.weight.detach())  # type: ignore[assignment]
    # The token embedding shares the matrix of the output layer, where a row can be read from it.
    shared = head.as_embedding() if model.config.tie_word_embeddings else None  # type: ignore[operator]
    trunk.wte = shared or products.tokens(trunk.wte.weight.detach())  # type: ignore[assignment]
    return model


@dataclass(frozen=True)
class Products:
    """What takes the place of a linear layer, of the position embedding, which has the cache's
    precision, and of a token embedding that shares no matrix with a linear layer.
    """

    linear: Callable[[nn.Linear], Packed]
    positions: Callable[[Tensor], nn.Module]
    tokens: Callable[[Tensor], nn.Module]


PRODUCTS: dict[Use, dict[str, Products]] = {
    "row": {
        "fp32": Products(SplitLinear, RowEmbedding, RowEmbedding),
        "bf16": Products(Bf16Linear, Bf16Embedding, Bf16Embedding),
        "int8": Products(Int8Linear, Bf16Embedding, Bf16Embedding),
    },
    # Keys and values in fp32: torch's attention is five times as fast on them as on bf16.
    "rows": {
        "fp32": Products(BlockedLinear, RowEmbedding, RowEmbedding),
        "bf16": Products(BlockedBf16Linear, RowEmbedding, Bf16Embedding),
        "int8": Products(BlockedInt8Linear, RowEmbedding, Bf16Embedding),
    },
    "compiled": {
        "fp32": Products(RowLinear, RowEmbedding, RowEmbedding),
        "bf16": Products(Bf16Linear, Bf16Embedding, Bf16Embedding),
        "int8": Products(Int8Linear, Bf16Embedding, Bf16Embedding),
    },
}
