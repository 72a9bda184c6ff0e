"""The plan in a terminal: one screen, the real base, an origin in a word."""

from pathlib import Path

import pytest
import yaml
from terminal import Terminal
from tiny_base import save_base
from tiny_run import PRETRAIN, Call


@pytest.mark.parametrize("columns", [80, 120])
def test_a_plan_fits_the_screen_and_says_what_the_base_is(
    gpt2: Call, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("novel.txt").write_text("A text of some words. " * 60)
    save_base(gpt2, Path("base"))
    recipe = PRETRAIN | {"init": "base", "data": {"source": "novel.txt"}, "model": {"size": "124M"}}
    Path("my.yaml").write_text(yaml.safe_dump(recipe))
    words = ["pretrain", "my.yaml", "optim.lr=2e-2", "batch.micro_batch=8", "--dry-run"]
    with Terminal(words, columns=columns, GPT2_HOME=str(tmp_path / "home")) as terminal:
        shown = terminal.until("first batch, decoded:")
        terminal.process.wait(60)
    plan = shown[shown.index("parameters from the weights of base: 2 blocks, 2 heads, width 16") :].split(
        "\n"
    )
    assert len(plan) <= 24 - 3, "the samples have room"
    assert "124M" not in shown and max(map(len, plan)) <= columns
    said = " ".join(" ".join(plan).split())
    assert "override: batch.micro_batch=8 optim.lr=0.02 recipe: task=pretrain" in said
    assert "base: model.n_layer=2 model.n_head=2 model.n_embd=16 model.n_inner=64 model.context=96" in said
