"""A run small enough to train in a second, in this process or in one of its own."""

import hashlib
import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from gpt2cli.data.manifest import PrepareSettings
from gpt2cli.data.prepare import prepare
from gpt2cli.data.token_dataset import TokenDataset, open_dataset
from gpt2cli.recipe.loader import load_recipe
from gpt2cli.recipe.schema import PretrainRecipe
from gpt2cli.training.base_model import random_weights
from gpt2cli.training.pretrain_task import PretrainTask

RECIPE = """\
task: pretrain
seed: 7
data: {{source: {source}, tokenizer: chars, validation: 0.1}}
model: {{n_layer: 2, n_head: 2, n_embd: 16, context: 24, dropout: 0.1}}
batch: {{micro_batch: 3, accumulation: 2}}
optim: {{steps: 40, lr: 3e-3, warmup_steps: 2}}
eval: {{every: 10, tokens: 144, sample_tokens: 0}}
log: {{every: 5}}
checkpoint: {{every: 3, keep: 2}}
run: {{threads: 2, device: cpu}}
"""


def story(folder: Path) -> Path:
    """The bundled story as a file."""
    path = folder / "story.txt"
    path.write_text(
        files("gpt2cli.bundled").joinpath("story.txt").read_text(encoding="utf-8"), encoding="utf-8"
    )
    return path


def write_recipe(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(source=story(folder)), encoding="utf-8")
    return path


def tiny(folder: Path, *overrides: str) -> tuple[PretrainRecipe, TokenDataset]:
    """The recipe, and its text prepared and opened."""
    recipe = load_recipe(str(write_recipe(folder)), overrides).recipe
    out = folder / "tokens"
    for _ in prepare([recipe.data.source], out, PrepareSettings("chars", ("text",), recipe.data.validation)):
        pass
    return recipe, open_dataset(out)


def scratch_task(recipe: PretrainRecipe, data: TokenDataset) -> PretrainTask:
    """Pretraining from random weights."""
    return PretrainTask(recipe, data, random_weights(recipe, data.tokenizer))


def command(
    *arguments: str | Path, env: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """`gpt2 ...` in a process of its own, in the present folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", *map(str, arguments)],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def losses(run: Path) -> dict[int, float]:
    """{step: training loss} of metrics.jsonl; a step must be there once."""
    found: dict[int, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["event"] == "StepDone":
            assert record["step"] not in found, "a step stands twice"
            found[record["step"]] = record["loss"]
    return found


def weights_of(run: Path) -> str:
    """SHA-256 of the newest weights."""
    return hashlib.sha256((run / "last" / "model.safetensors").read_bytes()).hexdigest()
