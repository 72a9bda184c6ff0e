"""Dropout is a function of the seed, the step and the micro batch, and of nothing else.

The text has one window and the weights stay as they are, so that losses differ by dropout alone.
"""

import json
from pathlib import Path

import pytest
from tiny_run import FROZEN, PRETRAIN, Call, column, train

RECIPE = {
    **PRETRAIN,
    "model": {**PRETRAIN["model"], "dropout": 0.5},
    "batch": {"micro_batch": 1, "accumulation": 1},
}


@pytest.fixture(autouse=True)
def one_window(gpt2: Call) -> None:
    """Two documents: eight letters and their end to learn from, others to evaluate on."""
    texts = ["".join(json.dumps({"text": text}) + "\n") for text in ("abcdefgh", "hgfedcba")]
    Path("texts.jsonl").write_text("".join(texts), encoding="utf-8")
    outcome = gpt2(
        "prepare",
        "texts.jsonl",
        "--out",
        "tokens",
        "--tokenizer",
        "chars",
        "--block",
        "8",
        "--validation",
        "0.5",
    )
    assert outcome.code == 0, outcome.err


def losses(gpt2: Call, name: str, *more: str) -> list[float]:
    return column(train(gpt2, RECIPE, name, *FROZEN, *more), "loss")


def test_every_step_drops_other_units_and_a_seed_fixes_which(gpt2: Call) -> None:
    once = losses(gpt2, "once")
    assert len(set(once)) == len(once) == 10
    assert losses(gpt2, "evaluated", "eval.every=4") == once
    assert not set(losses(gpt2, "other", "seed=8")) & set(once)


def test_every_micro_batch_of_a_step_drops_other_units(gpt2: Call) -> None:
    """Two micro batches of one step: the first as in a step of one, the mean with the second another."""
    one, two = losses(gpt2, "one"), losses(gpt2, "two", "batch.accumulation=2")
    seconds = [2 * both - first for both, first in zip(two, one, strict=True)]
    assert all(abs(second - first) > 5e-6 for second, first in zip(seconds, one, strict=True))
    assert all(abs(second - later) > 5e-6 for second, later in zip(seconds, one[1:], strict=False))


def test_without_dropout_nothing_differs(gpt2: Call) -> None:
    assert len(set(losses(gpt2, "none", "model.dropout=0.0"))) == 1
