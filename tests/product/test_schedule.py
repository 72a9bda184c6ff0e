"""The learning rate of every step, at the edges of its schedule, as a run records it."""

import pytest
from tiny_run import PRETRAIN, Call, column, random_text, train, write_tokens

# (steps, warmup, lowest rate; the highest is 0.01) and the rates, by hand.
EDGES = {
    "no warmup": ((5, 0, 0.001), [0.01, 0.0086819805, 0.0055, 0.0023180195, 0.001]),
    "warmup to the end": ((4, 4, 0.001), [0.0025, 0.005, 0.0075, 0.01]),
    "one step": ((1, 0, 0.001), [0.01]),
    "one step of warmup": ((1, 1, 0.001), [0.01]),
    "two steps": ((2, 0, 0.001), [0.01, 0.001]),
    "never falling": ((4, 1, 0.01), [0.01, 0.01, 0.01, 0.01]),
    "down to nothing": ((3, 0, 0.0), [0.01, 0.005, 0.0]),
}


@pytest.mark.parametrize("edge", EDGES)
def test_the_rate_of_every_step(edge: str, gpt2: Call) -> None:
    (steps, warmup, lowest), rates = EDGES[edge]
    write_tokens(gpt2, random_text(260, seed=5))
    optim = {"steps": steps, "warmup_steps": warmup, "lr": 0.01, "min_lr": lowest}
    run = train(gpt2, {**PRETRAIN, "optim": optim}, "run")
    assert column(run, "lr") == pytest.approx(rates, rel=1e-7, abs=1e-12)
