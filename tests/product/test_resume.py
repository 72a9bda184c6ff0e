"""A run that is killed and continued against the same run in one go: records and weights, to the bit."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_loop import find, load, windows_of
from tiny_base import save_base
from tiny_run import (
    FROZEN,
    PRETRAIN,
    Call,
    all_events,
    column,
    events,
    random_text,
    read_tokens,
    rewound,
    train,
    write_tokens,
)
from transformers import GPT2LMHeadModel

SAVING = {"every": 1, "keep": 99}  # after every step, so that a run can be taken back to each
# A recipe, its run in one go, and the steps after which it is killed.
Situation = tuple[dict[str, Any], Path, list[int]]


def same_weights(one: Path, other: Path) -> bool:
    """Weights and AdamW's memory of the newest checkpoint, byte by byte."""
    files = ("model.safetensors", "train_state.safetensors")
    return all((one / "last" / file).read_bytes() == (other / "last" / file).read_bytes() for file in files)


def long_recipe() -> dict[str, Any]:
    """Twelve steps with dropout, evaluated after every fourth."""
    model = {**PRETRAIN["model"], "dropout": 0.2}
    optim = {"steps": 12, "lr": 1e-2, "warmup_steps": 3}
    often = {**PRETRAIN["eval"], "every": 4}
    return {**PRETRAIN, "model": model, "optim": optim, "eval": often, "checkpoint": SAVING}


def learned(gpt2: Call) -> Situation:
    """With dropout, and evaluated on the way; after the first step and in the middle."""
    write_tokens(gpt2, random_text(260, seed=8))
    recipe = long_recipe()
    return recipe, train(gpt2, recipe, "whole"), [1, 7]


def skipped(gpt2: Call) -> Situation:
    """One record has a letter whose embedding is no number to calculate with; after its step."""
    base = save_base(gpt2, Path("base"), tied=False)
    model = GPT2LMHeadModel.from_pretrained(base)
    with torch.no_grad():
        letters = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        model.transformer.wte.weight[letters["~"]] = torch.tensor([3e38, -3e38] * 8)
    model.save_pretrained(base)
    records = [{"instruction": f"Say {i}" + "~" * (i == 1), "output": str(i)} for i in range(8)]
    Path("records.json").write_text(json.dumps(records), encoding="utf-8")
    recipe = {
        **{"task": "finetune-instruct", "seed": 7, "init": "base", "template": "chat"},
        "data": {"source": "records.json", "validation": 0.1, "test": 0.1},
        "batch": {"micro_batch": 1, "accumulation": 1},
        "optim": {"steps": 12, "lr": 1e-3},
        "eval": {"every": 100, "max_new_tokens": 1},
        **{"run": PRETRAIN["run"], "checkpoint": SAVING},
    }
    run = train(gpt2, recipe, "whole", command="finetune-instruct")
    steps = [event["step"] for event in events(run, "StepSkipped")]
    assert len(steps) == 2, "once in each of two epochs"
    return recipe, run, steps[:1]


def in_a_spike(gpt2: Call) -> Situation:
    """A text known by heart, and then a rate at which all is forgotten; at the first step of that."""
    write_tokens(gpt2, "abcdefgh" * 40)
    recipe = {**PRETRAIN, "optim": {"steps": 40, "lr": 2e-2, "min_lr": 2e-2}, "checkpoint": SAVING}
    train(gpt2, recipe, "whole")
    run = train(gpt2, recipe, "whole", "--resume", "optim.lr=1.0", "optim.min_lr=1.0", "optim.steps=46")
    (spike,) = events(run, "SpikeSeen")
    losses = {event["step"]: event["loss"] for event in events(run, "StepDone")}
    assert losses[spike["step"] + 1] > 5 * spike["typical"], "the next step is in the spike too"
    return recipe, run, [spike["step"]]


def impatient(gpt2: Call) -> Situation:
    """Nothing is learned: the third evaluation after the first ends it. With one counted, and with two."""
    write_tokens(gpt2, random_text(260, seed=8))
    often = {**PRETRAIN["eval"], "every": 2, "patience": 3}
    recipe = {**PRETRAIN, "optim": {"steps": 40, "lr": 1e-30}, "eval": often, "checkpoint": SAVING}
    run = train(gpt2, recipe, "whole")
    (stopped,) = events(run, "Stopped")
    assert (stopped["reason"], stopped["step"]) == ("patience", 6)
    return recipe, run, [3, 4]


SITUATIONS = {
    "anywhere": learned,
    "after a skipped step": skipped,
    "inside a spike": in_a_spike,
    "with patience counting": impatient,
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_killed_and_resumed_it_is_the_same_run(situation: str, gpt2: Call) -> None:
    recipe, whole, steps = SITUATIONS[situation](gpt2)
    for step in steps:
        cut = rewound(whole, f"cut-{step}", step)
        train(gpt2, recipe, cut.name, "--resume", command=recipe["task"])
        assert all_events(cut) == all_events(whole)
        assert same_weights(cut, whole)


def test_more_steps_than_before_are_those_of_a_longer_run(gpt2: Call) -> None:
    """At a constant rate: the schedule is stretched with the steps."""
    write_tokens(gpt2, random_text(260, seed=8))
    recipe = long_recipe()
    constant = ("optim.warmup_steps=0", "optim.min_lr=0.01")
    whole = train(gpt2, recipe, "whole", *constant)
    run = train(gpt2, recipe, "longer", *constant, "optim.steps=8")
    train(gpt2, recipe, "longer", "--resume", "optim.steps=12")
    for key in ("loss", "lr", "grad_norm"):
        assert column(run, key) == column(whole, key)
    assert same_weights(run, whole)


def test_a_resume_goes_on_at_the_next_window(gpt2: Call) -> None:
    """Each step has one window; those of a run and of its continuation are an epoch's 25, once each."""
    write_tokens(gpt2, random_text(260, seed=9))
    recipe = {**PRETRAIN, "batch": {"micro_batch": 1, "accumulation": 1}}
    run = train(gpt2, recipe, "run", *FROZEN, "optim.steps=11")
    train(gpt2, recipe, "run", "--resume", "optim.steps=25")
    tokens = read_tokens("train")
    candidates = [[row] for row in windows_of(tokens, range(len(tokens) - 8), 8)]
    starts = find(load(run / "last"), candidates, column(run, "loss"), column(run, "grad_norm"))
    assert len(tokens) == 209 and len(set(starts)) == 25
    targets = sorted(chain.from_iterable(range(start + 1, start + 9) for start in starts))
    assert targets == list(range(targets[0], targets[0] + 200)), "side by side, none twice, none left out"
