"""What is sent to a judge's server, what each of its answers is taken for, and that the key stays private."""

import json
import re
import time
from pathlib import Path

import pytest
from asking_judge import MESSAGES, ask, at, ollama_at, require_model
from judge_server import BROKEN, BUSY, FINAL, MODEL, SLOW, judging

from gpt2cli.errors import ServiceError, UsageError
from gpt2cli.judge.chat_api import MAX_TOKENS, OLLAMA, OPENAI, THINKING_TOKENS, NoReplyError
from gpt2cli.judge.client import ATTEMPTS, TIMED_OUT_ATTEMPTS
from gpt2cli.judge.endpoint import openai_compatible
from gpt2cli.judge.grade import GRADE_SCHEMA, parse_grade


def test_the_request_is_bounded_cold_and_seeded() -> None:
    with judging() as server:
        reply = ask(at(server))
        (request,) = server.requests
        body = request.body
        assert request.path == "/v1/chat/completions" and body["messages"] == MESSAGES
        assert (body["model"], body["temperature"], body["seed"], body["stream"]) == (MODEL, 0, 7, False)
        assert body["max_tokens"] == MAX_TOKENS
        schema = {"name": "judgement", "strict": True, "schema": GRADE_SCHEMA}
        assert body["response_format"] == {"type": "json_schema", "json_schema": schema}
        assert reply.finish_reason == "stop" and parse_grade(reply.text).score <= 100
        assert reply.prompt_tokens == server.tokens(MESSAGES) and reply.attempts == 1


def test_ollama_is_asked_by_its_own_interface_with_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    with judging() as server:
        reply = ask(ollama_at(server, monkeypatch), num_ctx=8192)
        (request,) = server.requests
        body = request.body
        assert request.path == "/api/chat" and body["messages"] == MESSAGES and body["format"] == GRADE_SCHEMA
        assert (body["model"], body["stream"], body["truncate"]) == (MODEL, False, False)
        assert body["options"] == {"temperature": 0, "seed": 7, "num_predict": MAX_TOKENS, "num_ctx": 8192}
        assert reply.finish_reason == "stop" and parse_grade(reply.text).score <= 100
        assert reply.prompt_tokens == server.tokens(MESSAGES)
        refused = ask(ollama_at(server, monkeypatch), num_ctx=100)
        assert (refused.refusal, refused.prompt_tokens) == ("truncated", None)
        assert "the input length exceeds the context length" in refused.text


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
    with judging() as server:
        server.refuses = refuses
        assert ask(at(server), n=2).attempts == 1
        assert len(server.requests) == form + 2
        expected = OPENAI.forms[form](7, GRADE_SCHEMA, 0)
        assert server.requests[-1].body.get("response_format") == expected.get("response_format")


