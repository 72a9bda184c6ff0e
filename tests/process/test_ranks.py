"""Several processes train as one: the same bits, the same promises. Over gloo, with one thread each."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lessons import messages
from runs import command, losses
from safetensors.torch import load_file
from teaching import save_base, write_teaching

from gpt2cli.cli.launcher import split_micro_batches
from gpt2cli.errors import UsageError
from gpt2cli.recipe.loader import load_recipe
from gpt2cli.training.ranks import ALONE, Ranks

Run = Callable[..., Any]
COMMON = {
    "batch": {"micro_batch": 2, "accumulation": 2},
    "optim": {"steps": 4, "lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 1},
    "run": {"device": "cpu", "precision": "fp32", "compile": "off", "threads": 1},
}
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context": 16, "dropout": 0.1}


def recipe_of(kind: str, folder: Path) -> tuple[str, Path]:
    """A command and a recipe of a few steps with dropout."""
    evaluations = {"every": 2}
    if kind.startswith("pretrain"):
        (folder / "text.txt").write_text("every effort moves you on and on\n" * 60)
        data = {"source": str(folder / "text.txt"), "tokenizer": "chars"}
        wanted = {
            "task": "pretrain",
            "data": data,
            "model": SHAPE,
            "eval": evaluations | {"sample_tokens": 4},
        }
    elif kind.startswith("classify"):
        data = {"source": str(messages(folder)), "max_tokens": 32}
        wanted = {"task": "finetune-classify", "data": data, "eval": evaluations}
    else:
        write_teaching(folder)
        data = {"source": str(folder / "records.json"), "max_tokens": 60}
        wanted = {"task": "finetune-instruct", "data": data, "eval": evaluations | {"max_new_tokens": 2}}
        wanted |= {"packing": kind == "instruct packed", "template": "chat"}
    if not kind.startswith("pretrain"):
        base = folder / "base"
        wanted |= {"init": str(base if base.exists() else save_base(base)), "model": {"dropout": 0.1}}
        wanted["train"] = "lora" if kind.endswith("lora") else "all"
    recipe = COMMON | wanted
    if kind.endswith("bf16"):
        recipe = recipe | {"run": COMMON["run"] | {"precision": "bf16"}}
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(wanted["task"]), path


def finished(*arguments: str | Path, code: int = 0, **options: Any) -> str:
    """Run to the end; stderr."""
    process = command(*arguments, **options)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return err


def of_run(name: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """All tensors of a run's last checkpoint, and its events without what time makes of them."""
    tensors = {}
    for path in Path(f"runs/{name}/last/").glob("*.safetensors"):
        tensors |= {f"{path.name}: {key}": tensor for key, tensor in load_file(path).items()}
    text = Path(f"runs/{name}/metrics.jsonl").read_text()
    return tensors, re.sub(r'"(seconds|mfu|path)": [^,}]*', "", text).splitlines()


def assert_same_bits(one: str, other: str) -> None:
    (first, events), (second, other_events) = of_run(one), of_run(other)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert events == other_events


KINDS = [
    "pretrain",
    "pretrain bf16",
    "classify",
    "classify lora",
    "instruct",
    "instruct packed",
    "instruct lora",
]


@pytest.mark.parametrize(
    "kind", ["pretrain", *(pytest.param(kind, marks=pytest.mark.peers) for kind in KINDS[1:])]
)
def test_two_processes_are_two_micro_batches_bit_for_bit(kind: str, tmp_path: Path) -> None:
    task, recipe = recipe_of(kind, tmp_path)
    finished(task, recipe, "--name", "alone")
    finished(task, recipe, "--name", "two", "--processes", "2")
    assert_same_bits("alone", "two")
    # Nothing but what a single process writes, and the log of the second.
    names = [{path.name for path in Path(f"runs/{name}").iterdir()} for name in ("two", "alone")]
    assert names[0] - names[1] == {"ranks"} and [path.name for path in Path("runs/two/ranks").iterdir()] == [
        "rank-1.log"
    ]


