"""A small base model with a loud adapter over it, in folders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loud import loud

from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.checkpoints.lora_adapter import write_adapter
from gpt2cli.checkpoints.safetensors_file import read_tensors, write_tensors
from gpt2cli.convert.open_model import open_model
from gpt2cli.files import sha256_of
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.model.lora import add_lora, lora_state
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.chars import Chars

TOKENIZER = Chars.from_text(["abcdefghijklmnopqrstuvwxyz .,\n"])
CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=TOKENIZER.n_vocab)
IDS = torch.randint(0, TOKENIZER.n_vocab, (3, 20), generator=torch.Generator().manual_seed(2))

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Lora:
    rank: int = 4
    alpha: float = 10.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("c_attn", "c_proj", "c_fc")


@dataclass(frozen=True)
class Base:
    folder: Path | None
    sha256: str
    tokenizer: Tokenizer = TOKENIZER


def save_base(folder: Path, seed: int = 1) -> Base:
    folder.mkdir(parents=True)
    model = loud(new_model(CONFIG, 1), seed=seed)
    write_manifest(folder, write_model(folder, model, TOKENIZER, "task: pretrain\n"))
    return Base(folder, sha256_of(folder / "model.safetensors"))


def make_loud(model: GPT2LMHead) -> GPT2LMHead:
    """Fill both matrices of each adapter so that a mistake anywhere shows in the logits."""
    generator = torch.Generator().manual_seed(8)
    for tensor in lora_state(model).values():
        tensor.normal_(0.0, 0.2, generator=generator)
    return model


def adapted(base: Base, lora: Lora) -> GPT2LMHead:
    """The base with loud adapters, apart."""
    assert base.folder is not None
    model = open_model(base.folder).model
    add_lora(model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets, seed=3)
    return make_loud(model)


def save_adapter(folder: Path, base: Base, lora: Lora) -> GPT2LMHead:
    """Write it, and return the model that it was written from."""
    model = adapted(base, lora)
    folder.mkdir(parents=True)
    hashes = write_adapter(
        folder,
        model,
        dropout=lora.dropout,
        targets=lora.targets,
        base=base.folder,
        base_sha256=base.sha256,
        tokenizer=base.tokenizer,
        recipe="task: finetune-instruct\n",
    )
    write_manifest(folder, hashes)
    return model


def by_somebody_else(folder: Path, **settings: Any) -> None:
    """Take away what proves that the folder is ours, and change its settings."""
    (folder / "manifest.json").unlink(missing_ok=True)
    path = folder / SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    by_somebody_else(folder)
    tensors = read_tensors(folder / WEIGHTS) | changes
    write_tensors(folder / WEIGHTS, {n: t for n, t in tensors.items() if t is not None}, {})
