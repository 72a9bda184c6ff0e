"""GGUF export: a model file for llama.cpp and Ollama, with the tokenizer inside.

The header is written by the `gguf` package (an extra), the tensors follow one at a time. The format
is described in ggml's docs/gguf.md; names and keys are those of llama.cpp's architecture "gpt2".
Nothing is read here: GGUF is an export only.
"""

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from gpt2cli.checkpoints.folder import HEAD, TRANSPOSED, require_matching_vocabulary, transposed
from gpt2cli.convert.foreign_model import ForeignModel, expand_blocks
from gpt2cli.errors import InputError, UsageError
from gpt2cli.files import replacing_file
from gpt2cli.model.config import GPT2Config
from gpt2cli.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2cli.tokenizer.bpe import BPE
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.tokenizer.merges import CHARACTER_OF

# Hugging Face's names -> llama.cpp's. A head that is tied has no row: llama.cpp takes token_embd then.
NAMES = {
    "transformer.wte.weight": "token_embd.weight",
    "transformer.wpe.weight": "position_embd.weight",
    "transformer.h.{}.ln_1.weight": "blk.{}.attn_norm.weight",
    "transformer.h.{}.ln_1.bias": "blk.{}.attn_norm.bias",
    "transformer.h.{}.attn.c_attn.weight": "blk.{}.attn_qkv.weight",
    "transformer.h.{}.attn.c_attn.bias": "blk.{}.attn_qkv.bias",
    "transformer.h.{}.attn.c_proj.weight": "blk.{}.attn_output.weight",
    "transformer.h.{}.attn.c_proj.bias": "blk.{}.attn_output.bias",
    "transformer.h.{}.ln_2.weight": "blk.{}.ffn_norm.weight",
    "transformer.h.{}.ln_2.bias": "blk.{}.ffn_norm.bias",
    "transformer.h.{}.mlp.c_fc.weight": "blk.{}.ffn_up.weight",
    "transformer.h.{}.mlp.c_fc.bias": "blk.{}.ffn_up.bias",
    "transformer.h.{}.mlp.c_proj.weight": "blk.{}.ffn_down.weight",
    "transformer.h.{}.mlp.c_proj.bias": "blk.{}.ffn_down.bias",
    "transformer.ln_f.weight": "output_norm.weight",
    "transformer.ln_f.bias": "output_norm.bias",
    HEAD: "output.weight",
}
# llama.cpp adds these to fp32 numbers without a matmul; its own converter keeps them in fp32 too.
ALWAYS_F32 = ("bias", "norm.weight", "position_embd.weight")
F16_MAX = 65504.0


@dataclass(frozen=True)
class GgufType:
    """How matrices are stored. `largest` is the greatest magnitude that can be expressed."""

    file_type: str  # of gguf.LlamaFileType
    tensor_type: str  # of gguf.GGMLQuantizationType
    dtype: torch.dtype  # of the numbers, or of those that a block of them is made from
    block: int  # values that share a scale; a row is made of whole blocks
    largest: float


KINDS = {
    "f32": GgufType("ALL_F32", "F32", torch.float32, 1, math.inf),
    "f16": GgufType("MOSTLY_F16", "F16", torch.float16, 1, F16_MAX),
    "bf16": GgufType("MOSTLY_BF16", "BF16", torch.bfloat16, 1, math.inf),
    "q8_0": GgufType("MOSTLY_Q8_0", "Q8_0", torch.float32, 32, 127 * F16_MAX),  # a block's scale is an f16
}


