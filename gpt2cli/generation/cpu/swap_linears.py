"""Swaps a model's linear layers and embeddings for those of linear.py that are fastest on a CPU: for
decoding, or for hundreds of rows at once.

The rest of the model stays that of `model/`. For one row a compiled step (aot_packages.py) is faster still.
benchmarks/decode.py measures all of them.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from gpt2cli.generation.cpu.linear import (
    Bf16Linear,
    BlockedBf16Linear,
    BlockedInt8Linear,
    BlockedLinear,
    DecodeLinear,
    Int8Linear,
    RowEmbedding,
    RowLinear,
    SplitLinear,
    can_block,
)
from gpt2cli.generation.cpu.many_rows import pays_to_keep_blocks
from gpt2cli.model.gpt2 import GPT2, GPT2LMHead

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
Use = Literal["row", "rows", "compiled"]


def swap_for_decoding(model: GPT2LMHead, precision: str | None = None, use: Use = "row") -> GPT2LMHead:
    """Swap the layers of a model on a CPU, in place, and return it.

    `precision` "fp32", "bf16" or "int8" is that of the matrices; by default they keep their own. `use` is
    for one row, several rows together, or one row in a compiled step. Vectors stay in fp32. The memory of
    the weights is reused: afterwards the model can only decode, and other references to its tensors see
    other numbers.
    The choice of layers depends on these arguments, the processor and the number of threads, never on a
    timing, so a seed gives the same text again; with other choices, in bf16 and int8, perhaps not.
    On other devices, and in fp16, nothing changes.
    """
    weight = model.lm_head.weight
    precision = precision or PRECISIONS.get(weight.dtype)
    if weight.device.type != "cpu" or precision is None:
        return model
    return swap_layers(model, precision, "row" if use == "rows" and not can_block(precision) else use)


def swap_layers(model: GPT2LMHead, precision: str, use: Use) -> GPT2LMHead:
    """Swap on any device; on "meta" only shapes and dtypes."""
    kinds = LAYERS[use][precision]
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, kinds.linear(child))
                if use == "rows" and module is not model:  # its lm_head's weight may be the token embedding
                    _give_back(child.weight.detach())
            elif isinstance(child, nn.LayerNorm):
                child.float()
    head, body = model.lm_head, model.transformer
    model.cache_dtype = kinds.cache
    if model.config.positions == "learned":
        body.wpe = RowEmbedding(body.wpe.weight.detach(), kinds.cache)  # type: ignore[assignment]
    # The token embedding shares the matrix of the output layer if that has readable rows.
    shared = head.as_embedding() if model.config.tie_word_embeddings else None  # type: ignore[operator]
    body.wte = shared or kinds.tokens(body.wte.weight.detach())  # type: ignore[assignment]
    return model


def swap_for_many_rows(body: GPT2, precision: str) -> None:
    """Swap the linear layers of a transformer that scores or classifies in fp32 on a CPU, in place, where
    oneDNN is faster than F.linear (many_rows.py).

    The memory of each weight is given back as soon as its copy is there, so the peak is that of the loaded
    model and one matrix. Other references to these weights then see zeros.
    """
    if precision != "fp32":
        return
    for module in list(body.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and pays_to_keep_blocks(child.weight):
                setattr(module, name, BlockedLinear(child))
                _give_back(child.weight.detach())


def _give_back(tensor: Tensor) -> None:
    """Return the whole pages of a tensor that is not read again to the system. A loaded model's tensors are
    views of one block of memory, which otherwise lives as long as any of them.
    """
    is_one_piece = tensor.is_contiguous() or tensor.t().is_contiguous()
    if sys.platform != "linux" or tensor.device.type != "cpu" or not is_one_piece:
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = tensor.data_ptr() + tensor.nbytes - start
    if size >= mmap.PAGESIZE:
        size -= size % mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class LayerKinds:
    linear: Callable[[nn.Linear], DecodeLinear]
    cache: torch.dtype  # of keys and values, and of the position embedding
    tokens: Callable[[Tensor], nn.Module]  # for a token embedding that shares no matrix


_Bf16Embedding = partial(RowEmbedding, dtype=torch.bfloat16)
LAYERS: dict[Use, dict[str, LayerKinds]] = {
    "row": {
        "fp32": LayerKinds(SplitLinear, torch.float32, RowEmbedding),
        "bf16": LayerKinds(Bf16Linear, torch.bfloat16, _Bf16Embedding),
        "int8": LayerKinds(Int8Linear, torch.bfloat16, _Bf16Embedding),
    },
    # Keys and values in fp32: torch's attention is five times as fast on them as on bf16.
    "rows": {
        "fp32": LayerKinds(BlockedLinear, torch.float32, RowEmbedding),
        "bf16": LayerKinds(BlockedBf16Linear, torch.float32, _Bf16Embedding),
        "int8": LayerKinds(BlockedInt8Linear, torch.float32, _Bf16Embedding),
    },
    "compiled": {
        "fp32": LayerKinds(RowLinear, torch.float32, RowEmbedding),
        "bf16": LayerKinds(Bf16Linear, torch.bfloat16, _Bf16Embedding),
        "int8": LayerKinds(Int8Linear, torch.bfloat16, _Bf16Embedding),
    },
}
