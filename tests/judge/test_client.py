"""What is sent to a judge's server, where to, and what each of its answers is taken for."""

import re
import time
from dataclasses import replace

import pytest
from judge_server import BROKEN, BUSY, FINAL, MODEL, SLOW, Judge, judging

from gpt2cli.errors import ServiceError, UsageError
from gpt2cli.judge.client import (
    FORMS,
    MAX_TOKENS,
    PATIENCE,
    THINKING_TOKENS,
    Habits,
    ask,
    patience_of,
    persist,
    require_model,
)
from gpt2cli.judge.exchange import LostError
from gpt2cli.judge.received import Answer, RefusedError, TooLongError
from gpt2cli.judge.rubric import SCHEMA, parse_score
from gpt2cli.judge.server import lost, ollama, openai_compatible
from gpt2cli.templates import judge_messages

QUICK = replace(PATIENCE, stall=5.0, window=5.0, total=5.0, first_pause=0.0, attempts=3)
HASTY = replace(QUICK, stall=0.3, window=0.3, total=0.3)
MESSAGES = judge_messages("ask", "", "right", "said")


def asked(server: Judge, **more: object) -> Answer:
    more = {"patience": QUICK, **more}
    return ask(openai_compatible(server.base_url, MODEL), MESSAGES, SCHEMA, 7, **more)  # type: ignore[arg-type]


def test_the_question_is_bounded_cold_and_seeded() -> None:
    with judging() as server:
        answer = asked(server)
        (request,) = server.requests
        assert request.path == "/v1/chat/completions"
        body = request.body
        assert (body["model"], body["temperature"], body["seed"], body["stream"]) == (MODEL, 0, 7, False)
        assert body["max_tokens"] == MAX_TOKENS and body["messages"] == MESSAGES
        assert body["response_format"]["json_schema"] == {
            "name": "judgement",
            "strict": True,
            "schema": SCHEMA,
        }
        assert answer.finish_reason == "stop" and parse_score(answer.text).score <= 100
        assert answer.prompt_tokens == server.tokens(MESSAGES)


@pytest.mark.parametrize(
    ("refuses", "form"),
    [
        (set(), 0),
        ({"bounds"}, 1),
        ({"json_schema"}, 2),
        ({"json_schema", "schema"}, 3),
        ({"json_schema", "json_object"}, 4),
    ],
)
def test_a_weaker_form_is_found_and_remembered(refuses: set[str], form: int) -> None:
    habits = Habits()
    with judging() as server:
        server.refuses = refuses
        asked(server, habits=habits)
        assert len(server.requests) == form + 1 and habits.form == form
        asked(server, habits=habits)
        assert len(server.requests) == form + 2
        last = server.requests[-1].body
        assert {k: v for k, v in last.items() if k == "response_format"} == FORMS[form](SCHEMA)


def test_a_refusal_that_is_not_of_the_form_is_this_questions_alone() -> None:
    habits = Habits()
    with judging("400") as server:
        with pytest.raises(RefusedError, match="the server answers 400: this question is not welcome"):
            asked(server, habits=habits)
        assert len(server.requests) == 1 and habits.form == 0 and asked(server, habits=habits).text


def test_a_refusal_of_every_form_is_found_once() -> None:
    habits = Habits()
    with judging() as server:
        server.refuses = {"json_schema", "json_object", ""}
        for n in (len(FORMS), len(FORMS) + 1):
            with pytest.raises(RefusedError, match="response_format is not supported"):
                asked(server, habits=habits)
            assert len(server.requests) == n


def test_the_other_name_of_the_limit_is_learnt_and_leaves_room_to_think() -> None:
    habits = Habits()
    with judging() as server:
        server.limit = "max_completion_tokens"
        for n in (2, 3):
            assert asked(server, habits=habits).text and len(server.requests) == n
        body = server.requests[-1].body
    assert body["max_completion_tokens"] == THINKING_TOKENS and "max_tokens" not in body and habits.form == 0


