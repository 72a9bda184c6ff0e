"""The validation loss of a training against a plain loop over the held-out text or records."""

from pathlib import Path

import pytest
import torch
from plain_loop import load, mean_loss, n_targets, windows_of
from tiny_run import FROZEN, PRETRAIN, Call, events, random_text, read_tokens, train, write_tokens

CONTEXT = 8


@pytest.mark.parametrize(
    ("wanted", "starts"), [("all", range(0, 52, 8)), (24, (0, 16, 32))], ids=["all", "three of seven"]
)
def test_pretraining_evaluates_on_windows_of_the_validation_split(
    wanted: int | str, starts: range | tuple[int, ...], gpt2: Call
) -> None:
    """52 tokens hold six whole windows and one of three targets; fewer are spread over all of it."""
    write_tokens(gpt2, random_text(260, seed=3))
    validation = read_tokens("validation")
    assert len(validation) == 52
    rows = windows_of(validation, starts, CONTEXT)
    first = train(gpt2, PRETRAIN, "frozen", *FROZEN, "optim.steps=1")
    run = train(gpt2, PRETRAIN, "run", f"eval.tokens={wanted}")
    for event, model in zip(events(run, "EvalDone"), (first / "last", run / "last"), strict=True):
        assert event["n_tokens"] == n_targets(rows)
        with torch.no_grad():
            loss = mean_loss(load(Path(model)), rows)
        assert event["loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert event["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)


def test_a_validation_split_shorter_than_the_context_is_one_window(gpt2: Call) -> None:
    write_tokens(gpt2, random_text(100, seed=4), validation=0.06)
    validation = read_tokens("validation")
    assert len(validation) == 6
    rows = windows_of(validation, [0], len(validation) - 1)
    run = train(gpt2, PRETRAIN, "run", *FROZEN, "optim.steps=1")
    with torch.no_grad():
        wanted = mean_loss(load(run / "last"), rows).item()
    for event in events(run, "EvalDone"):
        assert (event["loss"], event["n_tokens"]) == (pytest.approx(wanted, abs=1e-5), 5)
