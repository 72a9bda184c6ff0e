"""One row that keeps what it has read, against `generate`, which reads everything."""

from typing import Any

import pytest
import torch
from conversing import counted, failing, require_true
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.errors import DivergedError, Gpt2Error, InputError, UsageError
from gpt2cli.generation.cpu.swap_linears import swap_for_decoding
from gpt2cli.generation.engine import Past, continue_row, generate, new_past
from gpt2cli.generation.sampling import Decoding
from gpt2cli.model.gpt2 import GPT2LMHead

GREEDY = Decoding(temperature=0)
LIMIT = 64
PROMPT = [5, 80, 210, 3, 17]


def generated(model: GPT2LMHead, prompt: list[int], n: int, decoding: Decoding = GREEDY) -> list[int]:
    return [token for step in generate(model, [prompt], decoding, n) if (token := step.ids[0]) is not None]


def continued(
    model: GPT2LMHead, past: Past, prompt: list[int], n: int, decoding: Decoding = GREEDY, **more: Any
) -> list[int]:
    return list(continue_row(model, past, prompt, decoding, n, **more))


@pytest.mark.parametrize(
    "decoding",
    [GREEDY, Decoding(temperature=1.3, top_k=0, seed=3), Decoding(0.9, 30, 0.9, repetition_penalty=1.4)],
)
def test_ids_are_those_of_generate(model: GPT2LMHead, decoding: Decoding) -> None:
    past = new_past(model)
    for prompt in (PROMPT, [*PROMPT, 9, 9], [1], PROMPT[:2], [7] * 40):
        n = LIMIT + 1 - len(prompt)
        assert continued(model, past, prompt, n, decoding) == generated(model, prompt, n, decoding)


def test_a_packed_model_continues_the_same(model: GPT2LMHead) -> None:
    expected = generated(model, PROMPT * 5, 30)
    packed = swap_for_decoding(model)
    past = new_past(packed)
    continued(packed, past, PROMPT * 2, 9)
    assert continued(packed, past, PROMPT * 5, 30) == expected


def test_only_what_the_cache_does_not_hold_is_read(model: GPT2LMHead) -> None:
    past = new_past(model)
    with counted(model) as widths:
        first = continued(model, past, PROMPT, 6)
        assert (widths, past.n_read) == ([5, 1, 1, 1, 1, 1], 5)
        assert past.ids == [*PROMPT, *first[:-1]]  # the last id was not read
        del widths[:]
        longer = [*PROMPT, *first, 8, 9]
        continued(model, past, longer, 2)
        assert (widths, past.n_read) == ([3, 1], 3)
        assert past.ids[: len(longer)] == longer
        del widths[:]
        continued(model, past, [*PROMPT, 1], 1)  # another way on
        assert (widths, past.ids) == ([1], [*PROMPT, 1])
        del widths[:]
        continued(model, past, PROMPT[:3], 1)  # all of it is there: one is read again for its scores
        assert (widths, past.n_read, past.ids) == ([1], 1, PROMPT[:3])
    require_true(model, past)


def test_it_ends_with_the_context_the_length_or_a_stop_id(model: GPT2LMHead) -> None:
    past = new_past(model)
    whole = continued(model, past, PROMPT, 1000)
    assert len(whole) == LIMIT + 1 - len(PROMPT)
    assert len(past.ids) == LIMIT
    require_true(model, past)
    assert continued(model, past, [1] * LIMIT, 1000) == generated(model, [1] * LIMIT, 1)
    stop = whole[7]
    assert continued(model, past, PROMPT, 1000, stop_ids={stop}) == whole[: whole.index(stop) + 1]


def test_chance_may_be_given_and_goes_on_from_row_to_row(model: GPT2LMHead) -> None:
    decoding = Decoding(temperature=1.3, top_k=0)
    whole = continued(
        model, new_past(model), PROMPT, 20, decoding, generator=torch.Generator().manual_seed(1)
    )
    chance, past = torch.Generator().manual_seed(1), new_past(model)
    first = continued(model, past, PROMPT, 8, decoding, generator=chance)
    rest = continued(model, past, PROMPT + first, 12, decoding, generator=chance)
    assert first + rest == whole


def test_the_model_keeps_its_mode_and_no_gradients_are_recorded(model: GPT2LMHead) -> None:
    model.train()
    past = new_past(model)
    row = continue_row(model, past, PROMPT, GREEDY, 5)
    next(row)
    assert not model.training and torch.is_grad_enabled()
    row.close()
    assert model.training
    assert not any(keys.requires_grad for keys in past.cache.keys)


@pytest.mark.parametrize(
    ("prompt", "n", "error", "message"),
    [
        ([1], 0, UsageError, "--max-new-tokens is 0"),
        ([], 5, InputError, "a prompt has no tokens"),
        (list(range(65)), 5, InputError, "the prompt has 65 tokens"),
        ([1, 211], 5, InputError, "the prompt holds the id 211"),
    ],
)
def test_what_cannot_be_continued_is_refused_and_the_past_stays(
    model: GPT2LMHead, prompt: list[int], n: int, error: type[Gpt2Error], message: str
) -> None:
    past = new_past(model)
    continued(model, past, PROMPT, 3)
    before = list(past.ids)
    with pytest.raises(error) as caught:
        continued(model, past, prompt, n)
    assert caught.value.what == message
    assert past.ids == before
    require_true(model, past)


def test_nan_is_reported_and_the_cache_stays_true(model: GPT2LMHead) -> None:
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    past = new_past(model)
    with pytest.raises(DivergedError, match="not finite"):
        continued(model, past, [1, 2], 3)
    assert past.ids == [1, 2]


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_a_pass_that_breaks_off_leaves_what_was_there(model: GPT2LMHead, layer: int) -> None:
    past = new_past(model)
    for n in (0, 2):
        with failing(model, n, layer, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
            continued(model, past, PROMPT, 9)
        assert len(past.ids) == (len(PROMPT) + n - 1 if n else 0)
        require_true(model, past)


WAYS = st.sampled_from(["whole", "closed", "error"])
CALLS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=LIMIT), WAYS, st.integers(0, 6)), max_size=6
)


@settings(max_examples=25, deadline=None)
@given(calls=CALLS)
def test_the_past_is_what_the_cache_holds_whatever_ends_a_row(
    calls: list[tuple[list[int], str, int]], shared: GPT2LMHead
) -> None:
    past = new_past(shared)
    for prompt, way, n in calls:
        if way == "whole":
            assert (
                continued(shared, past, prompt, 4) == generated(shared, prompt, 4)[: LIMIT + 1 - len(prompt)]
            )
        elif way == "closed":
            row = continue_row(shared, past, prompt, GREEDY, 9)
            for _, _token in zip(range(n), row, strict=False):
                require_true(shared, past)
            row.close()
        else:
            with failing(shared, n, layer=1, error=KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
                continued(shared, past, prompt[:50], 9)
        require_true(shared, past)


def test_the_penalty_does_not_weigh_stop_ids(model: GPT2LMHead) -> None:
    strong = Decoding(temperature=0, repetition_penalty=50.0)
    end = next(token for token in range(211) if continued(model, new_past(model), [token], 1) == [token])
    prompt = [end]
    assert continued(model, new_past(model), prompt, 1, strong) != [end]
    assert continued(model, new_past(model), prompt, 1, strong, stop_ids={end}) == [end]
