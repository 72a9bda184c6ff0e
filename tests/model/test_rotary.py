"""Rotary positions against transformers' own rotation (GPT-NeoX) in attention that is written out here."""

import pytest
import torch
from loud import loud
from rotary_reference import reference_logits
from torch import Tensor

from gpt2cli.errors import InputError
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model

CONFIG = GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=24, vocab_size=61, positions="rotary")


@pytest.fixture(scope="module")
def model() -> GPT2LMHead:
    return loud(new_model(CONFIG, seed=1))


def some_ids(*shape: int) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("attention", ["formula", "blocks", "sdpa"])
@torch.no_grad()
def test_logits_are_those_of_transformers_rotation(model: GPT2LMHead, attention: str) -> None:
    ours = loud(new_model(CONFIG, 1, attention))
    ids = some_ids(3, 24)
    wanted = reference_logits(model, ids)
    assert wanted.std() > 0.5, "weights this small would hide mistakes"
    torch.testing.assert_close(ours(ids).double(), wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_cached_is_uncached_up_to_the_context_and_a_sliding_mask_after_it(model: GPT2LMHead) -> None:
    ids = some_ids(2, 80)  # three windows of 24 and more
    wanted = reference_logits(model, ids, window=CONFIG.n_positions)
    cache = model.new_cache(2, CONFIG.n_positions)
    found = [model.extend(ids[:, :5], cache)]
    found += [model.extend(ids[:, t : t + 1], cache) for t in range(5, 80)]
    torch.testing.assert_close(torch.stack(found, dim=1).double(), wanted[:, 4:], atol=1e-5, rtol=0)
    whole = model(ids[:, : CONFIG.n_positions])
    torch.testing.assert_close(whole[:, 4:], torch.stack(found[:20], dim=1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_positions_may_be_far_from_the_beginning(model: GPT2LMHead) -> None:
    """Only distances count, so that all rows moved by as much give the same logits."""
    ids, far = some_ids(1, 24), torch.arange(24)[None] + 10**6
    torch.testing.assert_close(model(ids, positions=far), model(ids), atol=1e-4, rtol=0)


@torch.no_grad()
def test_records_packed_into_a_row_are_what_they_are_alone(model: GPT2LMHead) -> None:
    one, other = some_ids(1, 24)[:, :9], some_ids(1, 24)[:, 9:]
    positions = torch.cat([torch.arange(9), torch.arange(15)])[None]
    record = torch.tensor([0] * 9 + [1] * 15)
    mask = (record[:, None] == record) & torch.ones(24, 24, dtype=torch.bool).tril()
    packed = model(torch.cat([one, other], dim=1), positions=positions, mask=mask[None, None])
    alone = torch.cat([reference_logits(model, one), reference_logits(model, other)], dim=1)
    torch.testing.assert_close(packed.double(), alone, atol=1e-5, rtol=0)


def test_gradients_reach_all_weights_with_and_without_activation_checkpointing() -> None:
    found = []
    for on in (False, True):
        model = loud(new_model(CONFIG, 1)).train()
        model.transformer.activation_checkpointing = on
        model(some_ids(2, 24)).square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
        assert all(grad is not None and grad.abs().max() > 0 for grad in found[-1].values())
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, msg=lambda m, n=name: f"{n}: {m}")


def test_there_is_no_position_embedding(model: GPT2LMHead) -> None:
    assert CONFIG.n_parameters == sum(p.numel() for p in model.parameters())
    assert not [name for name, _ in model.named_parameters() if "wpe" in name]


def test_a_head_of_an_odd_width_cannot_turn() -> None:
    with pytest.raises(InputError, match="9 channels"):
        GPT2Config(n_layer=1, n_head=2, n_embd=18, positions="rotary")
