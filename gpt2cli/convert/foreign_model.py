"""ForeignModel: GPT-2's tensors under Hugging Face's names, in whatever format they are stored.

Each format file (`openai_checkpoint.py`, `hf_folder.py`, `nanogpt.py`, `llms_from_scratch.py`) turns a file
or folder into a `ForeignModel` by a table of names; `pipeline.py` converts any ForeignModel into any
target. It holds no weights: each tensor is read on demand, so that one at a time is in memory.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2cli.errors import InputError
from gpt2cli.jinja_template import JinjaTemplate, read_chat_template
from gpt2cli.model.config import GPT2Config
from gpt2cli.templates import Template
from gpt2cli.tokenizer.base import Tokenizer

LAYER = "{}"  # stands for the number of a block in a table's names


@dataclass(frozen=True)
class ForeignTensor:
    """One tensor of GPT-2: where it comes from, and how to read it in Hugging Face's layout."""

    source: str  # its name there; several that are concatenated stand as "a + b + c"
    shape: tuple[int, ...]  # Hugging Face's, matrices as (in, out)
    transposed: bool  # the source keeps it as (out, in)
    load: Callable[[], Tensor]  # of `shape`, floating, on the CPU, in the precision it is stored in


class RawTensors(Mapping[str, NDArray[np.floating]]):
    """The source's own tensors by its own names, untouched; each is read on demand."""

    def __init__(self, names: Collection[str], read: Callable[[str], NDArray[np.floating]]) -> None:
        self._names, self._read = names, read

    def __getitem__(self, name: str) -> NDArray[np.floating]:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class ForeignModel:
    """A GPT-2 in any known format. `tensors` has exactly the names of `folder.stored_shapes(config)`."""

    path: Path
    format: str  # "openai-tf", "huggingface", "nanogpt", "llms-from-scratch", "llm.c" or "gpt2cli"
    config: GPT2Config
    tokenizer: Tokenizer
    tensors: dict[str, ForeignTensor]
    raw: RawTensors  # what the independent check reads
    files: tuple[Path, ...]  # what it was read from, for the receipt
    notes: tuple[str, ...] = ()  # what was left out, assumed or filled in, a sentence each
    score_scales: tuple[float, ...] = ()  # of each block; `fold_scales` multiplies them into `tensors`

    @property
    def chat_template(self) -> Template | JinjaTemplate | None:
        """The one that its folder holds."""
        return read_chat_template(self.path) if self.path.is_dir() else None


def fold_scales(source: ForeignModel) -> ForeignModel:
    """The same model with attention's score factors multiplied into the query's weights: GPT-2 has no other
    place for them.

    `raw` stays without them; the independent check multiplies for itself.
    """

    def folded(tensor: ForeignTensor, scale: float) -> ForeignTensor:
        def load() -> Tensor:
            values = tensor.load()
            values = values.to(torch.promote_types(values.dtype, torch.float32), copy=True)
            values[..., : source.config.n_embd] *= scale  # query, key and value are side by side
            return values

        return replace(tensor, load=load)

    tensors = dict(source.tensors)
    for layer, scale in enumerate(source.score_scales):
        for part in ("weight", "bias") if scale != 1.0 else ():
            name = f"transformer.h.{layer}.attn.c_attn.{part}"
            tensors[name] = folded(tensors[name], scale)
    return replace(source, tensors=tensors)


def as_array(tensor: Tensor) -> NDArray[np.floating]:
    """The tensor as an array, for `raw`. NumPy has no bfloat16; float32 holds its numbers exactly."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers in the same precision; NaN equals itself."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def expand_blocks(table: Mapping[str, str], n_layer: int) -> dict[str, str]:
    """A table of names with "{}" for the block's number, written out for every block, in its order.

    The rows before the first block's come first, each block's rows together, the others last.
    """
    rows = list(table.items())
    of_blocks = [(target, source) for target, source in rows if LAYER in target]
    first = rows.index(of_blocks[0])
    before, after = rows[:first], [row for row in rows[first:] if row not in of_blocks]
    blocks = [
        (target.format(layer), source.format(layer))
        for layer in range(n_layer)
        for target, source in of_blocks
    ]
    return dict([*before, *blocks, *after])


def require_standard_gpt2(
    config: GPT2Config, dtype: str, what: str, others: Mapping[str, bool], limits: str
) -> None:
    """Require a GPT-2 that its five sizes in fp32 describe in full, as older formats store it.

    `others` are further {reason against it: whether it holds}. Raises InputError: the model cannot
    be `what`, for the first reason that holds, because of `limits`.
    """
    reasons = {
        "its positions are rotary": config.positions == "rotary",
        "the output layer is a matrix of its own": not config.tie_word_embeddings,
        f"the MLP has {config.mlp_width} channels": config.mlp_width != 4 * config.n_embd,
        f"layer_norm_epsilon is {config.layer_norm_epsilon}": (
            config.layer_norm_epsilon != GPT2Config().layer_norm_epsilon
        ),
        **others,
        f"{dtype} is wanted": dtype != "f32",
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"this model cannot be {what}: {reason}", limits, "--to folder")
