"""Ten steps of `gpt2 pretrain` against the same training written by hand."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from plain_loop import find, load, steps, windows_of
from tiny_run import FROZEN, PRETRAIN, Call, column, random_text, read_tokens, train, write_tokens

CONTEXT, ROWS, N = 8, 6, 10
OPTIM = {
    **{"steps": N, "lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 3},
    # An eps well above rounding: AdamW would blow the noise in a gradient of nothing up to a whole step.
    **{"weight_decay": 0.3, "beta1": 0.8, "beta2": 0.97, "eps": 1e-5, "clip": 0.8},
}
# By hand: a third, two thirds, all; then 0.001 + 0.009 times half of 1 + cos(0, 30, 60, ... 180 degrees).
RATES = [
    *(0.01 / 3, 0.02 / 3, 0.01),
    *(0.01, 0.009397114317, 0.00775, 0.0055, 0.00325, 0.001602885683, 0.001),
]


@pytest.fixture
def order(gpt2: Call) -> list[int]:
    """Where in the training text the sixty windows of ten steps begin, in their order.

    Found with weights that stay as they are: each window shows itself by its loss and its gradient.
    """
    write_tokens(gpt2, random_text(260, seed=1))
    alone = ("batch.micro_batch=1", "batch.accumulation=1", f"optim.steps={N * ROWS}")
    run = train(gpt2, PRETRAIN, "frozen", *FROZEN, *alone)
    tokens = read_tokens("train")
    candidates = [[row] for row in windows_of(tokens, range(len(tokens) - CONTEXT), CONTEXT)]
    return find(load(run / "last"), candidates, column(run, "loss"), column(run, "grad_norm"))


def test_ten_steps_equal_a_loop_by_hand(gpt2: Call, order: list[int]) -> None:
    run = train(gpt2, {**PRETRAIN, "optim": OPTIM}, "ten")
    model = load(Path("runs/frozen/last"))  # the weights before the first step
    rows = windows_of(read_tokens("train"), order, CONTEXT)
    by_hand = list(
        steps(
            model,
            [rows[i : i + ROWS] for i in range(0, N * ROWS, ROWS)],
            RATES,
            betas=(0.8, 0.97),
            eps=1e-5,
            weight_decay=0.3,
            clip=0.8,
        )
    )
    norms = [step.grad_norm for step in by_hand]
    assert min(norms) < 0.8 < max(norms), "some steps are clipped, some are not"
    for key in ("loss", "lr", "grad_norm"):
        assert column(run, key) == pytest.approx([asdict(step)[key] for step in by_hand], abs=5e-5, rel=5e-5)
    found, wanted = load(run / "last").state_dict(), model.state_dict()
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)


def test_each_window_comes_once_an_epoch(order: list[int]) -> None:
    """209 tokens: 208 targets, 26 windows, of which an epoch gives one up to begin anywhere."""
    n = len(read_tokens("train"))
    assert n == 209
    epochs = [order[:25], order[25:50], order[50:]]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch), "no window twice"
        assert len({start % CONTEXT for start in epoch}) == 1, "windows lie side by side"
    assert max(epochs[0]) - min(epochs[0]) == 24 * CONTEXT, "no window is left out"
    assert epochs[0] != sorted(epochs[0]) and epochs[0] != epochs[1]


def test_a_model_of_a_round_continues_it(gpt2: Call) -> None:
    """Learned from shifted targets; from its own inputs it would learn to repeat a letter."""
    write_tokens(gpt2, "abcdefgh" * 40)
    run = train(gpt2, PRETRAIN, "round", "optim.steps=60", "optim.lr=2e-2")
    assert column(run, "loss")[-1] < 0.05
    asked = ("abc", "--model", str(run), "--temperature", "0", "--max-new-tokens", "8", "--json")
    outcome = gpt2("generate", *asked)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["text"] == "defghabc"
