"""Rotary positions past the context: one prefill, and the ids of one full forward with a sliding mask."""

import copy

import pytest
import torch
from conversing import CHAT, GREEDY, LETTERS, conversing, counted, done, require_true
from loud import loud
from rotary_reference import reference_logits

from gpt2cli.generation.activations import heads, trace_forward
from gpt2cli.generation.cpu.swap_linears import swap_for_decoding
from gpt2cli.generation.engine import continue_row, generate, new_prefix_cache
from gpt2cli.generation.sampling import SamplingOptions
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model

LIMIT = 32
PROMPTS = [[5, 80, 90, 3], [17], list(range(LIMIT)), [9, 9, 30, 41, 7, 60, 61]]
N = 100  # three windows


@pytest.fixture
def model() -> GPT2LMHead:
    config = GPT2Config(n_layer=2, n_head=4, n_embd=64, n_positions=LIMIT, vocab_size=101, positions="rotary")
    return loud(new_model(config, 1))


def expected(model: GPT2LMHead, prompt: list[int], ids: list[int]) -> list[int]:
    """The greedy choice after each prefix of prompt and ids, by one forward under a sliding mask."""
    logits = reference_logits(model, torch.tensor([prompt + ids[:-1]]), window=LIMIT)[0]
    return logits[len(prompt) - 1 :].argmax(dim=-1).tolist()


def rows_of(
    model: GPT2LMHead, prompts: list[list[int]], n: int = N, options: SamplingOptions = GREEDY
) -> list[list[int]]:
    steps = list(generate(model, prompts, options, n))
    assert not any(step.window_moved for step in steps)
    return [[int(step.ids[row] or 0) for step in steps] for row in range(len(prompts))]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_window_slides_without_a_second_prefill(model: GPT2LMHead, prompt: list[int]) -> None:
    with counted(model) as widths:
        (ids,) = rows_of(model, [prompt])
    assert ids == expected(model, prompt, ids)
    assert widths == [len(prompt)] + [1] * (N - 1)  # one prefill, and a token at a time


def test_rows_of_unequal_length_slide_together_and_equal_single_rows(model: GPT2LMHead) -> None:
    prompts = [*PROMPTS, PROMPTS[0]]  # and one twice, whose cache is copied
    with counted(model) as widths:
        found = rows_of(model, prompts)
    assert widths == [LIMIT] + [1] * (N - 1)
    for prompt, ids in zip(prompts, found, strict=True):
        assert ids == expected(model, prompt, ids)
    assert len({id for ids in found for id in ids}) > 10, "rows that repeat themselves would hide mistakes"


def test_what_was_sampled_alone_is_sampled_in_a_batch(model: GPT2LMHead) -> None:
    wild = SamplingOptions(temperature=1.5, top_k=0, seed=5)
    (alone,) = rows_of(model, PROMPTS[:1], options=wild)
    assert rows_of(model, PROMPTS, options=wild)[0] == alone


def test_swapped_layers_slide_too(model: GPT2LMHead) -> None:
    swapped = swap_for_decoding(copy.deepcopy(model), "fp32", "row")
    assert rows_of(swapped, PROMPTS[:1]) == rows_of(model, PROMPTS[:1])
    for precision in ("bf16", "int8"):
        half = swap_for_decoding(copy.deepcopy(model), precision, "row")
        (ids,) = rows_of(half, PROMPTS[:1])
        assert half.new_cache(1, 8).keys[0].dtype is torch.bfloat16
        agreement = sum(a == b for a, b in zip(ids, expected(model, PROMPTS[0], ids), strict=True)) / N
        assert agreement > 0.8, f"{precision} chooses otherwise at {1 - agreement:.0%} of the tokens"


def test_a_conversation_keeps_a_true_cache() -> None:
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, n_positions=96, vocab_size=LETTERS.n_vocab, positions="rotary"
    )
    model = loud(new_model(config, 4))
    talk = conversing(model, GREEDY, 8, CHAT)
    for turn in range(6):  # the oldest turns leave
        reply = done(talk.say(f"turn {turn} says this"))
        require_true(model, talk.prefix)
        prompt = list(talk.last_prompt)
        ids = list(talk.exchanges[-1].ids)
        logits = reference_logits(model, torch.tensor([prompt + ids]))[0]
        assert logits[len(prompt) - 1 :].argmax(dim=-1).tolist()[: len(ids)] == ids
        assert reply.n_prefilled <= reply.n_prompt
    assert talk.n_dropped > 0


def test_a_kept_prefix_ends_with_the_context(model: GPT2LMHead) -> None:
    prefix = new_prefix_cache(model)
    ids = list(continue_row(model, prefix, PROMPTS[0], GREEDY, 1000))
    assert len(ids) == LIMIT + 1 - len(PROMPTS[0])
    assert ids == expected(model, PROMPTS[0], ids)


@torch.no_grad()
def test_the_attention_that_is_shown_is_the_one_that_is_used(model: GPT2LMHead) -> None:
    ids, seen = torch.tensor([PROMPTS[2]]), dict[str, torch.Tensor]()
    attention = model.transformer.h[1].attn
    attention.c_attn.register_forward_hook(lambda m, i, output: seen.update(qkv=output))
    attention.c_proj.register_forward_hook(lambda m, inputs, o: seen.update(y=inputs[0]))
    traced = trace_forward(model, ids, n_drawn=LIMIT)
    _, _, v = heads(seen["qkv"], 4)
    mixed = (traced.attention[1][None] @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, seen["y"], atol=1e-5, rtol=0)
    names = [activation.name for activation in traced.activations]
    assert "wpe" not in names and "wte+wpe" not in names
