"""One row that keeps what it has read, against `generate`, which reads everything."""

from typing import Any

import pytest
import torch
from conversing import counted, failing, require_true
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.errors import DivergedError, Gpt2Error, InputError, UsageError
from gpt2cli.generation.cpu.swap_linears import swap_for_decoding
from gpt2cli.generation.engine import PrefixCache, continue_row, generate, new_prefix_cache
from gpt2cli.generation.sampling import SamplingOptions
from gpt2cli.model.gpt2 import GPT2LMHead

GREEDY = SamplingOptions(temperature=0)
LIMIT = 64
PROMPT = [5, 80, 210, 3, 17]


def generated(model: GPT2LMHead, prompt: list[int], n: int, decoding: SamplingOptions = GREEDY) -> list[int]:
    return [token for step in generate(model, [prompt], decoding, n) if (token := step.ids[0]) is not None]


def continued(
    model: GPT2LMHead,
    prefix: PrefixCache,
    prompt: list[int],
    n: int,
    decoding: SamplingOptions = GREEDY,
    **more: Any,
) -> list[int]:
    return list(continue_row(model, prefix, prompt, decoding, n, **more))


@pytest.mark.parametrize(
    "decoding",
    [
        GREEDY,
        SamplingOptions(temperature=1.3, top_k=0, seed=3),
        SamplingOptions(0.9, 30, 0.9, repetition_penalty=1.4),
    ],
)
def test_ids_are_those_of_generate(model: GPT2LMHead, decoding: SamplingOptions) -> None:
    prefix = new_prefix_cache(model)
    for prompt in (PROMPT, [*PROMPT, 9, 9], [1], PROMPT[:2], [7] * 40):
        n = LIMIT + 1 - len(prompt)
        assert continued(model, prefix, prompt, n, decoding) == generated(model, prompt, n, decoding)


def test_a_packed_model_continues_the_same(model: GPT2LMHead) -> None:
    expected = generated(model, PROMPT * 5, 30)
    packed = swap_for_decoding(model)
    prefix = new_prefix_cache(packed)
    continued(packed, prefix, PROMPT * 2, 9)
    assert continued(packed, prefix, PROMPT * 5, 30) == expected


def test_only_what_the_cache_does_not_hold_is_read(model: GPT2LMHead) -> None:
    prefix = new_prefix_cache(model)
    with counted(model) as widths:
        first = continued(model, prefix, PROMPT, 6)
        assert (widths, prefix.n_prefilled) == ([5, 1, 1, 1, 1, 1], 5)
        assert prefix.ids == [*PROMPT, *first[:-1]]  # the last id was not read
        del widths[:]
        longer = [*PROMPT, *first, 8, 9]
        continued(model, prefix, longer, 2)
        assert (widths, prefix.n_prefilled) == ([3, 1], 3)
        assert prefix.ids[: len(longer)] == longer
        del widths[:]
        continued(model, prefix, [*PROMPT, 1], 1)  # another way on
        assert (widths, prefix.ids) == ([1], [*PROMPT, 1])
        del widths[:]
        continued(model, prefix, PROMPT[:3], 1)  # all of it is there: one is read again for its scores
        assert (widths, prefix.n_prefilled, prefix.ids) == ([1], 1, PROMPT[:3])
    require_true(model, prefix)


def test_it_ends_with_the_context_the_length_or_a_stop_id(model: GPT2LMHead) -> None:
    prefix = new_prefix_cache(model)
    whole = continued(model, prefix, PROMPT, 1000)
    assert len(whole) == LIMIT + 1 - len(PROMPT)
    assert len(prefix.ids) == LIMIT
    require_true(model, prefix)
    assert continued(model, prefix, [1] * LIMIT, 1000) == generated(model, [1] * LIMIT, 1)
    stop = whole[7]
    assert continued(model, prefix, PROMPT, 1000, stop_ids={stop}) == whole[: whole.index(stop) + 1]


def test_chance_may_be_given_and_goes_on_from_row_to_row(model: GPT2LMHead) -> None:
    decoding = SamplingOptions(temperature=1.3, top_k=0)
    whole = continued(
        model, new_prefix_cache(model), PROMPT, 20, decoding, generator=torch.Generator().manual_seed(1)
    )
    chance, prefix = torch.Generator().manual_seed(1), new_prefix_cache(model)
    first = continued(model, prefix, PROMPT, 8, decoding, generator=chance)
    rest = continued(model, prefix, PROMPT + first, 12, decoding, generator=chance)
    assert first + rest == whole


def test_the_model_keeps_its_mode_and_no_gradients_are_recorded(model: GPT2LMHead) -> None:
    model.train()
    prefix = new_prefix_cache(model)
    row = continue_row(model, prefix, PROMPT, GREEDY, 5)
    next(row)
    assert not model.training and torch.is_grad_enabled()
    row.close()
    assert model.training
    assert not any(keys.requires_grad for keys in prefix.kv.keys)


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
    prefix = new_prefix_cache(model)
    continued(model, prefix, PROMPT, 3)
    before = list(prefix.ids)
    with pytest.raises(error) as caught:
        continued(model, prefix, prompt, n)
    assert caught.value.what == message
    assert prefix.ids == before
    require_true(model, prefix)


def test_nan_is_reported_and_the_cache_stays_true(model: GPT2LMHead) -> None:
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    prefix = new_prefix_cache(model)
    with pytest.raises(DivergedError, match="not finite"):
        continued(model, prefix, [1, 2], 3)
    assert prefix.ids == [1, 2]


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_a_pass_that_breaks_off_leaves_what_was_there(model: GPT2LMHead, layer: int) -> None:
    prefix = new_prefix_cache(model)
    for n in (0, 2):
        with failing(model, n, layer, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
            continued(model, prefix, PROMPT, 9)
        assert len(prefix.ids) == (len(PROMPT) + n - 1 if n else 0)
        require_true(model, prefix)


WAYS = st.sampled_from(["whole", "closed", "error"])
CALLS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=LIMIT), WAYS, st.integers(0, 6)), max_size=6
)


@settings(max_examples=25)
@given(calls=CALLS)
def test_the_past_is_what_the_cache_holds_whatever_ends_a_row(
    calls: list[tuple[list[int], str, int]], shared: GPT2LMHead
) -> None:
    prefix = new_prefix_cache(shared)
    for prompt, way, n in calls:
        if way == "whole":
            assert (
                continued(shared, prefix, prompt, 4)
                == generated(shared, prompt, 4)[: LIMIT + 1 - len(prompt)]
            )
        elif way == "closed":
            row = continue_row(shared, prefix, prompt, GREEDY, 9)
            for _, _token in zip(range(n), row, strict=False):
                require_true(shared, prefix)
            row.close()
        else:
            with failing(shared, n, layer=1, error=KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
                continued(shared, prefix, prompt[:50], 9)
        require_true(shared, prefix)


def test_the_penalty_does_not_weigh_stop_ids(model: GPT2LMHead) -> None:
    strong = SamplingOptions(temperature=0, repetition_penalty=50.0)
    end = next(
        token for token in range(211) if continued(model, new_prefix_cache(model), [token], 1) == [token]
    )
    prompt = [end]
    assert continued(model, new_prefix_cache(model), prompt, 1, strong) != [end]
    assert continued(model, new_prefix_cache(model), prompt, 1, strong, stop_ids={end}) == [end]
