import copy

import pytest
import torch
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel

from gpt2cli.checkpoints.folder import TRANSPOSED
from gpt2cli.errors import DivergedError, Gpt2Error, InputError, UsageError
from gpt2cli.generation.cpu.swap_linears import swap_for_decoding
from gpt2cli.generation.engine import DecodeStep, generate
from gpt2cli.generation.sampling import SamplingOptions
from gpt2cli.model.config import to_hugging_face
from gpt2cli.model.gpt2 import GPT2LMHead, initialize

GREEDY = SamplingOptions(temperature=0)
LIMIT = 64
PROMPTS = [[5, 80, 210, 3], [17], [9, 9, 30, 41, 100, 2, 77], [200, 1]]


def ids_of(steps: list[DecodeStep], row: int = 0) -> list[int]:
    return [token for step in steps if (token := step.ids[row]) is not None]


def run(
    model: GPT2LMHead, prompts: list[list[int]], n: int, decoding: SamplingOptions = GREEDY
) -> list[DecodeStep]:
    return list(generate(model, prompts, decoding, n))


@torch.no_grad()
def uncached(model: GPT2LMHead, prompt: list[int], n: int) -> list[int]:
    """Greedy decoding that computes the whole window anew for every token."""
    window, made = list(prompt), []
    for _ in range(n):
        if len(window) > LIMIT:
            window = window[-(LIMIT // 2) :]
        made.append(int(model(torch.tensor([window]))[0, -1].argmax()))
        window.append(made[-1])
    return made


def theirs(model: GPT2LMHead) -> GPT2LMHeadModel:
    reference = GPT2LMHeadModel(TheirConfig(**to_hugging_face(model.config)))
    state = {n: t.T if n.endswith(TRANSPOSED) else t for n, t in model.state_dict().items()}
    reference.load_state_dict(state)
    return reference.eval()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_continuation_is_that_of_transformers(model: GPT2LMHead, prompt: list[int]) -> None:
    n = LIMIT - len(prompt)
    expected = theirs(model).generate(
        torch.tensor([prompt]), max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert ids_of(run(model, [prompt], n)) == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("prompt", [*PROMPTS, list(range(LIMIT)), list(range(LIMIT - 1))])
def test_cached_equals_uncached_also_over_moved_windows(model: GPT2LMHead, prompt: list[int]) -> None:
    n = 150  # the window moves at least three times
    steps = run(model, [prompt], n)
    assert ids_of(steps) == uncached(model, prompt, n)
    # id number LIMIT + 1 of the row needs a window of its own, and then every half context
    first = LIMIT + 1 - len(prompt)
    assert [i for i, step in enumerate(steps) if step.window_moved] == list(range(first, n, LIMIT // 2 + 1))


@pytest.mark.parametrize("attention", ["sdpa", "formula"])
def test_a_batch_of_unequal_prompts_equals_its_rows_alone(model: GPT2LMHead, attention: str) -> None:
    other = GPT2LMHead(model.config, attention)
    other.load_state_dict(model.state_dict())
    together = run(other, PROMPTS, 150)
    for row, prompt in enumerate(PROMPTS):
        assert ids_of(together, row) == ids_of(run(model, [prompt], 150))
    assert sum(step.window_moved for step in together) > 3  # the rows fill the context at different steps


def test_a_batch_of_equal_prompts_samples_each_row_as_in_any_other_batch(model: GPT2LMHead) -> None:
    decoding = SamplingOptions(temperature=1.5, top_k=0, seed=11)
    three, one = run(model, [PROMPTS[0]] * 3, 30, decoding), run(model, [PROMPTS[0]], 30, decoding)
    rows = [ids_of(three, row) for row in range(3)]
    assert rows[0] == ids_of(one)
    assert len({tuple(row) for row in rows}) == 3
    assert rows == [ids_of(run(model, [PROMPTS[0]] * 3, 30, decoding), row) for row in range(3)]


def test_a_prompt_that_stands_there_several_times_is_read_once(model: GPT2LMHead) -> None:
    shapes: list[tuple[int, ...]] = []
    model.transformer.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    wild = SamplingOptions(temperature=1.5, top_k=0, seed=11)
    run(model, [PROMPTS[2]] * 16, 3, wild)
    assert shapes == [(1, 7), (16, 1), (16, 1)]
    del shapes[:]
    mixed = [PROMPTS[2], PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[1]]
    together = run(model, mixed, 60, GREEDY)
    assert shapes[:2] == [(3, 7), (5, 1)]
    for row, prompt in enumerate(mixed):
        assert ids_of(together, row) == ids_of(run(model, [prompt], 60, GREEDY))


def test_another_seed_gives_another_text(model: GPT2LMHead) -> None:
    texts = {
        tuple(ids_of(run(model, PROMPTS[:1], 20, SamplingOptions(seed=seed, top_k=0)))) for seed in range(4)
    }
    assert len(texts) == 4


def test_a_row_ends_with_its_stop_id_and_the_others_go_on(model: GPT2LMHead) -> None:
    whole = run(model, PROMPTS, 120)
    stop = ids_of(whole, 0)[5]
    ended = list(generate(model, PROMPTS, GREEDY, 120, {stop}))
    for row in range(len(PROMPTS)):
        expected = ids_of(whole, row)
        if stop in expected:
            expected = expected[: expected.index(stop) + 1]
        assert ids_of(ended, row) == expected
    assert len(ids_of(ended, 0)) <= 6


def test_nothing_is_computed_after_every_row_has_ended(model: GPT2LMHead) -> None:
    stop = ids_of(run(model, PROMPTS[:1], 1))[0]
    assert len(list(generate(model, PROMPTS[:1], GREEDY, 100, {stop}))) == 1


def test_each_token_goes_through_the_model_once(model: GPT2LMHead) -> None:
    seen: list[int] = []
    model.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    run(model, [PROMPTS[2]], LIMIT)
    full = [7] + [1] * (LIMIT - 7)  # the context is used to its last place, then its half read again
    assert seen == [*full, LIMIT // 2] + [1] * (LIMIT - len(full) - 1)


@pytest.mark.parametrize("rows", [PROMPTS[:1], PROMPTS])
def test_repetition_penalty_weighs_what_prompt_and_row_hold(model: GPT2LMHead, rows: list[list[int]]) -> None:
    reference = theirs(model)
    steps = run(model, rows, 40, SamplingOptions(temperature=0, repetition_penalty=1.7))
    for row, prompt in enumerate(rows):
        expected = reference.generate(
            torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0,
            repetition_penalty=1.7,
        )  # fmt: skip
        assert ids_of(steps, row) == expected[0, len(prompt) :].tolist()


def test_a_context_of_one_position_still_continues(model: GPT2LMHead) -> None:
    config = copy.copy(model.config)
    object.__setattr__(config, "n_positions", 1)
    tiny = GPT2LMHead(config)
    initialize(tiny, seed=0)
    steps = run(tiny, [[3]], 4)
    assert len(ids_of(steps)) == 4
    assert [step.window_moved for step in steps] == [False, True, True, True]


def test_padding_never_makes_nan(model: GPT2LMHead) -> None:
    values: list[torch.Tensor] = []
    for block in model.transformer.h:
        block.register_forward_hook(lambda module, inputs, output: values.append(output))
    run(model, [[1], list(range(40))], 3)
    assert all(value.isfinite().all() for value in values)


def test_the_model_is_not_dropped_out_and_keeps_its_mode(model: GPT2LMHead) -> None:
    config = copy.copy(model.config)
    object.__setattr__(config, "dropout", 0.5)
    noisy = GPT2LMHead(config)
    noisy.load_state_dict(model.state_dict())
    noisy.train()
    assert ids_of(run(noisy, PROMPTS[:1], 20)) == ids_of(run(model, PROMPTS[:1], 20))
    assert noisy.training
    steps = generate(noisy, PROMPTS[:1], GREEDY, 20)
    next(steps)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    steps.close()  # type: ignore[attr-defined]
    assert noisy.training


def test_nan_weights_are_reported_as_diverged(model: GPT2LMHead) -> None:
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(DivergedError, match="not finite"):
        run(model, PROMPTS[:1], 3)


@pytest.mark.parametrize(
    ("prompts", "n", "error", "message"),
    [
        ([[1]], 0, UsageError, "--max-new-tokens is 0"),
        ([[1], []], 5, InputError, "a prompt has no tokens"),
        ([list(range(65))], 5, InputError, "the prompt has 65 tokens"),
        ([[1, 211]], 5, InputError, "the prompt holds the id 211"),
        ([[1, -1]], 5, InputError, "the prompt holds the id -1"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    model: GPT2LMHead, prompts: list[list[int]], n: int, error: type[Gpt2Error], message: str
) -> None:
    with pytest.raises(error) as caught:
        run(model, prompts, n)
    assert caught.value.what == message


def test_the_cache_is_no_longer_than_what_can_be_used(model: GPT2LMHead) -> None:
    lengths: list[int] = []
    block = model.transformer.h[0]
    block.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[1].keys[0].shape[2]))
    run(model, [[1, 2, 3]], 5)
    assert set(lengths) == {8}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_the_scores_of_fp32(model: GPT2LMHead, dtype: torch.dtype) -> None:
    """Every id that half precision takes is among the best of fp32 at that place."""
    half = swap_for_decoding(copy.deepcopy(model).to(dtype))
    ids = PROMPTS[2] + ids_of(run(half, [PROMPTS[2]], 40))
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0]
    for place in range(len(PROMPTS[2]) - 1, len(ids) - 1):
        best = logits[place].max()
        assert best - logits[place, ids[place + 1]] < 0.05 * logits[place].std()