@pytest.mark.parametrize("kind", [*BUSY, *BROKEN, *SLOW])
def test_what_another_attempt_may_mend_is_lost(kind: str) -> None:
    with judging(kind) as server:
        began = time.monotonic()
        with pytest.raises(LostError) as caught:
            asked(server, patience=HASTY if kind in SLOW else QUICK)
        assert time.monotonic() - began < 5 and caught.value.why and not caught.value.is_down
        server.is_dead = False
        assert asked(server).text, "and the next one is right"


LOST = {
    "hang": "timed out|not finished within 0 seconds",
    "slow": "not finished within 0 seconds",
    "cut": "the answer ended early",
    "cut-unmarked": "the answer is not JSON",
    "reset": "the answer ended early",
    "huge": "the answer has more than 1 MiB",
    "html": "the answer is not JSON: <!DOCTYPE html>",
    "error": "the server reports an error: the runner has stopped",
    "500": "the server answers 500: out of luck",
    "no-choices": "the answer holds no message",
    "gzip": "the answer is compressed",
}


@pytest.mark.parametrize("kind", LOST)
def test_it_says_why(kind: str) -> None:
    with judging(kind) as server, pytest.raises(LostError) as caught:
        asked(server, patience=HASTY if kind in SLOW else QUICK)
    assert re.match(LOST[kind], caught.value.why)


def test_too_long_for_the_context() -> None:
    with judging("400-context") as server:
        with pytest.raises(TooLongError, match="exceeds the available context size"):
            asked(server)
        assert len(server.requests) == 1, "a weaker form would not help"