@pytest.mark.peers
@pytest.mark.parametrize("worlds", [(2, 1), (1, 2), (2, 4, 1)])
def test_a_run_goes_on_with_another_number_of_processes(worlds: tuple[int, ...], tmp_path: Path) -> None:
    """With four, micro-batches are split, and the sums differ in their last bits."""
    task, recipe = recipe_of("pretrain", tmp_path)
    finished(task, recipe, "--name", "whole", "model.dropout=0", "optim.steps=6", "optim.schedule=constant")
    for number, world in enumerate(worlds, 1):
        steps = f"optim.steps={6 * number // len(worlds)}"
        more = ["--resume"] if number > 1 else []
        constant = ("model.dropout=0", "optim.schedule=constant", steps)
        finished(task, recipe, "--name", "parts", "--processes", str(world), *more, *constant)
    found, whole = losses(Path("runs/parts")), losses(Path("runs/whole"))
    assert found.keys() == whole.keys() and found == pytest.approx(whole, abs=1e-4)
    (first, _), (second, _) = of_run("parts"), of_run("whole")
    if 4 not in worlds:
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.peers
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_once_and_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    long = ("optim.steps=2000", "eval.every=5000", "eval.sample_tokens=0")
    process = command(task, recipe, "--name", "cut", "--processes", "2", *long)
    _until_step(Path("runs/cut"), 5)
    children = _children(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "--resume --processes 2" in err
    assert len(children) == 2 and not any(map(_is_alive, children))
    (checkpoint,) = Path("runs/cut/checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    finished(task, recipe, "--name", "cut", "--processes", "2", "--resume", *long, f"optim.steps={step + 3}")
    finished(task, recipe, "--name", "whole", *long, f"optim.steps={step + 3}")
    assert losses(Path("runs/cut")).keys() == losses(Path("runs/whole")).keys()


@pytest.mark.peers
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_is_named(rank: int, tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    process = command(
        task, recipe, "--name", "cut", "--processes", "2", "optim.steps=2000", "eval.every=5000"
    )
    _until_step(Path("runs/cut"), 3)
    children = _children(process.pid)
    (victim,) = [pid for pid in children if f"RANK={rank}" in _environment(pid)]
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL and f"rank {rank}" in err
    assert "Traceback" not in err and not any(map(_is_alive, children))


@pytest.mark.parametrize(
    "n_kills", [pytest.param(3, marks=pytest.mark.peers), pytest.param(30, marks=pytest.mark.proofs)]
)
def test_random_kills_of_random_ranks_change_nothing(n_kills: int, tmp_path: Path) -> None:
    """After each kill the run is resumed; in the end it is the run that nothing disturbed."""
    task, recipe = recipe_of("pretrain", tmp_path)
    n_steps, draw = 60 * n_kills, random.Random(7)
    long = (f"optim.steps={n_steps}", "checkpoint.every=10", "eval.every=1000", "eval.sample_tokens=0")
    finished(task, recipe, "--name", "whole", *long)
    for number in range(n_kills):
        more = ["--resume"] if (Path("runs/cut") / "run.json").exists() else []
        process = command(task, recipe, "--name", "cut", "--processes", "2", *more, *long)
        children = []
        while process.poll() is None and len(children) < 2:
            children = _children(process.pid)
            time.sleep(0.02)
        if number % 3:  # else while it starts
            with contextlib.suppress(AssertionError):
                _until_step(Path("runs/cut"), _n_steps(Path("runs/cut")) + draw.randrange(20))
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(children), signal.SIGKILL)
        process.communicate(timeout=60)
        assert not any(map(_is_alive, children))
    more = ["--resume"] if (Path("runs/cut") / "run.json").exists() else []
    finished(task, recipe, "--name", "cut", "--processes", "2", *more, *long)
    (first, _), (second, _) = of_run("cut"), of_run("whole")
    assert losses(Path("runs/cut")) == losses(Path("runs/whole"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.peers
def test_one_error_with_its_exit_code(tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    err = finished(task, recipe, "data.source=/nowhere.txt", "--processes", "2", code=3)
    assert err.count("error:") == 1 and "/nowhere.txt" in err
    err = finished(task, recipe, "optim.lr=1e30", "optim.min_lr=1e29", "--processes", "2", code=6)
    assert err.count("error:") == 1 and "diverged" in err and not Path("runs/r/last").exists()


@pytest.mark.peers
def test_torchrun_starts_the_same(tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    finished(task, recipe, "--name", "alone")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "gpt2cli", task, recipe, "--name", "two"], capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    assert_same_bits("alone", "two")


def test_micro_batches_are_split_to_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, path = recipe_of("pretrain", tmp_path)
    recipe = load_recipe(str(path), ["batch.micro_batch=4", "batch.accumulation=3"]).recipe
    assert split_micro_batches(recipe, 3) == []
    assert split_micro_batches(recipe, 4) == ["batch.micro_batch=1", "batch.accumulation=12"]
    said = capfd.readouterr().err
    assert "split into 4" in said and "dropout" in said
    with pytest.raises(UsageError, match="--processes 5 does not fit") as caught:
        split_micro_batches(recipe, 5)
    assert "1, 2, 3, 4, 6, 12 would fit" in caught.value.why
    load_recipe(str(path), [caught.value.fix])


def test_a_resumed_instruction_run_keeps_its_batches(tmp_path: Path) -> None:
    _, path = recipe_of("instruct", tmp_path)
    recipe = load_recipe(str(path), ["batch.micro_batch=4", "batch.accumulation=1"]).recipe
    assert split_micro_batches(recipe, 2) == ["batch.micro_batch=2", "batch.accumulation=2"]
    with pytest.raises(UsageError, match="--processes 2 does not fit"):
        split_micro_batches(recipe, 2, resume=True)


def test_alone_everything_is_as_it_is() -> None:
    assert list(ALONE.share(3)) == [0, 1, 2] and list(Ranks(1, 2).share(5)) == [1, 3]
    assert ALONE.add(1.5, 2) == (1.5, 2) and ALONE.most(0, 1) == (0, 1)
    assert ALONE.collect([1]) == [1] and ALONE.tell("x") == "x"


def _until_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if _n_steps(run) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} has not come to step {step}")


def _n_steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("StepDone") if path.exists() else 0


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _environment(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
