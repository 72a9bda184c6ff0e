"""Many questions at once: every row says what it would say alone, and ends there too."""

from collections.abc import Sequence

import pytest
from words import BYTES

from gpt2cli.generation.batch import answer_batch, answer_prompts
from gpt2cli.generation.sampling import SamplingOptions
from gpt2cli.generation.stop_text import Continuation
from gpt2cli.model.gpt2 import GPT2LMHead

TOKENIZER = BYTES
GREEDY = SamplingOptions(temperature=0)
LENGTHS = (5, 60, 1, 33, 64, 7, 12)  # 64 is the whole context


def asked(n: int) -> list[int]:
    return [(7919 * i * n) % 256 for i in range(1, n + 1)]


def said(reply: Continuation) -> tuple[list[int], str, str]:
    return reply.ids, reply.text, reply.finish_reason


def alone(model: GPT2LMHead, question: Sequence[int], stops: Sequence[str] = ()) -> Continuation:
    found = answer_batch(model, TOKENIZER, [question], stops, GREEDY, 20, lambda: 0)
    assert found
    return found[0]


@pytest.mark.parametrize("n_rows", [1, 3, 16])
def test_batched_answers_are_those_of_each_alone(n_rows: int, loud_model: GPT2LMHead) -> None:
    questions = [asked(n) for n in LENGTHS]
    single = {i: alone(loud_model, question) for i, question in enumerate(questions)}
    stop_text = single[3].text[2:5]  # so that one of them ends by a stop text
    for stops in ((), (stop_text,)):
        wanted = {i: said(alone(loud_model, question, stops)) for i, question in enumerate(questions)}
        found = answer_prompts(
            loud_model,
            TOKENIZER,
            questions,
            stops=stops,
            options=GREEDY,
            max_new_tokens=20,
            n_rows=n_rows,
            stop=lambda: 0,
        )
        assert {i: said(reply) for i, reply in found} == wanted
    assert wanted[3][2] == "stop" and stop_text not in wanted[3][1]


def test_an_answer_ends_with_the_context_and_sees_all_of_its_question(loud_model: GPT2LMHead) -> None:
    for length, room in ((64, 1), (60, 5), (44, 20)):
        reply = alone(loud_model, asked(length))
        assert len(reply.ids) == min(room, 20) and reply.finish_reason == "length"


def test_a_stop_ends_it_with_whole_batches_only(loud_model: GPT2LMHead) -> None:
    calls = iter(range(100))
    found = answer_prompts(
        loud_model,
        TOKENIZER,
        [asked(n) for n in (3, 4, 5, 6)],
        stops=(),
        options=GREEDY,
        max_new_tokens=4,
        n_rows=2,
        stop=lambda: 15 if next(calls) > 5 else 0,
    )
    assert [i for i, _ in found] == [0, 1]
