"""`gpt2 pretrain ... init=BASE`: another model's weights, trained on a text of one's own."""

import json
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from plain_loop import find, load, mean_loss, steps, windows_of
from tiny_base import LETTERS, save_base
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
)

CONTEXT = 8
FURTHER = {
    **{name: value for name, value in PRETRAIN.items() if name not in ("data", "model")},
    "data": {"source": "own.txt", "validation": 0.2},
    "model": {"context": CONTEXT},
    "init": "base",
    "optim": {"steps": 10, "lr": 1e-2, "min_lr": 1e-3},
    "checkpoint": {"every": 1, "keep": 99},
}
LORA = {**FURTHER, "train": "lora", "lora": {"rank": 2, "dropout": 0.1, "targets": ["c_attn", "c_fc"]}}


@pytest.fixture
def base(gpt2: Call) -> Path:
    """A model of 96 positions over single characters, and a text of one's own."""
    Path("own.txt").write_text(random_text(260, seed=11), encoding="utf-8")
    return save_base(gpt2, Path("base"))


def tokens_of(run: Path, split: str) -> Any:
    """The ids of a split that a run was trained on."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    folder = Path(record["sessions"][0]["data"]["tokens"])
    link = Path("tokens")
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    return read_tokens(split)


def test_it_begins_with_the_loss_of_the_base(base: Path, gpt2: Call) -> None:
    run = train(gpt2, FURTHER, "own", "optim.steps=1")
    first = events(run, "EvalDone")[0]
    rows = windows_of(tokens_of(run, "validation"), range(0, 52, CONTEXT), CONTEXT)
    with torch.no_grad():
        assert first["loss"] == pytest.approx(mean_loss(load(base), rows).item(), abs=1e-5)
    windows = ("--split", "validation", "--context", str(CONTEXT), "--stride", str(CONTEXT))
    measured = gpt2("evaluate", "base", "--on", "tokens", *windows, "--precision", "fp32", "--json")
    assert json.loads(measured.out)["loss"] == pytest.approx(first["loss"], abs=1e-6)
    assert json.loads(measured.out)["n_tokens"] == first["n_tokens"]


@pytest.mark.parametrize(
    "changes", [{}, {"activation_function": "gelu", "attn_pdrop": 0.3}], ids=["", "gelu"]
)
def test_five_steps_equal_a_loop_by_hand(changes: dict[str, Any], base: Path, gpt2: Call) -> None:
    save_base(gpt2, base, **changes)
    frozen = train(
        gpt2, FURTHER, "frozen", *FROZEN, "batch.micro_batch=1", "batch.accumulation=1", "optim.steps=30"
    )
    tokens = tokens_of(frozen, "train")
    candidates = [[row] for row in windows_of(tokens, range(len(tokens) - CONTEXT), CONTEXT)]
    order = find(load(base), candidates, column(frozen, "loss"), column(frozen, "grad_norm"))
    optim = {"steps": 5, "lr": 3e-3, "min_lr": 1.2e-3, "warmup_steps": 3, "schedule": "linear", "eps": 1e-5}
    rates = [0.001, 0.002, 0.003, 0.003, 0.0012]
    run = train(gpt2, {**FURTHER, "optim": optim}, "five")
    rows, model = windows_of(tokens, order, CONTEXT), load(base)
    batches = [rows[i : i + 6] for i in range(0, 30, 6)]
    by_hand = list(steps(model, batches, rates, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1, clip=1.0))
    for key in ("loss", "lr", "grad_norm"):
        assert column(run, key) == pytest.approx([asdict(step)[key] for step in by_hand], abs=1e-5, rel=1e-5)
    assert load(run / "last").config.activation_function == changes.get("activation_function", "gelu_new")
    found, wanted = load(run / "last").state_dict(), model.state_dict()
    wanted["transformer.wpe.weight"] = wanted["transformer.wpe.weight"][:CONTEXT]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recipe", [FURTHER, LORA], ids=["all", "lora"])
def test_killed_and_resumed_it_is_the_same_run(recipe: dict[str, Any], base: Path, gpt2: Call) -> None:
    recipe = {**recipe, "model": {"context": CONTEXT, "dropout": 0.2}}
    whole = train(gpt2, recipe, "whole")
    cut = rewound(whole, "cut", 4)
    if recipe is not LORA and "lora" not in recipe:
        shutil.rmtree(base)  # a run needs the base of all weights only once
    train(gpt2, recipe, "cut", "--resume")
    assert all_events(cut) == all_events(whole)
    names = {path.name for path in (whole / "last").glob("*.safetensors")}
    assert len(names) == 2
    for name in names:
        assert (cut / "last" / name).read_bytes() == (whole / "last" / name).read_bytes()


def test_the_start_says_where_it_comes_from_and_what_is_not_the_recipes(base: Path, gpt2: Call) -> None:
    save_base(gpt2, base, attn_pdrop=0.3)
    recipe = {
        **FURTHER,
        "data": {**FURTHER["data"], "tokenizer": "gpt2"},
        "model": {**PRETRAIN["model"], "n_head": 1},
    }
    Path("r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    said = gpt2("pretrain", "r.yaml", "--name", "r").err
    assert re.search(r"^r: from base, [\d,]+ parameters, 209 training and 52 validation tokens", said, re.M)
    rates = "the dropout rate is 0 everywhere (model.dropout); base has resid_pdrop 0, embd_pdrop 0,"
    for part in ("cut from 96 to 8", "n_head 2, n_embd 16", "the tokenizer is that of base", rates):
        assert part in " ".join(said.split())
    assert "n_layer 2" not in said  # which is the recipe's own
    written = yaml.safe_load((Path("runs") / "r" / "recipe.yaml").read_text(encoding="utf-8"))
    assert written["model"] == {"context": CONTEXT, "dropout": 0.0} and "tokenizer" not in written["data"]
    assert gpt2("pretrain", "runs/r/recipe.yaml", "--name", "again").code == 0


def test_the_end_compares_with_the_base_and_shows_what_was_memorised(base: Path, gpt2: Call) -> None:
    Path("own.txt").write_text("to be or not to be, " * 40, encoding="utf-8")
    learn = (
        "model.context=32",
        "optim.steps=100",
        "optim.lr=2e-2",
        "eval.sample_tokens=20",
        "eval.temperature=0",
        "checkpoint.every=0",
    )
    Path("own.yaml").write_text(yaml.safe_dump(FURTHER), encoding="utf-8")
    said = gpt2("pretrain", "own.yaml", *learn).err
    found = re.search(r"perplexity on the validation text: ([\d,.]+) before, ([\d,.]+) after 100 steps", said)
    assert found and float(found[1].replace(",", "")) > 50 > 3 > float(found[2])
    copied = re.search(
        r"of the last sample's 20 tokens, at most (\d+) in a row stand in the training text: '(.*)'", said
    )
    assert copied and copied[2] in "to be or not to be, " * 2 and len(copied[2]) == int(copied[1]) > 4


def test_own_runs_and_the_newest_are_bases_too(base: Path, gpt2: Call) -> None:
    first = train(gpt2, {**FURTHER, "model": {"context": 16}}, "first", "optim.steps=2")
    second = train(gpt2, FURTHER, "second", "init=newest", "optim.steps=2")
    assert events(second, "EvalDone")[0]["loss"] != events(first, "EvalDone")[0]["loss"]
    assert json.loads((second / "last" / "config.json").read_text())["n_positions"] == CONTEXT
    train(gpt2, FURTHER, "second", "--resume", "optim.steps=3")


def test_tokens_of_another_tokenizer_are_refused_with_the_command_that_helps(base: Path, gpt2: Call) -> None:
    out = ("--out", "own", "--tokenizer", "chars", "--block", "8", "--validation", "0.2")
    assert gpt2("prepare", "own.txt", *out).code == 0
    Path("r.yaml").write_text(yaml.safe_dump({**FURTHER, "data": {"source": "own"}}), encoding="utf-8")
    outcome = gpt2("pretrain", "r.yaml")
    assert outcome.code == 2 and "own: was prepared with another tokenizer" in outcome.err
    command = shlex.split(outcome.err.rpartition("fix: gpt2 ")[2])
    assert gpt2(*command).code == 0
    assert gpt2("pretrain", "r.yaml").code == 0


REFUSED = {
    "a context beyond the base's": (["model.context=97"], "model.context", "model.context=96"),
    "a base that is not there": (["init=nowhere"], "init: nowhere", "init=newest"),
    "adapters over random weights": (
        ["init=scratch", "train=lora", "model.n_layer=1", "model.n_head=1", "model.n_embd=8"],
        "train",
        "train=all",
    ),
    "random weights of no shape": (["init=scratch"], "model.size", "init=124M"),
    "a letter that the base does not know": (["data.source=umlaut.txt"], "umlaut.txt", ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_work(case: str, base: Path, gpt2: Call) -> None:
    overrides, subject, fix = REFUSED[case]
    Path("umlaut.txt").write_text(LETTERS * 5 + "ä", encoding="utf-8")
    Path("r.yaml").write_text(yaml.safe_dump(FURTHER), encoding="utf-8")
    outcome = gpt2("pretrain", "r.yaml", *overrides)
    assert outcome.code in (2, 3) and subject in outcome.err and fix in outcome.err
    assert not Path("runs").exists()
