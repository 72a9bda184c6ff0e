"""What fewer bits cost a model that has learnt something: its perplexity on text it has not seen."""

import copy
from importlib.resources import files

import pytest
import torch
import torch.nn.functional as F

from gpt2cli.generation.cpu.linear import can_block
from gpt2cli.generation.cpu.swap_linears import Use, swap_for_decoding
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model

CONTEXT, N_STEPS = 64, 150


@pytest.fixture(scope="module")
def taught() -> tuple[GPT2LMHead, torch.Tensor]:
    """A model of bytes that has read most of the bundled story, and the rest of it, (n, CONTEXT + 1)."""
    ids = torch.tensor(list((files("gpt2cli.bundled") / "story.txt").read_bytes()))
    learnt, rest = ids[:-3000], ids[-3000:]
    config = GPT2Config(n_layer=2, n_head=4, n_embd=64, n_positions=CONTEXT, vocab_size=256, dropout=0.0)
    model, chance = new_model(config, seed=0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(N_STEPS):
        starts = torch.randint(len(learnt) - CONTEXT, (8,), generator=chance)
        rows = torch.stack([learnt[start : start + CONTEXT + 1] for start in starts])
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), rest[: len(rest) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)


@torch.no_grad()
def loss_of(model: GPT2LMHead, rows: torch.Tensor) -> float:
    logits = model(rows[:, :-1]).float().flatten(0, 1)
    return F.cross_entropy(logits, rows[:, 1:].flatten()).item()


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("bf16", 0.002), ("int8", 0.005)])
@pytest.mark.parametrize("use", ["row", "rows"])
def test_perplexity_stays_within_half_a_percent(
    taught: tuple[GPT2LMHead, torch.Tensor], precision: str, most: float, use: Use
) -> None:
    if use == "rows" and not can_block(precision):
        pytest.skip(f"this processor has no kernels for several rows in {precision}")
    model, rows = taught
    expected = loss_of(model, rows)
    assert expected < 3.5  # it has learnt: ignorance is ln 256 = 5.5, and processors round differently
    found = loss_of(swap_for_decoding(copy.deepcopy(model), precision, use), rows)
    assert abs(found - expected) < most  # a difference of losses is a ratio of perplexities
