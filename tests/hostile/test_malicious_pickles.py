"""A .pt that wants to run code, given to every command that takes a model or a file: nothing runs."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gpt2cli.checkpoints.folder import write_model
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.tokenizer.chars import Chars

COMMANDS = (
    "convert {}",
    "convert {} --to nanogpt --out out.pt",
    "convert {} --merge",
    "inspect {}",
    "inspect {} --tensors",
    "generate -p a --model {}",
    "chat {}",
    "classify {} text",
    "evaluate {} --on text.txt",
    "evaluate --on {}",
    "compile {}",
    "judge {} --base-url http://127.0.0.1:9/v1 --judge-model x",
    "prepare {} --out data",
    "pretrain verdict data.source={}",
    "pretrain {}",
    "finetune-classify spam-tiny init={}",
    "finetune-classify spam-tiny train={}",
    "finetune-instruct instruct init={}",
    "finetune-instruct instruct train={}",
    "recipes check {}",
)


class RunsCode:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("kind", ["zip", "old", "folder"])
def test_no_command_runs_what_a_pickle_says(
    tmp_path: Path, kind: str, gpt2: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    tokenizer = Chars.from_text(["abc"])
    (tmp_path / "text.txt").write_text("abcabc\n" * 200)
    folder = tmp_path / "model"
    folder.mkdir()
    model = new_model(GPT2Config(1, 1, 8, 8, tokenizer.n_vocab), 1)
    write_model(folder, model, tokenizer, "task: pretrain\n")
    path = folder / "pytorch_model.bin" if kind == "folder" else tmp_path / "x.pt"
    state = load_file(folder / "model.safetensors")
    torch.save({**state, "x": RunsCode(canary)}, path, _use_new_zipfile_serialization=kind != "old")
    (folder / "model.safetensors").unlink()
    given = folder if kind == "folder" else path
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    for command in COMMANDS:
        if command.startswith("compile") and kind == "folder":
            continue  # it reads the sizes alone, and succeeds
        outcome = gpt2(*command.format(given).split())
        assert outcome.code in (2, 3), f"{command}: {outcome}"
        assert "Traceback" not in outcome.err, command
        assert not canary.exists(), command
    torch.load(path, weights_only=False)  # elsewhere it would have run
    assert canary.exists()
