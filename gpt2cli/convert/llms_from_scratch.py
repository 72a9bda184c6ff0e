"""Checkpoints of GPTModel from the book "Build a Large Language Model (From Scratch)", reading only.

Raschka's module (rasbt/LLMs-from-scratch, ch04) keeps query, key and value apart, may leave out their
biases, and has an output head of its own. Its LayerNorm and its GELU are GPT-2's: 1e-5, and tanh.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from re import compile
from typing import Any

from gpt2cli.convert.foreign_model import ForeignModel
from gpt2cli.convert.state_dict import (
    StateDictFormat,
    infer_heads,
    infer_sizes,
    open_state_dict,
    parse_state_dict,
    strip_prefix,
)

STATE = "model_state_dict"  # where the book's checkpoints with an optimizer have it
TOKENS = "tok_emb.weight"
_PARTS = ("W_query", "W_key", "W_value")
LAYOUT = StateDictFormat(
    format="llms-from-scratch",
    table={
        "transformer.wte.weight": TOKENS,
        "transformer.wpe.weight": "pos_emb.weight",
        "transformer.h.{}.ln_1.weight": "trf_blocks.{}.norm1.scale",
        "transformer.h.{}.ln_1.bias": "trf_blocks.{}.norm1.shift",
        "transformer.h.{}.attn.c_attn.weight": " + ".join(f"trf_blocks.{{0}}.att.{p}.weight" for p in _PARTS),
        "transformer.h.{}.attn.c_attn.bias": " + ".join(f"trf_blocks.{{0}}.att.{p}.bias" for p in _PARTS),
        "transformer.h.{}.attn.c_proj.weight": "trf_blocks.{}.att.out_proj.weight",
        "transformer.h.{}.attn.c_proj.bias": "trf_blocks.{}.att.out_proj.bias",
        "transformer.h.{}.ln_2.weight": "trf_blocks.{}.norm2.scale",
        "transformer.h.{}.ln_2.bias": "trf_blocks.{}.norm2.shift",
        "transformer.h.{}.mlp.c_fc.weight": "trf_blocks.{}.ff.layers.0.weight",
        "transformer.h.{}.mlp.c_fc.bias": "trf_blocks.{}.ff.layers.0.bias",
        "transformer.h.{}.mlp.c_proj.weight": "trf_blocks.{}.ff.layers.2.weight",
        "transformer.h.{}.mlp.c_proj.bias": "trf_blocks.{}.ff.layers.2.bias",
        "transformer.ln_f.weight": "final_norm.scale",
        "transformer.ln_f.bias": "final_norm.shift",
        "lm_head.weight": "out_head.weight",
    },
    masks=compile(r"trf_blocks\.\d+\.att\.mask"),
    optional=compile(r"trf_blocks\.\d+\.att\.W_(?:query|key|value)\.bias"),
    optional_are="biases of query, key and value",
)


def is_llms_from_scratch(loaded: Any) -> bool:
    """Whether the result of torch.load is the book's model, with or without its optimizer."""
    state = loaded.get(STATE, loaded) if isinstance(loaded, Mapping) else None
    return isinstance(state, Mapping) and any(
        isinstance(name, str) and strip_prefix(name) == TOKENS for name in state
    )


@contextlib.contextmanager
def llms_from_scratch_source(path: Path, loaded: Any, n_head: int | None = None) -> Iterator[ForeignModel]:
    """The model of `loaded`, the result of torch.load, which is emptied to free the optimizer's memory.

    The file does not say how many heads there are: `n_head` does, else 64 channels make one. Raises
    InputError if the file is of another model, or the heads do not divide the channels.
    """
    state = parse_state_dict(path, LAYOUT, loaded.get(STATE, loaded))
    loaded.clear()
    n_head, notes = infer_heads(path, n_head, infer_sizes(state).n_embd)
    with open_state_dict(state, n_head, 0.0, notes) as source:
        yield source
