"""A run small enough for a test, seen from outside: texts, recipes, and what a run leaves on the disk.

Nothing of gpt2cli is imported here: what these tests know of a run is its files.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Call = Callable[..., Any]  # the fixture `gpt2`: a command line in this process

PRETRAIN = {
    "task": "pretrain",
    "seed": 7,
    "data": {"source": "tokens", "tokenizer": "chars"},
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "context": 8},
    "batch": {"micro_batch": 3, "accumulation": 2},
    "optim": {"steps": 10, "lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 3},
    "eval": {"every": 100, "tokens": "all", "sample_tokens": 0},
    "run": {"device": "cpu", "precision": "fp32", "compile": "off", "threads": 1},
}
# So small that adding an update changes no weight: each step's loss is one of the first weights.
FROZEN = ("optim.lr=1e-30", "optim.min_lr=0.0", "optim.warmup_steps=0")


def random_text(n: int, seed: int, letters: str = "abcdefghij klmnop") -> str:
    """`n` letters, so that no two windows of a text look alike."""
    draw = random.Random(seed)
    return "".join(draw.choice(letters) for _ in range(n))


def write_tokens(gpt2: Call, text: str, *, validation: float = 0.2, context: int = 8) -> None:
    """Prepare `text` into the folder tokens, in files of 50 tokens: most windows lie in two."""
    Path("text.txt").write_text(text, encoding="utf-8")
    out = ("--out", "tokens", "--tokenizer", "chars", "--shard-tokens", "50", "--force")
    outcome = gpt2("prepare", "text.txt", *out, "--validation", str(validation), "--block", str(context))
    assert outcome.code == 0, outcome.err


def read_tokens(split: str) -> np.ndarray:
    """The ids of a split of the folder tokens, (N,): its files one behind the other."""
    files = sorted(Path("tokens").glob(f"{split}-*.bin"))
    return np.concatenate([np.fromfile(file, "<u2") for file in files]).astype(np.int64)


def train(gpt2: Call, recipe: dict[str, Any], name: str, *more: str, command: str = "pretrain") -> Path:
    """Run a training command over `recipe`, which must succeed; the folder of the run."""
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    outcome = gpt2(command, path, "--name", name, *more)
    assert outcome.code == 0, outcome.err
    return Path("runs") / name


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that tell of one kind of event."""
    return [event for event in all_events(run) if event["event"] == kind]


def all_events(run: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl, without what no two runs share: how long things took."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def column(run: Path, key: str) -> list[float]:
    """One number of every step."""
    return [event[key] for event in events(run, "StepDone")]


def rewound(run: Path, name: str, step: int) -> Path:
    """A copy of a run as it was on the disk when its process was killed after `step` was saved."""
    copy = run.with_name(name)
    shutil.copytree(run, copy, symlinks=True)
    for path in (copy / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    saved = [event for event in events(run, "CheckpointSaved") if event["step"] <= step]
    best = [event["path"] for event in saved if event["is_best"]]
    for pointer, target in (("last", saved[-1]["path"]), ("best", best[-1] if best else None)):
        (copy / pointer).unlink(missing_ok=True)
        if target:
            (copy / pointer).symlink_to(Path("checkpoints") / target)
    return copy
