"""The best checkpoint of a run: which one it is, what is said of it, and that nothing takes it away."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_base import save_base
from tiny_run import PRETRAIN, Call, all_events, events, random_text, rewound, train
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

# A rate that grows until each step makes these models worse than they were.
WILD: dict[str, Any] = {
    "optim": {"steps": 4, "lr": 2.0, "warmup_steps": 4},
    "checkpoint": {"keep": 1},
    "run": PRETRAIN["run"],
}
RECIPES: dict[str, dict[str, Any]] = {
    "pretrain": {
        "data": {"source": "own.txt", "validation": 0.2},
        "model": {"context": 8},
        "eval": {"every": 2, "tokens": "all", "sample_tokens": 0},
    },
    "finetune-classify": {
        "data": {"source": "texts.csv", "validation": 0.3},
        "train": "all",
        "eval": {"every": 2},
    },
    "finetune-instruct": {
        "data": {"source": "records.json", "validation": 0.2},
        "template": "chat",
        "eval": {"every": 2, "max_new_tokens": 1},
    },
}


def wild(command: str) -> dict[str, Any]:
    return {"task": command, "seed": 7, "init": "base", **WILD, **RECIPES[command]}


@pytest.fixture
def base(gpt2: Call) -> Path:
    """A model to begin with, and data for each command."""
    Path("own.txt").write_text(random_text(260, seed=11), encoding="utf-8")
    rows = [f"{random_text(6 + i % 5, i, ('abcdefg', 'fghijklm')[i % 2])},{'ab'[i % 2]}" for i in range(40)]
    Path("texts.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    records = [{"instruction": f"Say {i}", "output": random_text(5, seed=i)} for i in range(24)]
    Path("records.json").write_text(json.dumps(records), encoding="utf-8")
    return save_base(gpt2, Path("base"))


def measured(run: Path, name: str = "loss") -> dict[int, float]:
    """{step: what the evaluation after it found}."""
    return {
        one["step"]: one[name] if name in one else one["metrics"][name] for one in events(run, "EvalDone")
    }


def best_of(found: dict[int, float], *, highest: bool = False) -> int:
    """The first step with the best value, of those that are saved: step 0 is not."""
    later = {step: -value if highest else value for step, value in found.items() if step > 0}
    return min(later, key=lambda step: later[step])


def pointed(run: Path) -> int:
    return int((run / "best").resolve().name.removeprefix("step-"))


@pytest.mark.parametrize("command", RECIPES)
def test_where_the_base_was_best_the_best_saved_step_is_kept_and_named(
    command: str, base: Path, gpt2: Call
) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(wild(command)), encoding="utf-8")
    done = gpt2(command, "run.yaml")
    assert done.code == 0, done.err
    run = Path("runs/run")
    losses = measured(run)
    best = best_of(losses)
    assert min(losses, key=lambda step: losses[step]) == 0 and best < 4, "the case needs both"
    assert pointed(run) == best
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == [f"step-{best:06d}", "step-000004"]
    said = re.sub(r"\s+", " ", done.err)
    facts = f"best saved: step {best}, validation loss {losses[best]:.3f};"
    assert f"{facts} the base at step 0 had {losses[0]:.3f}" in said
    worse = f"validation loss {losses[0]:.3f} before, {losses[best]:.3f} at the best saved step"
    assert f"training made it worse: {worse}" in said
    kind = AutoModelForSequenceClassification if command == "finetune-classify" else AutoModelForCausalLM
    kind.from_pretrained(run / "best")


def test_weights_that_stay_as_they_are_are_no_worse(base: Path, gpt2: Call) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(wild("pretrain")), encoding="utf-8")
    done = gpt2("pretrain", "run.yaml", "optim.lr=1e-30", "optim.warmup_steps=0")
    assert done.code == 0 and "did not make it better" in done.err and "worse" not in done.err
    assert pointed(Path("runs/run")) == 2


@pytest.mark.parametrize("command", RECIPES)
def test_what_is_best_outlives_a_kill_and_an_extension(command: str, base: Path, gpt2: Call) -> None:
    recipe = {**wild(command), "checkpoint": {"every": 1, "keep": 99}}
    recipe["optim"] = {"steps": 6, "lr": 1.0, "schedule": "constant"}
    whole = train(gpt2, recipe, "whole", command=command)
    for step in (1, 4, 5):
        cut = rewound(whole, f"cut-{step}", step)
        train(gpt2, recipe, cut.name, "--resume", command=command)
        assert all_events(cut) == all_events(whole) and pointed(cut) == pointed(whole)
    short = train(gpt2, recipe, "short", "optim.steps=4", "checkpoint.keep=1", command=command)
    assert pointed(short) == best_of(measured(short))
    train(gpt2, recipe, "short", "--resume", "optim.steps=6", "checkpoint.keep=1", command=command)
    assert measured(short) == measured(whole) and pointed(short) == pointed(whole)


def test_a_run_of_an_older_version_without_best_gets_it(base: Path, gpt2: Call) -> None:
    """Such a version left the link out where step 0 was the best, and knew nothing of what was kept."""
    run = train(gpt2, {**wild("pretrain"), "checkpoint": {"keep": 9}}, "run")
    best = pointed(run)
    (run / "best").unlink()
    for path in (run / "checkpoints").glob("*/train_state.json"):
        state, manifest = (json.loads(file.read_text()) for file in (path, path.with_name("manifest.json")))
        for name in ("value", "best_by", "best_value", "kept_step", "kept_value"):
            del state["progress"][name]
        path.write_text(json.dumps(state))
        manifest["files"][path.name]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name("manifest.json").write_text(json.dumps(manifest))
    assert "nothing to do" in gpt2("pretrain", "run.yaml", "--resume").err
    assert pointed(run) == best
    train(gpt2, wild("pretrain"), "run", "--resume", "optim.steps=8")
    assert pointed(run) == best_of(measured(run))


def classifier(**evaluation: Any) -> dict[str, Any]:
    """Steps small enough that accuracy and loss part ways."""
    optim = {"steps": 12, "lr": 0.02, "schedule": "constant"}
    return {**wild("finetune-classify"), "optim": optim, "eval": {"every": 1, **evaluation}}


@pytest.mark.parametrize("measure", ["accuracy", "macro_f1"])
def test_the_best_by_a_measure_of_classification(measure: str, base: Path, gpt2: Call) -> None:
    run = train(gpt2, classifier(best=measure), "by", command="finetune-classify")
    best = best_of(measured(run, measure), highest=True)
    assert pointed(run) == best != best_of(measured(run)), "the case needs two different steps"
    resumed = gpt2("finetune-classify", "by.yaml", "--resume", "eval.best=loss", "optim.steps=13")
    assert resumed.code == 0, resumed.err
    kept = {int(path.name[5:]) for path in (run / "checkpoints").iterdir()} | {best, 12}
    assert pointed(run) == best_of({step: loss for step, loss in measured(run).items() if step in kept})


def test_patience_counts_by_the_same_measure(base: Path, gpt2: Call) -> None:
    run = train(gpt2, classifier(best="accuracy", patience=3), "by", command="finetune-classify")
    (stopped,) = events(run, "Stopped")
    found, best, without = measured(run, "accuracy"), -1.0, 0
    for value in found.values():
        best, without = (value, 0) if value > best else (best, without + 1)
    assert (stopped["reason"], without) == ("patience", 3) and stopped["best"] == best
    losses = list(measured(run).values())
    assert min(losses[-3:]) < min(losses[:-3]), "by the loss it would have gone on"


@pytest.mark.parametrize("command", ["pretrain", "finetune-instruct"])
def test_measures_of_classes_are_refused_elsewhere(command: str, base: Path, gpt2: Call) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(wild(command)), encoding="utf-8")
    refused = gpt2(command, "run.yaml", "eval.best=accuracy")
    assert refused.code == 2 and "eval.best=accuracy" in refused.err, refused
    (fix,) = re.findall(r"eval\.best=loss", refused.err)
    assert gpt2(command, "run.yaml", fix).code == 0
