"""Records and a recipe small enough to learn in a second, from random weights or a saved model."""

import json
from pathlib import Path
from typing import Any

from words import WORDS

from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.data.instructions import read_instructions
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.recipe.loader import load_recipe
from gpt2cli.recipe.schema import InstructRecipe
from gpt2cli.training.base_model import find_base
from gpt2cli.training.sft_task import SftTask, split_records

RECIPE = """\
task: finetune-instruct
seed: 7
init: {init}
template: chat
data: {{source: {source}, validation: 0.2, test: 0.2}}
model: {{n_layer: 1, n_head: 2, n_embd: 8, context: 64, dropout: 0.1}}
batch: {{micro_batch: 3, accumulation: 2}}
optim: {{steps: 12, lr: 3e-3, warmup_steps: 2}}
eval: {{every: 4, max_new_tokens: 6}}
log: {{every: 5}}
checkpoint: {{every: 3, keep: 2}}
run: {{threads: 2, device: cpu, precision: fp32}}
"""


def some_records(n: int = 20) -> list[dict[str, Any]]:
    """Records of many lengths; every third has an input."""
    return [
        {
            "instruction": f"Say it {i} times.",
            "input": "word " * (i % 5 + 1) if i % 3 == 0 else "",
            "output": "word " * (i % 7) + f"and {i}",
        }
        for i in range(n)
    ]


def save_base(folder: Path) -> Path:
    """A tiny model to begin with."""
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=64, vocab_size=WORDS.n_vocab)
    folder.mkdir(parents=True)
    write_manifest(folder, write_model(folder, new_model(config, 3), WORDS, "task: pretrain\n"))
    return folder


def write_teaching(folder: Path, records: Any = None, init: str | None = None) -> Path:
    """The recipe beside its records and the model it starts from; returns the recipe's path."""
    source, base = folder / "records.json", folder / "base"
    source.write_text(json.dumps(some_records() if records is None else records), encoding="utf-8")
    if init is None:
        init = str(base if base.exists() else save_base(base))
    path = folder / "teach.yaml"
    path.write_text(RECIPE.format(source=source, init=init), encoding="utf-8")
    return path


def teaching(folder: Path, *overrides: str, records: Any = None) -> tuple[InstructRecipe, SftTask]:
    recipe = load_recipe(str(write_teaching(folder, records)), overrides).recipe
    assert isinstance(recipe, InstructRecipe)
    data, start = recipe.data, find_base(recipe)
    found = read_instructions(Path(data.source), data)
    return recipe, SftTask(recipe, start, split_records(recipe, found, start))
