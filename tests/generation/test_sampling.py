import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt2cli.errors import DivergedError, UsageError
from gpt2cli.generation import sampling
from gpt2cli.generation.sampling import SamplingOptions, choose

V = 700  # more than sampling.FIRST_LOOK, so that top_p has both of its ways


def scores(n_rows: int, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_rows, V, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("k", [1, 2, 40, V - 1, V])
def test_top_k_equals_transformers_in_every_row(k: int) -> None:
    logits = scores(3)
    ids = sampling.top_k_ids(logits, k)
    kept = torch.full_like(logits, sampling.REMOVED).scatter(1, ids, logits.gather(1, ids))
    assert torch.equal(kept, TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("k", [0, V, V + 1])
def test_top_k_zero_and_above_the_vocabulary_keep_every_token(k: int) -> None:
    chance = (torch.arange(V) + 0.5) / V
    chosen = choose(torch.zeros(V, V), SamplingOptions(temperature=1, top_k=k), chance)
    assert torch.equal(chosen, torch.arange(V))


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.01, 3.0])  # at 0.01 nearly every token is needed: the whole sort
def test_top_p_equals_transformers_in_every_row(p: float, scale: float) -> None:
    logits = scores(3, scale)
    # transformers adds up from the other end, so a token just at the limit may differ by rounding
    ours, theirs = sampling.top_p(logits, p), TopPLogitsWarper(p)(None, logits)
    assert ((ours != theirs).sum(dim=-1) <= 1).all()
    kept = logits.softmax(-1).masked_fill(ours == sampling.REMOVED, 0)
    assert (kept.sum(-1) >= p - 1e-5).all()
    assert (kept.sum(-1) - kept.masked_fill(kept == 0, 1).amin(-1) < p + 1e-5).all()  # one fewer is too few


def test_top_p_of_a_row_does_not_depend_on_how_far_another_is_sorted() -> None:
    row = (scores(1) * 4).bfloat16().float()  # full of ties
    flat = torch.zeros(1, V)  # needs the whole sort
    together = sampling.top_p(torch.cat([row, flat]), 0.9)
    assert torch.equal(together[:1], sampling.top_p(row, 0.9))


@pytest.mark.parametrize("p", [1e-3, 0.05, 0.97, 1.0])
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_min_p_equals_transformers_in_every_row(p: float, scale: float) -> None:
    logits = scores(3, scale)
    found = sampling.min_p(logits, p)
    assert torch.equal(found, MinPLogitsWarper(p)(None, logits))
    assert (found == sampling.REMOVED).any() == (p > 0.9 or scale == 3.0)


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    logits, ids = scores(2), torch.tensor([[1, 5, 5], [7, 0, 699]])
    seen = torch.zeros(2, V, dtype=torch.bool).scatter(1, ids, True)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    assert torch.allclose(sampling.penalize_repetition(logits, seen, penalty), theirs)


@pytest.mark.parametrize("top_k", [0, 8])
def test_draw_has_the_probabilities_of_a_softmax_over_what_the_filters_left(top_k: int) -> None:
    logits = scores(1, 1.0)[:, :12]
    decoding = SamplingOptions(temperature=0.7, top_k=top_k, top_p=0.9, min_p=0.3)
    expected, n_left = logits, list[int]()
    for warper in (
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(top_k or 12),
        TopPLogitsWarper(0.9),
        MinPLogitsWarper(0.3),
    ):
        n_left.append(int((expected := warper(None, expected)).isfinite().sum()))
    assert n_left[-3] > n_left[-2] > n_left[-1] > 1, "each filter has work to do"
    expected = expected.softmax(-1)[0]
    n = 4000
    uniforms = (torch.arange(n) + 0.5) / n  # evenly spread instead of drawn: no chance in the test
    found = choose(logits.expand(n, -1), decoding, uniforms).bincount(minlength=12) / n
    assert (found - expected).abs().max() < 2 / n
    assert (found[expected == 0] == 0).all()


def test_draw_never_takes_a_removed_token_at_the_edges() -> None:
    logits = torch.full((2, V), sampling.REMOVED)
    logits[:, 300] = 0.0
    edges = torch.tensor([0.0, 1 - 2**-24])
    assert sampling.draw(logits, edges).tolist() == [300, 300]


def test_temperature_zero_takes_the_most_likely_token_whatever_the_number() -> None:
    logits = scores(3)
    ids = choose(logits, SamplingOptions(temperature=0, top_k=5), torch.tensor([0.0, 0.5, 0.99]))
    assert torch.equal(ids, logits.argmax(-1))


