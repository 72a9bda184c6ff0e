"""A small model to look into, and the tables that are shown of it."""

from pathlib import Path
from typing import Any

from loud import loud

from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.chars import Chars

CHARS = Chars.from_text("abcdefghijklmnopqrstuvwxyz $\n\x1b")


def save(folder: Path, n_layer: int = 3, tokenizer: Tokenizer = CHARS, **numbers: Any) -> Path:
    shape = {"n_head": 2, "n_embd": 16, "n_positions": 80, "vocab_size": tokenizer.n_vocab}
    model = loud(new_model(GPT2Config(n_layer=n_layer, **{**shape, **numbers}), 1))
    folder.mkdir()
    write_manifest(folder, write_model(folder, model, tokenizer, "task: pretrain\nseed: 3\n"))
    return folder


def table(text: str, title: str) -> list[list[str]]:
    """The rows below a title, in words."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    rows = []
    for line in lines[start + 1 :]:
        if not line.strip():
            break
        rows.append(line.split())
    return rows
