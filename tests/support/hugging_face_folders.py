"""Folders as transformers writes them and as it used to: each way of storing one small model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from words import BYTES

from gpt2cli.tokenizer.files import save_tokenizer

SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 24, "vocab_size": 257}
WEIGHTS, BIN, INDEX = "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"


def model_of_theirs(**changes: Any) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(2)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SHAPE, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.2)
    return model


THEIRS = model_of_theirs()
UNTIED = model_of_theirs(tie_word_embeddings=False)


def state_of(model: transformers.GPT2LMHeadModel = THEIRS) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


Tensors = dict[str, torch.Tensor]
IDS = torch.randint(0, 257, (2, 24), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """For IDS, (2, 24, 257); of transformers' models and of ours."""
    found = model(IDS)
    return getattr(found, "logits", found)[..., : BYTES.n_vocab]


def named(change: Callable[[str], str], state: Tensors | None = None) -> Tensors:
    return {change(name): tensor for name, tensor in (state or state_of()).items()}


def padded(state: Tensors, n_rows: int) -> Tensors:
    more = torch.full((n_rows - 257, 32), 9.0)  # rows that would win every softmax
    return {
        name: torch.cat([t, more]) if name in ("transformer.wte.weight", "lm_head.weight") else t
        for name, t in state.items()
    }


def bare(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("transformer."): t for name, t in state.items() if name != "lm_head.weight"}


def with_masks(state: dict[str, torch.Tensor], prefix: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """As versions before 4.30 stored it."""
    masks = {}
    for layer in range(2):
        masks[f"{prefix}h.{layer}.attn.bias"] = torch.ones(1, 1, 24, 24, dtype=dtype).tril()
        masks[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return {**masks, **state}


def sharded_bin(folder: Path) -> None:
    names = list(state := state_of())
    shards = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for shard, part in shards.items():
        torch.save({name: state[name] for name in part}, folder / shard)
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (folder / f"{BIN}.index.json").write_text(json.dumps(index))


def save_state(folder: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, folder / WEIGHTS, {"format": "pt"})


Writer = Callable[[Path], Any]
VARIANTS: dict[str, Writer] = {
    "safetensors": lambda folder: THEIRS.save_pretrained(folder),
    "shards": lambda folder: THEIRS.save_pretrained(folder, max_shard_size="40KB"),
    "trunk alone": lambda folder: THEIRS.transformer.save_pretrained(folder),
    "head in safetensors": lambda folder: save_state(folder, state_of()),
    "bin": lambda folder: torch.save(state_of(), folder / BIN),
    "old bin": lambda folder: torch.save(
        with_masks(bare(state_of()), "", torch.uint8), folder / BIN, _use_new_zipfile_serialization=False
    ),
    "bin of parameters": lambda folder: torch.save(dict(THEIRS.named_parameters()), folder / BIN),
    "shards of bin": sharded_bin,
    "old 124M": lambda folder: save_state(folder, with_masks(bare(state_of()), "", torch.float32)),
    "masks": lambda folder: save_state(folder, with_masks(state_of(), "transformer.", torch.bool)),
}


def write_folder(folder: Path, write: Writer, model: transformers.GPT2LMHeadModel = THEIRS) -> Path:
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    save_tokenizer(BYTES, folder)
    write(folder)
    return folder
