"""What a trace says of the sampler's chain, against transformers' own filters and a hand-made draw."""

import random

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from words import BYTES

from gpt2cli.generation.engine import generate
from gpt2cli.generation.sampling import Sampler, SamplingOptions, stages
from gpt2cli.generation.trace import ChoiceRecord, ChoiceTrace, trace_choice
from gpt2cli.model.gpt2 import GPT2LMHead

V = 23


def warpers(options: SamplingOptions) -> dict[str, LogitsProcessorList]:
    """Transformers' chain up to and with each of our stages."""
    wanted = {
        "model": None,
        "repetition_penalty": RepetitionPenaltyLogitsProcessor(options.repetition_penalty),
        "top_k": TopKLogitsWarper(options.top_k) if 0 < options.top_k < V else None,
        "temperature": TemperatureLogitsWarper(options.temperature),
        "top_p": TopPLogitsWarper(options.top_p) if options.top_p < 1 else None,
        "min_p": MinPLogitsWarper(options.min_p) if options.min_p > 0 else None,
    }
    if options.repetition_penalty == 1:
        wanted["repetition_penalty"] = None
    chain, found = LogitsProcessorList(), {}
    for name, one in wanted.items():
        if one is not None:
            chain.append(one)
        if one is not None or name == "model":
            found[name] = LogitsProcessorList(chain)
    return found


def some_options(draw: random.Random) -> SamplingOptions:
    return SamplingOptions(
        temperature=draw.choice([0.2, 0.7, 1.0, 1.9]),
        top_k=draw.choice([0, 1, 3, 8, V, 40]),
        top_p=draw.choice([1.0, 0.2, 0.51, 0.93]),
        min_p=draw.choice([0.0, 0.02, 0.11, 0.6]),
        repetition_penalty=draw.choice([1.0, 0.7, 1.3]),
        seed=draw.randrange(1000),
    )


@pytest.mark.parametrize("begin", range(0, 300, 50))
def test_probabilities_are_those_of_transformers_filters(begin: int) -> None:
    for number in range(begin, begin + 50):
        draw, generator = random.Random(number), torch.Generator().manual_seed(number)
        options = some_options(draw)
        logits = torch.randn(2, V, generator=generator) * draw.choice([0.5, 2.0, 5.0])
        prompts = [[draw.randrange(V) for _ in range(6)] for _ in range(2)]
        traces: list[ChoiceTrace] = []

        def watch(chain: list, uniforms: Tensor, ids: Tensor, traces: list = traces) -> None:
            traces += [trace_choice(chain, uniforms, ids, row, V) for row in range(2)]

        ids = Sampler(options, prompts, V, torch.device("cpu"), watch=watch)(logits)
        expected = warpers(options)
        for row, trace in enumerate(traces):
            assert trace.stages == tuple(expected), f"setting {number}: {options}"
            assert trace.id == ids[row], f"setting {number}"
            assert sorted(one.id for one in trace.candidates) == list(range(V))
            shown = torch.tensor([one.probabilities for one in sorted(trace.candidates, key=lambda o: o.id)])
            for stage, (name, chain) in enumerate(expected.items()):
                wanted = chain(torch.tensor([prompts[row]]), logits[row : row + 1].double())[0].softmax(-1)
                message = f"setting {number}, {name}: {options}"
                torch.testing.assert_close(shown[:, stage].double(), wanted, atol=1e-6, rtol=0, msg=message)
                assert trace.n_left[stage] == (wanted > 0).sum(), message
            # The draw: the first id at which the running sum passes the uniform number.
            sums = shown[:, -1].double().cumsum(0)
            assert abs(float(sums[trace.id]) - trace.uniform) < 1e-5 or trace.id == int(
                (sums > trace.uniform * sums[-1]).nonzero()[0]
            ), f"setting {number}"


def test_the_candidates_are_the_most_likely_before_and_after() -> None:
    logits = torch.arange(V, dtype=torch.float32)[None] / 2
    seen = torch.zeros(1, V, dtype=torch.bool)
    seen[0, -2:] = True  # the favourites, which the penalty sets back
    chain = list(stages(logits, SamplingOptions(temperature=1, top_k=0, repetition_penalty=4.0), seen))
    trace = trace_choice(chain, torch.tensor([0.01]), torch.tensor([4]), 0, n=2)
    assert [one.id for one in trace.candidates] == [V - 1, V - 2, V - 3, V - 4, 4]


def test_greedy_leaves_the_favourite_alone() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    (trace,) = (
        trace_choice(chain, torch.tensor([0.9]), torch.tensor([1]), 0, 3)
        for chain in [list(stages(logits, SamplingOptions(temperature=0)))]
    )
    assert (trace.stages, trace.n_left) == (("model", "temperature"), (3, 1))
    assert [one.probabilities[-1] for one in trace.candidates] == [1.0, 0.0, 0.0]


@torch.no_grad()
def test_a_record_follows_the_engine(loud_model: GPT2LMHead) -> None:
    """Two rows, over a moved window: each step's record is that of the ids that it yields."""
    prompts = [BYTES.encode("to be" * 12), BYTES.encode("or")]
    record, options = ChoiceRecord(3), SamplingOptions(temperature=1.3, top_k=9, seed=4)
    rows, n = [list(prompt) for prompt in prompts], 0
    for step in generate(loud_model, prompts, options, 9, watch=record):
        n += 1
        for row, (ids, token) in enumerate(zip(rows, step.ids, strict=True)):
            if step.window_moved and len(ids) > 64:
                del ids[:-32]
            logits = loud_model(torch.tensor([ids]))[0, -1]
            assert record.traces[row].id == token
            assert record.logprobs[row] == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)
            ids.append(token)
    assert n == 9 and len(rows[0]) < 64
