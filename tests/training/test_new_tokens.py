"""`tokenizer.add`: new tokens in training, in what is saved, and in transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teaching import save_base, write_teaching
from transformers import AutoTokenizer, GPT2LMHeadModel

from gpt2cli.checkpoints.folder import load_model
from gpt2cli.tokenizer.files import load_tokenizer

Run = Callable[..., Any]
ADD = "tokenizer.add=['<|user|>', '<|bot|>']"
RECORDS = [
    {"instruction": f"<|user|>Say it {i} times.<|bot|>", "output": f"word <|user|> {i}"} for i in range(20)
]


def trained(gpt2: Run, tmp_path: Path, *more: str, code: int = 0) -> Any:
    recipe = tmp_path / "teach.yaml"
    found = gpt2("finetune-instruct", recipe, "optim.steps=4", "checkpoint.every=2", ADD, *more)
    assert found.code == code, found.err
    return found


def test_new_tokens_are_trained_saved_and_found_in_any_text(tmp_path: Path, gpt2: Run) -> None:
    write_teaching(tmp_path, RECORDS)
    base = load_model(tmp_path / "base")
    n = base.config.vocab_size
    found = trained(gpt2, tmp_path)
    said = f"new tokens, whose embeddings begin at the mean of all others: <|user|>, <|bot|>, from id {n} on"
    assert said in " ".join(found.err.split())
    folder = Path("runs/teach/last")
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    text = "a<|user|>b <|bot|>"
    assert ours.encode(text).count(n) == 1 and ours.encode(text)[-1] == n + 1
    assert theirs(text)["input_ids"] == ours.encode(text)
    model = GPT2LMHeadModel.from_pretrained(folder)
    rows = model.transformer.wte.weight.detach()
    mean = base.model.transformer.wte.weight.mean(dim=0)
    assert len(rows) == n + 2 and model.lm_head.weight is model.transformer.wte.weight
    # A few steps move what the data hold, and not far.
    assert not torch.equal(rows[n], mean) and torch.allclose(rows[n:], mean.expand(2, -1), atol=0.1)


def test_a_resumed_run_is_the_same(tmp_path: Path, gpt2: Run) -> None:
    write_teaching(tmp_path, RECORDS)
    trained(gpt2, tmp_path, "--name", "whole")
    trained(gpt2, tmp_path, "--name", "halves", "optim.steps=4", "run.max_minutes=1e-9", code=0)
    trained(gpt2, tmp_path, "--name", "halves", "--resume", "run.max_minutes=0")
    one, other = (load_model(Path(f"runs/{name}/last")).model.state_dict() for name in ("whole", "halves"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_pretraining_encodes_them_too(tmp_path: Path, gpt2: Run) -> None:
    base = save_base(tmp_path / "base")
    (tmp_path / "text.txt").write_text("one <|user|> two " * 200)
    recipe = {
        "task": "pretrain",
        "init": str(base),
        "data": {"source": str(tmp_path / "text.txt")},
        "model": {"context": 16},
        "batch": {"micro_batch": 2},
        "optim": {"steps": 2, "lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 0},
        "eval": {"every": 2, "sample_tokens": 0},
        "run": {"device": "cpu", "precision": "fp32", "compile": "off", "threads": 1},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    done = gpt2("pretrain", tmp_path / "r.yaml", ADD)
    assert done.code == 0, done.err
    tokenizer = load_tokenizer(Path("runs/r/last"))
    (shard,) = (tmp_path / "gpt2-home").rglob("train-*.bin")
    ids = np.fromfile(shard, "<u2").tolist()
    assert tokenizer.id_of("<|user|>") in ids and tokenizer.id_of("<|bot|>") not in ids


@pytest.mark.parametrize(
    ("override", "fix"), [("train=lora", "train=all"), ("tokenizer.add=['']", "must not be empty")]
)
def test_what_cannot_be_is_refused(override: str, fix: str, tmp_path: Path, gpt2: Run) -> None:
    write_teaching(tmp_path, RECORDS)
    found = trained(gpt2, tmp_path, override, code=2)
    assert "tokenizer.add" in found.err and fix in found.err
