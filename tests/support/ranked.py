"""Training runs of several processes over gloo, with one thread each, and what the system knows of them."""

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from lessons import messages
from runs import command
from safetensors.torch import load_file
from teaching import save_base, write_teaching

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
    try:
        _, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == code, err
    return err


@contextlib.contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`gpt2 ...` during the block; killed at its end, if it has not ended."""
    process = command(*arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=240)


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


def until_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if steps_done(run) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} has not come to step {step}")


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("StepDone") if path.exists() else 0


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def environment_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended stays until its parent has looked."""
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def are_gone(pids: list[int], seconds: float = 15) -> bool:
    """Whether all of them end in this time."""
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(is_alive, pids))
