"""nanoGPT's ckpt.pt, reading and writing.

Karpathy's model.py has Hugging Face's module names with nn.Linear's (out, in) matrices; train.py
saves {"model": state dict, "model_args", "optimizer", "iter_num", "best_val_loss", "config"}.
Since 2023 its GELU is the exact one, while GPT-2's is the tanh approximation: the logits of a model
trained there differ here by about 1e-3, and the notes say so. build-nanogpt's checkpoints
have the same names, the tanh, and instead of model_args their GPTConfig, a dataclass.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from re import compile
from typing import Any

import torch

from gpt2cli.checkpoints.folder import EMBEDDING, HEAD, transposed
from gpt2cli.convert.foreign_model import ForeignModel, require_standard_gpt2
from gpt2cli.convert.state_dict import (
    NAMES,
    InferredSizes,
    StateDict,
    StateDictFormat,
    infer_sizes,
    open_state_dict,
    parse_state_dict,
)
from gpt2cli.errors import InputError
from gpt2cli.files import replacing_file
from gpt2cli.model.config import GPT2Config
from gpt2cli.tokenizer.base import Tokenizer

LAYOUT = StateDictFormat(
    format="nanogpt",
    table={name: name for name in NAMES},
    masks=compile(r"transformer\.h\.\d+\.attn\.bias"),
    optional=compile(r".*\.bias"),
    optional_are="biases",
)
_NOT_INITIALISED = 1e9  # what train.py calls the best loss before it has measured one
GELU_NOTE = (
    "nanoGPT computes GELU exactly (since 2023), GPT-2 and this program by its tanh approximation: logits"
    " differ from nanoGPT's own by about 0.001"
)


def is_nanogpt(loaded: Any) -> bool:
    """Whether the result of torch.load is nanoGPT's ckpt.pt, or build-nanogpt's."""
    has_model = isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping)
    return has_model and _arguments_of(loaded) is not None


@contextlib.contextmanager
def nanogpt_source(path: Path, loaded: dict[Any, Any]) -> Iterator[ForeignModel]:
    """The model of `loaded`, the result of torch.load, which is emptied to free the optimizer's memory.

    Raises InputError if the file is of another model, or says what its tensors do not.
    """
    state = parse_state_dict(path, LAYOUT, loaded["model"])
    n_head, dropout = _read_arguments(path, _arguments_of(loaded), infer_sizes(state), state)
    notes = [GELU_NOTE] if "model_args" in loaded else []  # build-nanogpt's GELU is the tanh
    loaded.clear()
    with open_state_dict(state, n_head, dropout, notes) as source:
        yield source


def write_nanogpt(path: Path, source: ForeignModel) -> None:
    """Write a ckpt.pt in float32 that nanoGPT's sample.py opens, and `--init_from=resume` does not.

    It has no optimizer state to resume from, and no tokenizer: nanoGPT uses GPT-2's if a checkpoint
    names no dataset. Raises InputError for a model that nanoGPT cannot express.
    """
    require_expressible(source.config, source.tokenizer, "f32")
    model = {
        name: transposed(name, tensor.load().to(torch.float32)).contiguous()
        for name, tensor in source.tensors.items()
    }
    model[HEAD] = model[EMBEDDING]
    config = source.config
    checkpoint = {
        "model": model,
        "model_args": {
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "block_size": config.n_positions,
            "bias": True,
            "vocab_size": config.vocab_size,
            "dropout": config.dropout,
        },
        "iter_num": 0,
        "best_val_loss": _NOT_INITIALISED,
        "config": {},
    }
    # torch.save over an existing path leaves neither the old nor the new file when it is cut short.
    with replacing_file(path) as file:
        torch.save(checkpoint, file)


def require_expressible(config: GPT2Config, tokenizer: Tokenizer, dtype: str) -> None:
    """Checks that need no tensor. Raises InputError for a model that nanoGPT cannot express."""
    why = (
        "nanoGPT's model.py ties the head to the embedding, and fixes the width at 4 * n_embd and the"
        " epsilon at 1e-5"
    )
    require_standard_gpt2(config, dtype, "a checkpoint of nanoGPT", {}, why)


def _arguments_of(loaded: Mapping[Any, Any]) -> Any:
    """model_args, or what build-nanogpt's GPTConfig holds; None if there is neither."""
    if "model_args" in loaded:
        return loaded["model_args"]
    config = getattr(loaded.get("config"), "__dict__", {})
    return config if "block_size" in config else None  # other loops keep their own settings there


def _read_arguments(path: Path, values: Any, size: InferredSizes, state: StateDict) -> tuple[int, float]:
    """n_head and dropout; everything else the tensors say too, and must say the same."""
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: model_args is a {type(values).__name__}, not a table")
    has_biases = any(LAYOUT.optional.fullmatch(name) for name in state.tensors)
    found = {
        "n_layer": size.n_layer,
        "n_embd": size.n_embd,
        "block_size": size.n_positions,
        "vocab_size": size.n_rows,
        "bias": has_biases,
    }
    for name, ours in found.items():
        value = values.get(name, has_biases if name == "bias" else None)  # the first nanoGPT had no choice
        if type(value) is not type(ours) or value != ours:
            raise InputError(f"{path}: model_args has {name} {value!r}"[:300], f"the tensors say {ours}")
    n_head, dropout = values.get("n_head"), values.get("dropout", 0.0)
    if type(n_head) is not int or n_head < 1 or size.n_embd % n_head:
        raise InputError(
            f"{path}: model_args has n_head {n_head!r}"[:300],
            f"a number is needed that divides n_embd, {size.n_embd}",
        )
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise InputError(
            f"{path}: model_args has dropout {dropout!r}"[:300], "a rate from 0 to 1 is needed here"
        )
    return n_head, float(dropout)
