"""llm.c's model files (karpathy/llm.c, train_gpt2.py and train_gpt2.cu), reading only.

256 int32 of header, then sixteen arrays in the order of _ARRAYS, each for all blocks together, with
matrices as nn.Linear's, (out, in). The token embedding has rows up to a round number. Its GELU is the tanh.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from re import compile

import numpy as np
import torch
from torch import Tensor

from gpt2cli.checkpoints.folder import EMBEDDING
from gpt2cli.convert.foreign_model import ForeignModel
from gpt2cli.convert.state_dict import NAMES, StateDictFormat, open_state_dict, parse_state_dict
from gpt2cli.errors import InputError
from gpt2cli.files import open_regular
from gpt2cli.model.config import GPT2Config

LAYOUT = StateDictFormat(
    format="llm.c",
    table={name: name for name in NAMES},
    masks=compile(r"(?!)"),  # none
    optional=compile(r"(?!)"),
    optional_are="",
)
_MODEL = 20240326
# Its other files; each kind has a number to begin with.
_NO_MODELS = {
    20240327: "activations and gradients for llm.c's own tests",
    20240328: "a tokenizer",
    20240520: "tokens to train on",
    20240522: "questions of an evaluation",
    20240527: "an optimizer's state",
}
_DTYPES = {3: torch.float32, 5: torch.bfloat16}  # by the header's version
_N_HEADER = 256
_FIELDS = ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd", "n_rows")  # from the third int32 on
# The arrays in the file's order, and their shapes: L blocks, width C, context T, V rows of the embedding, and
# 3 or 4 times the width.
_ARRAYS = {
    "transformer.wte.weight": "VC",
    "transformer.wpe.weight": "TC",
    "transformer.h.{}.ln_1.weight": "LC",
    "transformer.h.{}.ln_1.bias": "LC",
    "transformer.h.{}.attn.c_attn.weight": "L3C",
    "transformer.h.{}.attn.c_attn.bias": "L3",
    "transformer.h.{}.attn.c_proj.weight": "LCC",
    "transformer.h.{}.attn.c_proj.bias": "LC",
    "transformer.h.{}.ln_2.weight": "LC",
    "transformer.h.{}.ln_2.bias": "LC",
    "transformer.h.{}.mlp.c_fc.weight": "L4C",
    "transformer.h.{}.mlp.c_fc.bias": "L4",
    "transformer.h.{}.mlp.c_proj.weight": "LC4",
    "transformer.h.{}.mlp.c_proj.bias": "LC",
    "transformer.ln_f.weight": "C",
    "transformer.ln_f.bias": "C",
}


def is_llm_c(start: bytes) -> bool:
    """Whether a file with this beginning is one of llm.c's, a model or another."""
    return int.from_bytes(start[:4], "little") in {_MODEL, *_NO_MODELS}


@contextlib.contextmanager
def open_llm_c(path: Path) -> Iterator[ForeignModel]:
    """The model in the file, its tensors held in memory.

    Raises InputError for another of llm.c's files, another version, or one that is cut short.
    """
    with open_regular(path) as file:
        head = file.read(4 * _N_HEADER)
        header = np.frombuffer(head[: len(head) // 4 * 4], dtype="<i4")
        size = os.fstat(file.fileno()).st_size
        values, dtype = _read_header(path, header)
        shapes = _shapes(values)
        wanted = 4 * _N_HEADER + dtype.itemsize * sum(math.prod(shape) for shape in shapes.values())
        if size != wanted:
            raise InputError(
                f"{path}: has {size:,} bytes, and its header means {wanted:,}",
                "it is cut short, or not what it says",
            )
        block = bytearray(size - 4 * _N_HEADER)
        file.readinto(block)
    numbers = torch.frombuffer(block, dtype=dtype)
    parts = torch.split(numbers, [math.prod(shape) for shape in shapes.values()])
    stored = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    tensors = dict(_by_block(stored, values["n_layer"]))
    n_padding = values["n_rows"] - values["vocab_size"]
    tensors[EMBEDDING] = tensors[EMBEDDING][: values["vocab_size"]]
    notes = [f"{n_padding} rows of the embedding are padding, as its header says, and were cut off"]
    state = parse_state_dict(path, LAYOUT, tensors)
    with open_state_dict(state, values["n_head"], 0.0, notes if n_padding else []) as source:
        yield source


def _read_header(path: Path, header: np.ndarray) -> tuple[dict[str, int], torch.dtype]:
    if len(header) < _N_HEADER:
        raise InputError(f"{path}: is cut short", "a file of llm.c begins with a header of 1024 bytes")
    magic, version, *others = (int(number) for number in header)
    if magic in _NO_MODELS:
        raise InputError(
            f"{path}: is a file of llm.c, but no model: {_NO_MODELS[magic]}",
            "a model's name is like gpt2_124M.bin or model_00001000.bin",
        )
    if version not in _DTYPES:
        raise InputError(
            f"{path}: is version {version} of llm.c's model files",
            "known are 3 (fp32) and 5 (bf16); those before lie in another order",
            "write it again with the present train_gpt2.py of llm.c",
        )
    values = dict(zip(_FIELDS, others, strict=False))
    rows = values["n_rows"]
    n_layer, n_head, n_embd = values["n_layer"], values["n_head"], values["n_embd"]
    GPT2Config(n_layer, n_head, n_embd, values["n_positions"], values["vocab_size"])  # or an InputError
    if not values["vocab_size"] <= rows <= 2 * values["vocab_size"] or max(values.values()) > 2**24:
        raise InputError(f"{path}: the header is damaged", f"it says {values}")
    return values, _DTYPES[version]


def _shapes(values: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of each array of the file, in its order; "{}" in a name: for all blocks together."""
    C, L = values["n_embd"], values["n_layer"]
    sizes = {"V": values["n_rows"], "T": values["n_positions"], "C": C, "3": 3 * C, "4": 4 * C, "L": L}
    return {name: tuple(sizes[letter] for letter in letters) for name, letters in _ARRAYS.items()}


def _by_block(stored: dict[str, Tensor], n_layer: int) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in stored.items():
        if "{}" not in name:
            yield name, tensor
            continue
        for layer in range(n_layer):
            yield name.format(layer), tensor[layer]
