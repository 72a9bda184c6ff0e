"""A model of 124M's shape trained further, against transformers and torch's AdamW: a proof."""

import json
import shutil
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from plain_loop import find, load, mean_loss, steps, windows_of
from tiny_run import FROZEN, Call, column, events, read_tokens, train
from transformers import GPT2Config, GPT2LMHeadModel

CONTEXT, N = 32, 5
RECIPE = {
    **{"task": "pretrain", "seed": 7, "init": "base"},
    "data": {"source": "tokens"},
    "model": {"context": CONTEXT},
    "batch": {"micro_batch": 1, "accumulation": 1},
    "optim": {"steps": N, "lr": 1e-3, "schedule": "constant", "eps": 1e-5},
    "eval": {"every": 100, "tokens": "all", "sample_tokens": 0},
    "run": {"device": "cpu", "precision": "fp32", "compile": "off", "threads": 2},
}
SMALL = {**RECIPE, "init": "scratch", "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": CONTEXT}}


@pytest.mark.proofs
def test_its_losses_and_weights_are_those_of_a_plain_loop(gpt2: Call) -> None:
    text = files("gpt2cli.bundled").joinpath("story.txt").read_text(encoding="utf-8")[:3000]
    Path("text.txt").write_text(text, encoding="utf-8")
    prepared = gpt2("prepare", "text.txt", "--out", "tokens", "--block", str(CONTEXT), "--validation", "0.2")
    assert prepared.code == 0, prepared.err
    torch.manual_seed(3)
    GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).save_pretrained("base")
    for path in Path("tokens").glob("*"):
        if path.name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
            shutil.copy(path, "base")

    tokens = read_tokens("train")
    frozen = train(gpt2, SMALL, "frozen", *FROZEN)  # in which order the windows come
    candidates = [[row] for row in windows_of(tokens, range(len(tokens) - CONTEXT), CONTEXT)]
    order = find(load(frozen / "last"), candidates, column(frozen, "loss"), column(frozen, "grad_norm"))

    run, model = train(gpt2, RECIPE, "run"), load(Path("base"))
    first = events(run, "EvalDone")[0]
    validation = read_tokens("validation")
    held_out = windows_of(validation, range(0, len(validation) - 1, CONTEXT), CONTEXT)
    with torch.no_grad():
        assert first["loss"] == pytest.approx(mean_loss(model, held_out).item(), abs=1e-4)
    windows = ("--split", "validation", "--context", str(CONTEXT), "--stride", str(CONTEXT))
    measured = gpt2("evaluate", "base", "--on", "tokens", *windows, "--precision", "fp32", "--json")
    assert json.loads(measured.out)["loss"] == pytest.approx(first["loss"], abs=1e-6)

    batches = [[row] for row in windows_of(tokens, order, CONTEXT)]
    rates = [1e-3] * N
    by_hand = list(steps(model, batches, rates, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1, clip=1.0))
    for key in ("loss", "lr", "grad_norm"):
        assert column(run, key) == pytest.approx([asdict(step)[key] for step in by_hand], rel=1e-5)
    found, wanted = load(run / "last").state_dict(), model.state_dict()
    wanted["transformer.wpe.weight"] = wanted["transformer.wpe.weight"][:CONTEXT]
    difference = max((found[name] - wanted[name]).abs().max().item() for name in wanted)
    print(f"validation loss {first['loss']}, losses {column(run, 'loss')}, weights within {difference:.1e}")
    assert difference < 1e-5
