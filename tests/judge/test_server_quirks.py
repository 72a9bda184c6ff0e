"""Servers that refuse a parameter or a form, and models that think before they answer."""

import asyncio
import json

import pytest
from asking_judge import MESSAGES, ask, at, ollama_at
from judge_server import BUSY, FINAL, judging

from gpt2cli.judge.chat_api import MAX_TOKENS, THINKING_TOKENS, JudgeReply
from gpt2cli.judge.client import JudgeClient
from gpt2cli.judge.grade import GRADE_SCHEMA, parse_grade


def test_a_parameter_that_the_server_refuses_is_left_out_from_then_on() -> None:
    said: list[str] = []
    with judging() as server:
        server.unknown = {"temperature", "seed"}

        async def asking() -> list[JudgeReply]:
            async with JudgeClient(at(server), 5.0, 0, said.append) as client:
                return [await client.ask(MESSAGES, GRADE_SCHEMA, 7) for _ in range(2)]

        replies = asyncio.run(asking())
        assert [parse_grade(reply.text).score <= 100 for reply in replies] == [True, True]
        bodies = [request.body for request in server.requests]
    assert [sorted({"temperature", "seed", "max_tokens"} & set(body)) for body in bodies] == [
        ["max_tokens", "seed", "temperature"],
        ["max_tokens", "temperature"],
        ["max_tokens"],
        ["max_tokens"],
    ]
    schema = {"name": "judgement", "strict": True, "schema": GRADE_SCHEMA}
    assert all(body["response_format"]["json_schema"] == schema for body in bodies), "as strict as before"
    assert len(said) == 2 and "refuses seed" in said[0] and "refuses temperature" in said[1]


REFUSALS = {  # of OpenAI, of a FastAPI server, of a gateway
    "param": {"error": {"message": "Only the default (1) value is supported.", "param": "temperature"}},
    "detail": {"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs are not permitted"}]},
    "message": {"message": "temperature: must be 1 for this model"},
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_it_is_recognised_however_it_is_said(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status = 422 if kind == "detail" else 400
    monkeypatch.setitem(FINAL, "400", (status, {}, json.dumps(REFUSALS[kind]).encode()))
    with judging("400") as server:
        assert parse_grade(ask(at(server)).text)
        first, second = (request.body for request in server.requests)
    assert set(first) - set(second) == {"temperature"}


def test_openais_newer_name_of_the_limit_takes_its_place() -> None:
    with judging() as server:
        server.unknown, server.limit = {"max_tokens", "temperature"}, "max_completion_tokens"
        assert parse_grade(ask(at(server), n=2).text)
        bodies = [request.body for request in server.requests]
    assert len(bodies) == 4 and bodies[-1]["max_completion_tokens"] == THINKING_TOKENS
    assert "max_tokens" not in bodies[-1] and bodies[-1]["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize("is_ollama", [False, True])
@pytest.mark.parametrize(("thinks", "limits"), [(2000, [512, 4096]), (9000, [512, 4096, 16384])])
def test_a_model_that_thinks_gets_room_once(
    thinks: int, limits: list[int], is_ollama: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with judging() as server:
        server.thinks = thinks
        where = ollama_at(server, monkeypatch) if is_ollama else at(server)
        assert parse_grade(ask(where, n=2).text)
        bodies = [request.body for request in server.requests]
    fields = [body["options"] if is_ollama else body for body in bodies]
    assert [one["num_predict" if is_ollama else "max_tokens"] for one in fields] == [*limits, limits[-1]]
    if is_ollama:
        assert [one["num_ctx"] - one["num_predict"] for one in fields] == [4096 - MAX_TOKENS] * len(fields)


def test_a_model_that_thinks_on_and_on_is_no_judge_and_says_why() -> None:
    with judging() as server:
        server.thinks = 50_000
        reply = ask(at(server))
        assert (reply.refusal, len(server.requests)) == ("unscored", 3)
        assert "still thinking after 16,384 tokens" in reply.text and reply.thinking.startswith("Let me see.")
    with judging() as server:
        server.thinks, server.context = 2000, 3000
        reply = ask(at(server))
        assert (reply.refusal, len(server.requests)) == ("unscored", 2)
        assert "still thinking after 512 tokens: serve it with a larger context" in reply.text


def test_an_empty_answer_gets_room_once_whatever_the_server_says_of_its_end() -> None:
    with judging("nothing", "ok", "nothing", "nothing") as server:
        assert parse_grade(ask(at(server)).text)
        assert [request.body["max_tokens"] for request in server.requests] == [MAX_TOKENS, THINKING_TOKENS]
        reply = ask(at(server))
        assert (reply.text, reply.refusal, len(server.requests)) == ("", "", 4)


def test_an_answer_among_the_thoughts_alone_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM gives it where its parser waits for the end of a thought that never began."""
    good = json.dumps({"reason": "r", "relevance": 1, "correctness": 2, "clarity": 3, "score": 4.5})
    for message, expected in (
        ({"content": None, "reasoning_content": good}, ("", good)),
        ({"reasoning": good}, ("", good)),
        ({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": good}]}, (good, "")),
    ):
        body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
        monkeypatch.setitem(BUSY, "html", (200, {}, body))
        with judging("html") as server:
            reply = ask(at(server))
            assert (reply.text, reply.thinking) == expected and len(server.requests) == 1
