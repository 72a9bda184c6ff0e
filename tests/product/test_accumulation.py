"""However many sequences go through the model at once: a step of six is a step of six."""

from itertools import pairwise

import pytest
from tiny_run import PRETRAIN, Call, column, random_text, train, write_tokens

WAYS = [(6, 1), (3, 2), (1, 6)]


def test_a_step_is_the_same_in_one_two_or_six_micro_batches(gpt2: Call) -> None:
    write_tokens(gpt2, random_text(260, seed=2))
    found = []
    for micro, accumulation in WAYS:
        batch = {"micro_batch": micro, "accumulation": accumulation}
        run = train(gpt2, {**PRETRAIN, "batch": batch}, f"by-{micro}")
        assert column(run, "n_tokens") == [6 * 8] * 10
        found.append(column(run, "loss") + column(run, "grad_norm"))
    for one, other in pairwise(found):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-5)