ENDS = {
    "redirect": (
        "redirects to another place",
        "http://127.0.0.1:9/v1/chat/completions",
        "--base-url http://127.0.0.1:9/v1",
    ),
    "401": ("the server refuses us (401)", "Incorrect API key provided", "OPENAI_API_KEY"),
    "403": ("the server refuses us (403)", "no", "OPENAI_API_KEY"),
    "404": ("there is no /chat/completions (404)", "no such page", "address"),
    "404-model": (f"has no model {MODEL}", "", "--judge-model NAME"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_what_no_attempt_will_mend(kind: str) -> None:
    with judging(kind) as server, pytest.raises(ServiceError) as caught:
        asked(server)
    what, why, fix = ENDS[kind]
    assert what in caught.value.what and caught.value.why == why and fix in caught.value.fix


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\n")
    with judging("ok") as server:
        judge = openai_compatible(server.base_url, MODEL)
        ask(judge, MESSAGES, SCHEMA, 1, patience=QUICK)
        assert server.requests[0].headers["authorization"] == "Bearer sk-secret"
        assert "sk-secret" not in repr(judge) + str(lost(judge, LostError("x")))
        monkeypatch.setenv("OLLAMA_HOST", server.base_url.removesuffix("/v1"))
        ask(ollama(MODEL), MESSAGES, SCHEMA, 1, patience=QUICK)
        assert "authorization" not in server.requests[1].headers
        server.answer = lambda fields: {}
        server.script = ["401"]
        monkeypatch.setitem(FINAL, "401", (401, {}, b'{"error": "wrong key: sk-secret"}'))
        with pytest.raises(ServiceError) as caught:
            ask(judge, MESSAGES, SCHEMA, 1, patience=QUICK)
        assert caught.value.why == "wrong key: (the key)"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u00e9\u200b")
    with pytest.raises(UsageError) as wrong:
        openai_compatible("http://x/v1", MODEL)
    assert wrong.value.what == "OPENAI_API_KEY has characters that HTTP cannot carry"


def test_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with judging() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.base_url.removesuffix("/v1"))
        server.models = ["mistral:7b", "llama3.2:latest"]
        require_model(ollama("llama3.2"), QUICK)
        require_model(ollama("mistral:7b"), QUICK)
        with pytest.raises(ServiceError, match="Ollama has no model mistral: it has mistral:7b") as caught:
            require_model(ollama("mistral"), QUICK)
        assert caught.value.fix == "ollama pull mistral"
        with pytest.raises(ServiceError) as caught:
            require_model(openai_compatible(server.base_url, "gpt"), QUICK)
        assert (
            caught.value.what.endswith("has no model gpt") and caught.value.fix == "--judge-model mistral:7b"
        )
        server.models = []
        with pytest.raises(ServiceError) as caught:
            require_model(ollama("a b"), QUICK)
        assert caught.value.fix == "ollama pull 'a b'"


@pytest.mark.parametrize("kind", ["html", "hang", "redirect", "503", "400", "404", "cut", "reset"])
def test_a_list_of_models_that_cannot_be_had_is_no_verdict(kind: str) -> None:
    with judging() as server:
        server.listing = [kind]
        require_model(openai_compatible(server.base_url, MODEL), HASTY if kind == "hang" else QUICK)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "listed",
    [b'{"data": []}', b'{"data": null}', b"{}", b'[{"id": "m"}]', b'{"data": [1, {"id": 2}]}', b"\xff"],
)
def test_a_list_that_says_nothing_is_no_verdict_but_for_ollama(
    listed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with judging() as server:
        server.listed = listed
        require_model(openai_compatible(server.base_url, MODEL), QUICK)
        monkeypatch.setenv("OLLAMA_HOST", server.base_url.removesuffix("/v1"))
        if listed in (b'{"data": []}', b'{"data": null}'):
            with pytest.raises(ServiceError, match="Ollama has no model"):
                require_model(ollama(MODEL), QUICK)
        else:
            require_model(ollama(MODEL), QUICK)


@pytest.mark.parametrize("kind", ["401", "403"])
def test_a_server_that_refuses_us_is_said_before_anything_is_asked(kind: str) -> None:
    with judging() as server:
        server.listing = [kind]
        with pytest.raises(ServiceError, match="refuses us"):
            require_model(openai_compatible(server.base_url, MODEL), QUICK)


def test_pauses_double_and_a_server_may_ask_for_its_own() -> None:
    waits = [None, None, 7.5, None, None]
    pauses: list[float] = []

    def fail() -> None:
        raise LostError("no", waits[len(pauses)])

    patience = replace(PATIENCE, first_pause=1.0, longest_pause=5.0, attempts=6, longest_wait=10.0)
    waits.append(None)
    with pytest.raises(LostError):
        persist(fail, patience, pauses.append)
    bounds = [(0.5, 1), (1, 2), (7.5, 7.5), (2.5, 5), (2.5, 5)]
    assert len(pauses) == 5 and all(a <= p <= b for p, (a, b) in zip(pauses, bounds, strict=True))
    pauses.clear()
    waits[0] = 11.0
    with pytest.raises(LostError):
        persist(fail, patience, pauses.append)
    assert pauses == [], "too long to wait for"


def test_time_outs_are_counted_for_themselves() -> None:
    told: list[str] = []
    errors = [LostError("busy"), LostError("slow", is_slow=True), LostError("slow", is_slow=True)]

    def fail() -> None:
        raise errors[len(told)]

    with pytest.raises(LostError):
        persist(fail, replace(PATIENCE, first_pause=0.0), lambda seconds: None, told.append)
    assert told == [
        "no answer yet: busy; trying again, 2 of 6",
        "no answer yet: slow; trying again, 3 of 3",
    ]


def test_retry_after_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"3": 3.0, " 0 ": 0.0, "soon": None, "٣": None, "Fri, 31 Dec 1999 23:59:59 GMT": 0.0}
    for value, wait in answers.items():
        monkeypatch.setitem(
            BUSY,
            "429",
            (429, {"Retry-After": value.encode().decode("latin-1")}, b""),
        )
        with judging("429") as server, pytest.raises(LostError) as caught:
            asked(server)
        assert caught.value.wait == wait, value


def test_a_time_out_of_ones_own() -> None:
    assert patience_of(None) == PATIENCE
    assert (patience_of(7).stall, patience_of(7).total) == (7, 7)
    assert PATIENCE.total and patience_of(2 * PATIENCE.total).connect == PATIENCE.connect
