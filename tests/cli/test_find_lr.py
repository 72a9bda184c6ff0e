"""`gpt2 pretrain RECIPE --find-lr`: a value on stdout, nothing on the disk, and the rule it follows."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from lessons import write_lesson
from runs import scratch_task, tiny
from teaching import write_teaching
from tiny_run import PRETRAIN, Call, random_text, write_tokens

from gpt2cli.errors import DivergedError
from gpt2cli.training.find_lr import HIGHEST, LOWEST, STEPS, RateTried, suggested_rate, try_rates
from gpt2cli.training.setup import set_up_training


def test_stdout_is_the_rate_and_nothing_is_saved(gpt2: Call) -> None:
    write_tokens(gpt2, random_text(260, seed=8))
    Path("tiny.yaml").write_text(yaml.safe_dump(PRETRAIN), encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in Path().iterdir()}
    found = gpt2("pretrain", "tiny.yaml", "--find-lr")
    assert found.code == 0, found.err
    rate = float(found.out)
    assert 1e-5 < rate < 0.1 and found.out.count("\n") == 1
    assert "Smith 2017" in found.err and f"optim.lr={found.out.strip()}" in found.err
    assert {path: path.stat().st_mtime_ns for path in Path().iterdir()} == before
    assert gpt2("pretrain", "tiny.yaml", "--find-lr").out == found.out, "the same recipe, the same rate"
    both = gpt2("pretrain", "tiny.yaml", "--find-lr", "--resume")
    assert both.code == 2 and "fix: gpt2 pretrain tiny.yaml --find-lr" in both.err


def test_the_command_to_try_has_what_the_rate_was_found_with_and_works(gpt2: Call) -> None:
    write_tokens(gpt2, random_text(260, seed=8))
    recipe = {**PRETRAIN, "optim": {**PRETRAIN["optim"], "lr": 0.9, "min_lr": 0.8}}
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    found = gpt2("pretrain", "tiny.yaml", "model.dropout=0.1", "optim.lr=0.95", "--find-lr")
    (line,) = (line for line in found.err.splitlines() if line.startswith("try it: "))
    words = line.removeprefix("try it: gpt2 ").split()
    assert words[:3] == ["pretrain", "tiny.yaml", "model.dropout=0.1"] and "optim.lr=0.95" not in words
    assert gpt2(*words, "--dry-run").code == 0


@pytest.mark.parametrize("task", ["finetune-classify", "finetune-instruct"])
def test_fine_tuning_has_it_too(gpt2: Call, task: str, tmp_path: Path) -> None:
    write = {"finetune-classify": write_lesson, "finetune-instruct": write_teaching}[task]
    recipe = write(tmp_path)
    found = gpt2(task, recipe, "--find-lr")
    assert found.code == 0, found.err
    assert 1e-7 < float(found.out) <= 0.1 and not list(Path("runs").glob("*/checkpoints"))


def test_the_rate_rises_exponentially_and_reaches_each_group(tmp_path: Path) -> None:
    recipe, data = tiny(tmp_path)
    setup = set_up_training(scratch_task(recipe, data), recipe, None)
    rates, mean = list[float](), 0.0
    for one in try_rates(setup):
        rates.append(one.lr)
        assert {group["lr"] for group in setup.optimizer_step.optimizer.param_groups} == {one.lr}
        mean = 0.9 * mean + 0.1 * one.loss
        assert one.smoothed == pytest.approx(mean / (1 - 0.9**one.step))
    assert rates[0] == LOWEST and len(rates) <= STEPS and rates[-1] <= HIGHEST * (1 + 1e-9)
    steps = [math.log10(b / a) for a, b in pairwise(rates)]
    assert steps == pytest.approx([6 / (STEPS - 1)] * len(steps))


def test_the_suggestion_is_a_tenth_of_the_rate_with_the_lowest_smoothed_loss() -> None:
    losses = {1e-4: 3.0, 1e-3: 2.5, 1.26e-2: 2.0, 1e-1: 2.4}
    tried = [RateTried(n, lr, loss + 1, loss) for n, (lr, loss) in enumerate(losses.items(), 1)]
    assert suggested_rate(tried) == 1.3e-3
    with pytest.raises(DivergedError):
        suggested_rate([])


def test_it_ends_where_the_loss_explodes(tmp_path: Path) -> None:
    recipe, data = tiny(tmp_path)
    setup = set_up_training(scratch_task(recipe, data), recipe, None)
    rates = try_rates(setup)
    for _ in range(5):
        next(rates)
    with torch.no_grad():
        for parameter in setup.model.parameters():
            parameter.mul_(50)
    assert len(list(rates)) < 20