def write_gguf(path: Path, source: ForeignModel, dtype: str, name: str) -> None:
    """Write the model to `path`, whole or not at all; `name` is what llama.cpp shows for it.

    dtype "f32", "f16", "bf16" or "q8_0" is that of the matrices; vectors and positions stay f32.
    Raises UsageError if the package is missing, InputError for a model that cannot be expressed.
    """
    require_expressible(source.config, source.tokenizer, dtype)
    gguf, kind = _gguf(), KINDS[dtype]
    table = expand_blocks(NAMES, source.config.n_layer)
    names = {target: table[target] for target in source.tensors}
    with replacing_file(path) as file:
        # The writer opens the file of this name itself; flushing and renaming it stay with us.
        with contextlib.closing(gguf.GGUFWriter(file.name, "gpt2")) as writer:
            _add_values(writer, gguf, source, kind, name)
            _add_layout(writer, gguf, source, names, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        file.seek(0, os.SEEK_END)
        for target, theirs in names.items():
            _pad(file, writer.data_alignment)
            # Not by the writer: numpy's tofile, which it uses, hides that the disk is full (no errno).
            file.write(_encoded(source, target, _kind_of(theirs, kind), dtype).data)
        _pad(file, writer.data_alignment)


def require_expressible(config: GPT2Config, tokenizer: Tokenizer, dtype: str) -> None:
    """Checks that need no tensor: the vocabulary and the row width fit, and gguf is installed.

    Raises InputError for a model that cannot be expressed, UsageError without the package.
    """
    require_matching_vocabulary("this model", tokenizer, config.vocab_size)
    if config.positions == "rotary":
        raise InputError(
            "this model cannot be a GGUF file: its positions are rotary",
            "llama.cpp computes a GPT-2 with learned positions",
            "--to folder",
        )
    if config.activation_function != "gelu_new":
        raise InputError(
            "this model cannot be a GGUF file: its activation is the exact GELU",
            "llama.cpp computes a GPT-2 with the tanh approximation",
            "--to folder",
        )
    block = KINDS[dtype].block
    for label, width in {"n_embd": config.n_embd, "n_inner": config.mlp_width}.items():
        if width % block:
            raise InputError(
                f"this model cannot be a GGUF file in {dtype}: {label} is {width}",
                f"its rows are made of blocks of {block} weights",
                "--dtype f16",
            )
    _gguf()


def _vocabulary_of(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Tokens and merges, in the byte-to-character spelling, by which llama.cpp encodes every text to the
    ids that `tokenizer` gives.

    A character that a character vocabulary lacks is an error here; llama.cpp passes over it.
    """
    if isinstance(tokenizer, BPE):
        tokens = [tokenizer.spelling(id) for id in range(tokenizer.n_vocab)]
        return tokens, [f"{tokens[left]} {tokens[right]}" for left, right in tokenizer.merges]
    assert isinstance(tokenizer, Chars)
    tokens = [_spelled(character.encode()) for character in tokenizer.characters]
    return [*tokens, END_OF_TEXT], _merges_of_characters(tokens)


def _merges_of_characters(tokens: list[str]) -> list[str]:
    """Merges that join the bytes of each character, from the left, and never those of two.

    In UTF-8 a first byte is never inside a character, so what begins with one stays in its own.
    llama.cpp wants at least one merge: a pair of bytes that UTF-8 does not have changes nothing.
    """
    joins = [f"{token[:n]} {token[n]}" for token in tokens for n in range(1, len(token))]
    return list(dict.fromkeys(joins)) or [f"{CHARACTER_OF[0xFE]} {CHARACTER_OF[0xFF]}"]


def _spelled(token: bytes) -> str:
    return "".join([CHARACTER_OF[byte] for byte in token])


def _add_values(writer: Any, gguf: ModuleType, source: ForeignModel, kind: GgufType, name: str) -> None:
    config, tokenizer = source.config, source.tokenizer
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[kind.file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)

    tokens, merges = _vocabulary_of(tokenizer)
    # Tokens of type USER_DEFINED are found in any text, CONTROL only where a caller reads them.
    types = [gguf.TokenType.NORMAL] * len(tokens)
    for i in tokenizer.specials if isinstance(tokenizer, BPE) else {tokenizer.end_of_text}:
        types[i] = gguf.TokenType.CONTROL
    for token in tokenizer.added if isinstance(tokenizer, BPE) else ():
        types[token.id] = gguf.TokenType.CONTROL if token.is_control else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    special = tokenizer.special
    eos, *others = sorted(special.stops, key=lambda id: id != special.eos)
    writer.add_bos_token_id(special.eos if special.bos is None else special.bos)
    writer.add_eos_token_id(eos)
    for other in others[:1]:  # it has a place for two
        writer.add_eot_token_id(other)
    if special.pad is not None:
        writer.add_pad_token_id(special.pad)
    writer.add_add_bos_token(special.adds_bos)
    if template := source.chat_template:
        writer.add_chat_template(template.hugging_face_form(tokenizer))


def _add_layout(
    writer: Any, gguf: ModuleType, source: ForeignModel, names: dict[str, str], kind: GgufType
) -> None:
    for target, theirs in names.items():
        shape = source.tensors[target].shape
        if target.endswith(TRANSPOSED):  # a row is one output's weights
            shape = shape[::-1]
        tensor_type = gguf.GGMLQuantizationType[_kind_of(theirs, kind).tensor_type]
        n_numbers, n_bytes = gguf.GGML_QUANT_SIZES[tensor_type]  # of a block
        size = math.prod(shape) // n_numbers * n_bytes
        writer.add_tensor_info(theirs, shape, np.dtype(np.float32), size, tensor_type)


def _kind_of(theirs: str, kind: GgufType) -> GgufType:
    return KINDS["f32"] if theirs.endswith(ALWAYS_F32) else kind


def _encoded(source: ForeignModel, name: str, kind: GgufType, dtype: str) -> NDArray[np.uint8]:
    """The bytes of one tensor, row by row."""
    tensor = source.tensors[name].load()
    largest = tensor.abs().max().item()
    if kind.largest < largest < math.inf:
        raise InputError(
            f"{source.path}: {name} holds {largest:g}",
            f"numbers end at {kind.largest:g} in {dtype}",
            f"gpt2 convert {source.path} --to gguf --dtype bf16",
        )
    rows = transposed(name, tensor).to(kind.dtype).contiguous()
    if kind.block > 1:
        gguf = _gguf()
        blocks: NDArray[np.uint8] = gguf.quants.quantize(
            rows.numpy(), gguf.GGMLQuantizationType[kind.tensor_type]
        )
        return blocks
    return rows.view(torch.uint8).numpy()


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise UsageError(
            "GGUF needs the package gguf", "it is not installed here", "pip install gguf"
        ) from None
    return gguf
