"""Adapters and their base: a run keeps the checkpoint that adapters of another run were trained over."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import PRETRAIN, Call, all_events, events, random_text, rewound, train, write_tokens

BASE = {
    **PRETRAIN,
    "model": {**PRETRAIN["model"], "context": 64},
    "optim": {"steps": 20, "lr": 3e-4, "schedule": "constant"},  # so slow that each step helps
    "eval": {**PRETRAIN["eval"], "every": 20},
    "checkpoint": {"keep": 1},
}
LORA = {"train": "lora", "lora": {"rank": 2, "targets": ["c_attn", "c_fc"]}}
COMMON = {
    **{"seed": 7, "init": "runs/base", "run": PRETRAIN["run"]},
    "batch": {"micro_batch": 2, "accumulation": 1},
    "optim": {"steps": 6, "lr": 1e-2, "schedule": "constant"},
    "checkpoint": {"every": 1, "keep": 99},
}
TUNED: dict[str, dict[str, Any]] = {
    "pretrain": {
        "data": {"source": "text.txt", "validation": 0.2},
        "model": {"context": 8},
        "eval": {"every": 2, "tokens": "all", "sample_tokens": 0},
    },
    "finetune-classify": {"data": {"source": "texts.csv", "validation": 0.3}, "eval": {"every": 2}},
    "finetune-instruct": {
        "data": {"source": "records.json", "validation": 0.2},
        "template": "chat",
        "eval": {"every": 2, "max_new_tokens": 1},
    },
}


@pytest.fixture
def base(gpt2: Call) -> Path:
    """A run of 20 steps, and data for what is trained over it."""
    write_tokens(gpt2, "abcdefghij klmnop\nUser:\nAssistant:\n" * 20, context=64)
    rows = [f"{random_text(6 + i % 5, seed=i)},{'ab'[i % 2]}" for i in range(40)]
    Path("texts.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    records = [{"instruction": random_text(4, seed=i), "output": random_text(5, seed=-i)} for i in range(24)]
    Path("records.json").write_text(json.dumps(records), encoding="utf-8")
    return train(gpt2, BASE, "base")


def tuned(gpt2: Call, command: str, name: str, *more: str, **changes: Any) -> Path:
    recipe = {"task": command, **COMMON, **TUNED[command], **changes}
    return train(gpt2, recipe, name, *more, command=command)


def go_on(gpt2: Call, steps: int, *more: str) -> str:
    """Train the base further; what was said, on one line."""
    done = gpt2("pretrain", "base.yaml", "--resume", f"optim.steps={steps}", "eval.every=10", *more)
    assert done.code == 0, done.err
    return re.sub(r"\s+", " ", done.err)


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def text_of(gpt2: Call, model: str) -> str:
    done = gpt2("generate", "abc", "--model", model, "-n", "20", "--temperature", "0", "--threads", "1")
    assert done.code == 0, done.err
    return str(done.out)


@pytest.mark.parametrize(("command", "init"), [("pretrain", "runs/base/best"), ("finetune-instruct", "base")])
def test_adapters_outlive_a_hundred_steps_of_their_base(
    command: str, init: str, base: Path, gpt2: Call
) -> None:
    whole = tuned(gpt2, command, "adapter", init=init, **LORA)
    again = gpt2(command, "adapter.yaml", "--name", "second")
    assert "runs/base keeps step 20: it is the base of these adapters" in re.sub(r"\s+", " ", again.err)
    before = text_of(gpt2, "adapter")
    said = go_on(gpt2, 120)
    assert said.count("step 20 is kept: it is the base of runs/adapter, runs/second") == 1
    assert 20 in steps_of(base) and len(steps_of(base)) <= 3
    for model in (("--model", "base"), ("--model", "runs/base"), ()):
        asked = ("-n", "20", "--temperature", "0", "--threads", "1")
        assert gpt2("generate", "abc", *model, "--adapter", "adapter", *asked).out == before
    assert gpt2("generate", "abc", "--model", "runs/base/best", "--adapter", "adapter").code == 3
    assert text_of(gpt2, "adapter") == before
    cut = rewound(whole, "cut", 3)
    resumed = gpt2(command, "adapter.yaml", "--resume", "--name", cut.name)
    assert resumed.code == 0, resumed.err
    assert all_events(cut) == all_events(whole)


def test_a_classifier_with_adapters_goes_on_over_the_base_it_had(base: Path, gpt2: Call) -> None:
    whole = tuned(gpt2, "finetune-classify", "whole", **LORA)
    cut = rewound(whole, "cut", 3)
    go_on(gpt2, 120)
    assert 20 in steps_of(base)
    assert gpt2("finetune-classify", "whole.yaml", "--resume", "--name", cut.name).code == 0
    assert all_events(cut) == all_events(whole)


def test_without_its_adapters_the_checkpoint_goes(base: Path, gpt2: Call) -> None:
    tuned(gpt2, "pretrain", "adapter", **LORA)
    tuned(gpt2, "pretrain", "other", **LORA)
    Path("runs/other").rename("runs/renamed")
    shutil.rmtree("runs/adapter")
    assert "step 20 is kept: it is the base of" in go_on(gpt2, 40) and 20 in steps_of(base)
    text_of(gpt2, "renamed")
    shutil.rmtree("runs/renamed")
    assert "step 20 goes: no adapter that needs it is there any more" in go_on(gpt2, 60)
    assert 20 not in steps_of(base)


def test_a_project_that_moves_keeps_its_pins(
    base: Path, gpt2: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(gpt2, "pretrain", "adapter", **LORA)
    before = text_of(gpt2, "adapter")
    place = tmp_path / "moved"
    place.mkdir()
    for path in [path for path in tmp_path.iterdir() if path != place and path.name != "gpt2-home"]:
        path.rename(place / path.name)
    monkeypatch.chdir(place)
    assert "step 20 is kept" in go_on(gpt2, 60)
    assert text_of(gpt2, "adapter") == before


def test_a_base_that_goes_back_leaves_the_checkpoint_aside(base: Path, gpt2: Call) -> None:
    go_on(gpt2, 40, "checkpoint.keep=9")
    tuned(gpt2, "pretrain", "adapter", **LORA)
    before = text_of(gpt2, "adapter")
    done = gpt2("pretrain", "base.yaml", "--resume", "--from", "step-30", "optim.steps=50")
    assert done.code == 0, done.err
    assert (base / "checkpoints/abandoned-step-000040").is_dir()
    assert text_of(gpt2, "adapter") == before
    done = gpt2("pretrain", "base.yaml", "--resume", "--from", "step-30", "optim.steps=40")
    assert done.code == 0, done.err
    assert text_of(gpt2, "adapter") == before


def test_where_the_weights_are_lost_the_fix_trains_the_adapter_again(base: Path, gpt2: Call) -> None:
    run = tuned(gpt2, "pretrain", "adapter", **LORA)
    go_on(gpt2, 40)
    shutil.rmtree(base / "checkpoints/step-000020")
    refused = gpt2("generate", "abc", "--model", "adapter")
    assert refused.code == 3 and "has changed" in refused.err
    (fix,) = re.findall(r"gpt2 (pretrain .*)", refused.err.replace("\n     ", ""))
    done = gpt2(*shlex.split(fix))
    assert done.code == 0, done.err
    assert text_of(gpt2, f"{run.name}-again")


FULL = {
    "pretrain": ("pretrain", {"train": "all"}),
    "classify, head": ("finetune-classify", {"train": "head"}),
    "classify, last block": ("finetune-classify", {"train": "last-block"}),
    "classify, all": ("finetune-classify", {"train": "all"}),
    "instruct": ("finetune-instruct", {"train": "all"}),
}


@pytest.mark.parametrize("gone", ["pruned", "deleted"])
@pytest.mark.parametrize("case", FULL)
def test_other_runs_need_their_base_only_once(case: str, gone: str, base: Path, gpt2: Call) -> None:
    command, changes = FULL[case]
    whole = tuned(gpt2, command, "whole", **changes)
    cut = rewound(whole, "cut", 3)
    if gone == "pruned":
        assert "is kept" not in go_on(gpt2, 120)
        assert 20 not in steps_of(base)
    else:
        shutil.rmtree(base)
    resumed = gpt2(command, "whole.yaml", "--resume", "--name", cut.name)
    assert resumed.code == 0, resumed.err
    assert all_events(cut) == all_events(whole)
    used = gpt2("classify", "cut", "abc") if "classify" in case else gpt2("generate", "abc", "-m", "cut")
    assert used.code == 0, used.err


def test_adapters_over_a_merged_model(base: Path, gpt2: Call) -> None:
    """The second run begins where the first one ended."""
    first = tuned(gpt2, "finetune-instruct", "first", **LORA)
    merged = gpt2("convert", "first", "--merge", "--out", "merged")
    assert merged.code == 0, merged.err
    every = {"train": "lora", "lora": {"rank": 2, "targets": "all"}}
    second = tuned(gpt2, "finetune-instruct", "second", init="merged", **every)
    (stopped,) = events(first, "Stopped")
    begun, *later = events(second, "EvalDone")
    assert begun["step"] == 0 and begun["loss"] == pytest.approx(stopped["kept"], abs=1e-5)
    assert later[-1]["loss"] != begun["loss"] and text_of(gpt2, "second")
    matrices = json.loads((second / "best/adapter_config.json").read_text())["target_modules"]
    assert matrices == ["c_attn", "c_proj", "c_fc"]
