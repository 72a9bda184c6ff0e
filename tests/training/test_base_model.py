"""What a finetune begins with: by name, the newest that can be begun with, random weights, or a way on."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from teaching import save_base, write_teaching

from gpt2cli import paths
from gpt2cli.errors import InputError
from gpt2cli.recipe.loader import load_recipe
from gpt2cli.recipe.schema import InstructRecipe
from gpt2cli.training.base_model import find_base, newest_base

Gpt2 = Callable[..., object]


def recipe_of(folder: Path, *overrides: str) -> InstructRecipe:
    recipe = load_recipe(str(write_teaching(folder)), overrides).recipe
    assert isinstance(recipe, InstructRecipe)
    return recipe


def test_random_weights_are_a_function_of_the_seed(tmp_path: Path) -> None:
    first, same, other = (find_base(recipe_of(tmp_path, "init=scratch", f"seed={s}")) for s in (1, 1, 2))
    assert first.folder is None and first.name == "scratch"
    assert first.sha256 == same.sha256 != other.sha256
    a, b = first.model("sdpa"), same.model("sdpa")
    assert all(x.equal(y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_what_is_not_here_offers_three_ways(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="init: 124M: this model is not here yet") as caught:
        find_base(recipe_of(tmp_path, "init=124M"))
    for way in ("gpt2 download 124M", "init=newest", "init=runs/NAME", "init=scratch"):
        assert way in caught.value.why + caught.value.fix


def test_the_newest_is_one_that_can_be_begun_with(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no language model here yet"):
        newest_base()
    base = save_base(paths.models() / "base")
    classifier, adapter = paths.models() / "classifier", paths.models() / "adapter"
    for n, (folder, name, content) in enumerate(
        [
            (classifier, "config.json", {"architectures": ["GPT2ForSequenceClassification"]}),
            (adapter, "adapter_config.json", {"peft_type": "LORA"}),
        ],
        1,
    ):
        folder.mkdir()
        (folder / name).write_text(json.dumps(content))
        os.utime(folder, (2e9 + n, 2e9 + n))
    assert paths.find_model(None) == adapter
    assert newest_base() == base
    for folder in (classifier, adapter):
        with pytest.raises(InputError, match=r"^init: ") as caught:
            find_base(recipe_of(tmp_path, f"init={folder}"))
        assert "init=scratch" in caught.value.why


def test_a_resume_keeps_to_what_was_the_newest(gpt2: Gpt2, tmp_path: Path) -> None:
    save_base(paths.models() / "base")
    recipe = write_teaching(tmp_path, init="newest")
    first = gpt2("finetune-instruct", recipe, "optim.steps=4", "--name", "taught")
    assert first.code == 0 and "init: the newest model is" in first.err, first.err
    again = gpt2("finetune-instruct", recipe, "init=newest", "optim.steps=8", "--name", "taught", "--resume")
    assert again.code == 0 and "resuming after step 4" in again.err, again.err


def test_a_start_that_was_the_best_is_said(gpt2: Gpt2, tmp_path: Path) -> None:
    done = gpt2(
        "finetune-instruct", write_teaching(tmp_path), "optim.lr=30", "optim.clip=0", "--name", "wild"
    )
    assert done.code == 0, done.err
    assert "best saved: step " in done.err and "training made it worse: validation loss " in done.err