EXTREMES = [5e-324, 1e-50, 1e-40, 1e-30, 1.0, 1e30, 1e38, 1e300]


@pytest.mark.parametrize("temperature", [0.0, *EXTREMES])
@pytest.mark.parametrize("penalty", EXTREMES)
def test_no_allowed_setting_leaves_the_vocabulary(temperature: float, penalty: float) -> None:
    logits = scores(3)
    logits[:, 5] = 0.0
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[:, :20] = True
    for top_p in (5e-324, 0.5, 1.0):
        decoding = SamplingOptions(temperature, 40, top_p, repetition_penalty=penalty)
        ids = choose(logits, decoding, torch.tensor([0.0, 0.5, 1 - 2**-24]), seen)
        assert ((ids >= 0) & (ids < V)).all()
        assert penalty <= 1 or temperature > 1 or not seen.gather(1, ids[:, None]).any()
        if temperature < 1e-30 and penalty == 1:
            assert torch.equal(ids, logits.argmax(-1))


@settings(max_examples=25)
@given(
    st.floats(0.05, 4),
    st.integers(0, 900),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0.5, 2),
    st.integers(0, 2**31),
)
def test_a_row_is_chosen_as_if_it_were_alone(
    temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, seed: int
) -> None:
    decoding = SamplingOptions(temperature, top_k, top_p, min_p, penalty, seed)
    logits = scores(3, seed=seed)
    seen = logits > 4
    chance = sampling.uniforms(sampling.row_generators(seed, 3))
    together = choose(logits, decoding, chance, seen)
    for row in range(3):
        alone = choose(logits[row : row + 1], decoding, chance[row : row + 1], seen[row : row + 1])
        assert alone.item() == together[row].item()


def test_chance_of_a_row_depends_on_seed_and_place_alone() -> None:
    two, four = sampling.row_generators(7, 2), sampling.row_generators(7, 4)
    first, more = sampling.uniforms(two), sampling.uniforms(four)
    assert torch.equal(first, more[:2])
    assert len(set(more.tolist())) == 4
    assert not torch.equal(first, sampling.uniforms(two))
    assert not torch.equal(first, sampling.uniforms(sampling.row_generators(8, 2)))


def test_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    sampling.uniforms(sampling.row_generators(3, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_scores_that_are_not_finite_are_refused(wrong: float, temperature: float) -> None:
    logits = scores(2)
    logits[1, 3] = wrong
    ids = choose(logits, SamplingOptions(temperature=temperature), torch.zeros(2))
    assert (ids == sampling.NOT_FINITE).tolist() == [False, True]
    with pytest.raises(DivergedError, match="not finite") as caught:
        sampling.to_list(ids)
    assert caught.value.exit_code == 6
    assert caught.value.fix == "--precision fp32, or an earlier checkpoint"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "--temperature is -0.1"),
        ({"temperature": math.nan}, "--temperature is nan"),
        ({"temperature": math.inf}, "--temperature is inf"),
        ({"top_k": -1}, "--top-k is -1"),
        ({"top_p": 0.0}, "--top-p is 0.0"),
        ({"top_p": 1.1}, "--top-p is 1.1"),
        ({"top_p": math.nan}, "--top-p is nan"),
        ({"min_p": -0.1}, "--min-p is -0.1"),
        ({"min_p": 1.1}, "--min-p is 1.1"),
        ({"min_p": math.nan}, "--min-p is nan"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty is 0.0"),
        ({"repetition_penalty": math.nan}, "--repetition-penalty is nan"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingOptions(**values)  # type: ignore[arg-type]
    assert caught.value.what == message
    assert caught.value.why.startswith("it must be")


@pytest.mark.parametrize("k", [1, 3, 40, 200])
@pytest.mark.parametrize("n", [64, 65, 1000, 50257])
@pytest.mark.parametrize("ties", [False, True])
def test_the_highest_of_each_row_are_found_once_and_in_order(k: int, n: int, ties: bool) -> None:
    rows = torch.randn(3, n, generator=torch.Generator().manual_seed(n + k))
    rows = rows.mul(4).round() if ties else rows
    k = min(k, n - 1)
    ids = sampling.top_k_ids(rows, k)
    assert (ids.diff(dim=1) > 0).all()
    assert torch.equal(rows.gather(1, ids).sort(descending=True).values, rows.topk(k).values)
    assert torch.equal(sampling.top_k_ids(rows[1:2], k), ids[1:2])