@pytest.mark.parametrize(("refuses", "form"), [({"schema"}, 1), ({"schema", "json"}, 2)])
def test_an_old_ollama_is_asked_in_a_weaker_form(
    refuses: set[str], form: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with judging() as server:
        server.refuses = refuses
        assert ask(ollama_at(server, monkeypatch), n=2).text and len(server.requests) == form + 2
        assert server.requests[-1].body.get("format") == (None, "json", None)[form]
        assert len(OLLAMA.forms) == 3


def test_a_model_that_thinks_has_another_limit_and_room_to_think() -> None:
    with judging() as server:
        server.limit = "max_completion_tokens"
        assert ask(at(server), n=2).text and len(server.requests) == len(OPENAI.forms) + 1
        body = server.requests[-1].body
    assert body["max_completion_tokens"] == THINKING_TOKENS and not {"max_tokens", "temperature"} & set(body)


def test_a_refusal_that_is_not_of_the_form_is_this_questions_alone() -> None:
    with judging("400") as server:
        reply = ask(at(server))
        assert (reply.refusal, len(server.requests)) == ("unscored", 1)
        assert reply.text == "the server answers 400: this question is not welcome"


def test_a_refusal_of_every_form_is_found_once() -> None:
    with judging() as server:
        server.refuses = {"json_schema", "json_object", ""}
        reply = ask(at(server), n=2)
        assert reply.refusal == "unscored" and "the server answers 400" in reply.text
        assert len(server.requests) == len(OPENAI.forms) + 1


def test_too_long_for_the_context_is_not_tried_in_a_weaker_form() -> None:
    with judging("400-context") as server:
        reply = ask(at(server))
        assert reply.refusal == "truncated" and "exceeds the available context size" in reply.text
        assert len(server.requests) == 1


@pytest.mark.parametrize("kind", [*BUSY, *BROKEN, "slow", "slow-head", "endless"])
def test_what_another_attempt_may_mend_is_tried_again(kind: str) -> None:
    with judging(kind) as server:
        if kind == "die":
            with pytest.raises(NoReplyError, match="ended early"):
                ask(at(server))
            assert len(server.requests) == ATTEMPTS
        else:
            began = time.monotonic()
            reply = ask(at(server), timeout=1.0 if kind in SLOW else 5.0)
            assert time.monotonic() - began < 10 and not reply.refusal and parse_grade(reply.text)
            assert (reply.attempts, len(server.requests)) == (2, 2)


WHY = {
    "hang": "timed out: no answer within 0.2 s",
    "slow": "timed out: no answer within 0.2 s",
    "cut": "the answer ended early",
    "cut-unmarked": "the answer is not JSON",
    "reset": "the answer ended early",
    "huge": "the answer has more than 1 MiB",
    "html": "the answer is not JSON: <!DOCTYPE html>",
    "error": "the server reports an error: the runner has stopped",
    "500": "the server answers 500: out of luck",
    "no-choices": "the answer holds no message",
    "gzip": "the answer is not JSON",
}


@pytest.mark.parametrize("kind", WHY)
def test_it_says_why_after_the_last_attempt(kind: str) -> None:
    with judging(*[kind] * ATTEMPTS) as server, pytest.raises(NoReplyError) as caught:
        ask(at(server), timeout=0.2 if kind in SLOW else 5.0)
    assert re.match(WHY[kind], caught.value.why) and not caught.value.is_down
    assert caught.value.is_timeout == (kind in SLOW)
    assert len(server.requests) == (TIMED_OUT_ATTEMPTS if kind in SLOW else ATTEMPTS)


ENDS = {
    "redirect": ("redirects to http://127.0.0.1:9/v1/chat/completions", "", "check --base-url"),
    "401": ("the server denies access (401)", "Incorrect API key provided", "OPENAI_API_KEY"),
    "403": ("the server denies access (403)", "no", "OPENAI_API_KEY"),
    "404": ("there is no /chat/completions (404)", "no such page", "--base-url"),
    "404-model": (f"has no model {MODEL}", "", "--judge-model NAME"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_what_no_attempt_will_mend(kind: str) -> None:
    with judging(kind) as server, pytest.raises(ServiceError) as caught:
        ask(at(server))
    what, why, fix = ENDS[kind]
    assert what in caught.value.what and why in caught.value.why and fix in caught.value.fix
    assert len(server.requests) == 1


def test_pauses_double_and_a_server_may_ask_for_its_own(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUSY, "429", (429, {"Retry-After": "7"}, b""))
    with judging("500", "500", "429", "500", "500", "500") as server, pytest.raises(NoReplyError):
        ask(at(server))
    bounds = [(0.25, 0.5), (0.5, 1), (7, 7), (2, 4), (4, 8)]
    assert [low <= pause <= high for pause, (low, high) in zip(pauses, bounds, strict=True)] == [True] * 5


@pytest.mark.parametrize(
    ("value", "n_requests"), [("3", 2), (" 0 ", 2), ("soon", 2), ("٣", 2), ("120", 2), ("121", 1)]
)
def test_retry_after_is_read_and_a_long_one_is_not_waited_for(
    value: str, n_requests: int, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = value.encode().decode("latin-1")
    monkeypatch.setitem(BUSY, "429", (429, {"Retry-After": shown}, b""))
    with judging("429") as server:
        if n_requests == 1:
            with pytest.raises(NoReplyError) as caught:
                ask(at(server))
            assert caught.value.wait == 121.0 and pauses == []
        else:
            assert ask(at(server)).attempts == 2
            (pause,) = pauses
            assert pause == float(value) if value.strip().isascii() and value != "soon" else pause <= 0.5
        assert len(server.requests) == n_requests


def test_time_outs_are_counted_for_themselves() -> None:
    with judging("500", "500", "hang", "500", "hang", "ok") as server, pytest.raises(NoReplyError):
        ask(at(server), timeout=1.0)
    assert len(server.requests) == 5, "two time-outs end it, whatever lies between"


def test_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with judging() as server:
        server.models = ["mistral:7b", "llama3.2:latest"]
        for name in ("llama3.2", "mistral:7b"):
            require_model(ollama_at(server, monkeypatch, name))
        with pytest.raises(ServiceError, match="Ollama has no model mistral: it has mistral:7b") as caught:
            require_model(ollama_at(server, monkeypatch, "mistral"))
        assert caught.value.fix == "ollama pull mistral"
        with pytest.raises(ServiceError, match=r"has no model gpt: it has mistral:7b, llama3\.2") as caught:
            require_model(openai_compatible(server.base_url, "gpt"))
        assert caught.value.fix == "--judge-model mistral:7b"
        server.models = []
        with pytest.raises(ServiceError) as caught:
            require_model(ollama_at(server, monkeypatch, "a b"))
        assert caught.value.fix == "ollama pull 'a b'"


@pytest.mark.parametrize("kind", ["html", "hang", "redirect", "503", "400", "404", "cut", "reset"])
def test_without_a_list_of_models_the_server_passes(kind: str) -> None:
    with judging() as server:
        server.listing = [kind]
        require_model(at(server), timeout=0.3 if kind == "hang" else 5.0)
        assert len(server.requests) == 1


LISTS = [
    b'{"data": []}',
    b'{"data": null}',
    b"{}",
    b'[{"id": "m"}]',
    b'{"data": [1]}',
    b'{"data": 7}',
    b"\xff",
]


@pytest.mark.parametrize("listed", LISTS)
def test_a_list_that_says_nothing_passes_but_for_ollama(
    listed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with judging() as server:
        server.listed = listed
        require_model(at(server))
        if listed in LISTS[:2]:
            with pytest.raises(ServiceError, match="Ollama has no model"):
                require_model(ollama_at(server, monkeypatch))
        else:
            require_model(ollama_at(server, monkeypatch))


@pytest.mark.parametrize("kind", ["401", "403"])
def test_a_server_that_denies_access_is_said_before_anything_is_asked(kind: str) -> None:
    with judging() as server:
        server.listing = [kind]
        with pytest.raises(ServiceError, match="denies access"):
            require_model(at(server))


KEY = "sk/se\\cr'et\"zzy"  # what JSON and Python quote
BODIES = {
    "plain": f"<html>{' ' * 150}{KEY}</html>",
    "JSON": json.dumps({"error": {"message": f"Bad key: Bearer {KEY}"}}),
    "slashes": json.dumps({"error": KEY}).replace("/", "\\/"),
    "JSON in JSON": json.dumps({"error": json.dumps({"reason": KEY})}),
    "a name": json.dumps({"error": {KEY: 1}}),
}


@pytest.mark.parametrize("body", BODIES)
def test_the_key_is_sent_and_taken_out_of_what_comes_back(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    monkeypatch.setitem(FINAL, "400", (400, {"X-Echo": KEY}, BODIES[body].encode()))
    monkeypatch.setitem(FINAL, "redirect", (307, {"Location": f"http://x/{KEY}"}, b""))
    with judging("400") as server:
        assert KEY not in repr(at(server))
        reply = ask(at(server))
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert "(the key)" in reply.text and "zzy" not in reply.text and "cr" not in reply.text
        server.script = ["redirect"]
        with pytest.raises(ServiceError) as moved:
            ask(at(server))
        assert "(the key)" in moved.value.what and "zzy" not in str(moved.value)
        server.script = ["bad-head"] * ATTEMPTS
        with pytest.raises(NoReplyError) as caught:
            ask(at(server))
        assert "cr" not in caught.value.why


def test_ollama_is_sent_no_key_and_a_short_one_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "e")
    with judging("400") as server:
        assert "the server answers" in ask(at(server)).text, "a key that is no secret does not spoil answers"
        assert ask(ollama_at(server, monkeypatch)).text
        assert "authorization" not in server.requests[-1].headers


def test_certificates_are_read_for_https_alone_and_said_to_be_unreadable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bad.pem").write_text("nothing")
    for name in ("bad.pem", "absent.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
        with judging() as server:
            assert ask(at(server)).text
        with pytest.raises(UsageError, match="the certificates that SSL_CERT_FILE") as caught:
            require_model(openai_compatible("https://127.0.0.1:9/v1", "m"))
        assert caught.value.fix.startswith("unset SSL_CERT_FILE")


def test_a_server_without_tls_is_told_from_one_that_does_not_run() -> None:
    with judging() as server, pytest.raises(ServiceError, match="no secure connection to https") as caught:
        require_model(openai_compatible(server.base_url.replace("http", "https", 1), MODEL))
    assert "http:// for https://" in caught.value.fix


def test_a_proxy_of_no_use_is_said_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "ftp://me:secret@proxy:1")
    with pytest.raises(UsageError, match="the proxy that the environment names") as caught:
        require_model(openai_compatible("http://judge.invalid/v1", "m"))
    assert "secret" not in str(caught.value) and "NO_PROXY" in caught.value.fix


def test_a_proxy_is_not_asked_for_our_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with judging() as server:
        assert ask(at(server)).text
