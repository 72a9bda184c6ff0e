"""Which weights decay, by name: one more step with decay and without, from the same checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_loop import decays
from safetensors.torch import load_file
from tiny_base import save_base
from tiny_run import PRETRAIN, Call, random_text, rewound, train, write_tokens

LR, DECAY = 0.01, 10.0
COMMON = {
    **{key: PRETRAIN[key] for key in ("seed", "batch", "run")},
    "optim": {"steps": 3, "lr": LR, "min_lr": LR, "warmup_steps": 0, "weight_decay": 0.0},
    "checkpoint": {"every": 1, "keep": 9},
}


def pretrain(gpt2: Call) -> dict[str, Any]:
    write_tokens(gpt2, random_text(260, seed=6))
    return {**{key: PRETRAIN[key] for key in ("task", "data", "model", "eval")}, **COMMON}


def instruct(gpt2: Call, *, tied: bool = True, how: str = "all") -> dict[str, Any]:
    records = [{"instruction": f"Say {i}", "output": str(i)} for i in range(12)]
    Path("records.json").write_text(json.dumps(records), encoding="utf-8")
    save_base(gpt2, Path("base"), tied=tied)
    start = {"task": "finetune-instruct", "init": "base", "train": how, "template": "chat"}
    source = {"source": "records.json", "validation": 0.1, "test": 0.1}
    return {**start, "data": source, "lora": {"rank": 2}, "eval": {"max_new_tokens": 1}, **COMMON}


def classify(gpt2: Call) -> dict[str, Any]:
    rows = "".join(f"{['ham', 'spam'][i % 2]},text {i}\n" for i in range(20))
    Path("texts.csv").write_text(f"label,text\n{rows}", encoding="utf-8")
    save_base(gpt2, Path("base"))
    start = {"task": "finetune-classify", "init": "base", "train": "all"}
    return {**start, "data": {"source": "texts.csv"}, **COMMON}


# The recipe's maker, the file that holds what learns, and a weight that is particular to it.
KINDS: dict[str, tuple[Callable[[Call], dict[str, Any]], str, str]] = {
    "tied": (pretrain, "model.safetensors", "transformer.wte.weight"),
    "untied": (lambda gpt2: instruct(gpt2, tied=False), "model.safetensors", "lm_head.weight"),
    "classifier": (classify, "model.safetensors", "score.weight"),
    "LoRA": (
        lambda gpt2: instruct(gpt2, how="lora"),
        "adapter_model.safetensors",
        "base_model.model.transformer.h.1.attn.c_attn.lora_B.weight",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_decay_and_vectors_do_not(kind: str, gpt2: Call) -> None:
    make, file, particular = KINDS[kind]
    recipe = make(gpt2)
    run = train(gpt2, recipe, "whole", command=recipe["task"])
    before = load_file(run / "checkpoints" / "step-000002" / file)
    assert particular in before and all(tensor.any() for tensor in before.values())
    after = []
    for name, decay in (("without", 0.0), ("with", DECAY)):
        rewound(run, name, 2)
        train(gpt2, recipe, name, "--resume", f"optim.weight_decay={decay}", command=recipe["task"])
        after.append(load_file(Path("runs") / name / "checkpoints" / "step-000003" / file))
    for name, weight in before.items():
        gone = LR * DECAY * weight if decays(name) else torch.zeros_like(weight)
        torch.testing.assert_close(after[0][name] - after[1][name], gone, atol=1e-6, rtol=1e-4, msg=name)
