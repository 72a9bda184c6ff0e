"""What keeps an exchange private: the key, certificates, proxies."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from judge_server import BUSY, MODEL, Judge, judging

from gpt2cli.errors import ServiceError, UsageError
from gpt2cli.judge import exchange as exchanging
from gpt2cli.judge.client import (
    PATIENCE,
    ask,
    require_model,
)
from gpt2cli.judge.exchange import Hangup, LostError, exchange, is_loopback
from gpt2cli.judge.received import Answer
from gpt2cli.judge.rubric import SCHEMA
from gpt2cli.judge.server import openai_compatible
from gpt2cli.templates import judge_messages

QUICK = replace(PATIENCE, stall=5.0, window=5.0, total=5.0, first_pause=0.0, attempts=3)
MESSAGES = judge_messages("ask", "", "right", "said")


def asked(server: Judge) -> Answer:
    return ask(openai_compatible(server.base_url, MODEL), MESSAGES, SCHEMA, 7, patience=QUICK)


KEY = "sk/se\\cr'et\"12"  # what JSON and Python quote
QUOTED = json.dumps(KEY)
BODIES = {
    "plain": f"<html>{' ' * 480}{KEY}</html>",
    "JSON": json.dumps({"error": {"message": f"Bad key: Bearer {KEY}"}}),
    "slashes": json.dumps({"error": KEY}).replace("/", "\\/"),
    "JSON in JSON": json.dumps({"choices": [{"message": {"content": json.dumps({"reason": KEY})}}]}),
    "a name": json.dumps({KEY: 1}),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_key_is_taken_out_where_bytes_come_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = {"Location": f"http://x/{KEY}", "X-Echo": KEY}
    monkeypatch.setitem(BUSY, "500", (500, head, BODIES[name].encode()))
    with judging() as server:
        server.listing = ["500"]
        url, headers = f"{server.base_url}/models", {"authorization": f"Bearer {KEY}"}
        received = exchange("GET", url, headers, None, QUICK, Hangup(), KEY)
        assert b"(the key)" in received.body and b"12" not in received.body
        assert received.headers["x-echo"] == "(the key)" and KEY not in str(received.headers)
        server.listing = ["bad-head"]
        with pytest.raises(LostError) as caught:
            exchange("GET", url, headers, None, QUICK, Hangup(), KEY)
        assert "(the key)" in caught.value.why and "cr" not in caught.value.why
        server.listing = ["500"]
        short = exchange("GET", url, headers, None, QUICK, Hangup(), "e")
        assert short.body == BODIES[name].encode(), "a key that is no secret does not spoil answers"


def test_certificates_are_read_for_https_alone_and_said_to_be_unreadable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bad.pem").write_text("nothing")
    for name in ("bad.pem", "absent.pem"):
        exchanging._trust.cache_clear()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
        with judging() as server:
            assert asked(server).text
        with pytest.raises(UsageError, match="the certificates that SSL_CERT_FILE") as caught:
            require_model(openai_compatible("https://127.0.0.1:9/v1", "m"))
        assert caught.value.fix.startswith("unset SSL_CERT_FILE")
    monkeypatch.delenv("SSL_CERT_FILE")
    exchanging._trust.cache_clear()


def test_a_server_without_tls_is_told_from_one_that_does_not_run() -> None:
    with judging() as server, pytest.raises(ServiceError, match="no secure connection to https") as caught:
        require_model(openai_compatible(server.base_url.replace("http", "https", 1), MODEL))
    assert "http:// for https://" in caught.value.fix


def test_a_proxy_of_no_use_is_said_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "ftp://me:secret@proxy:1")
    with pytest.raises(UsageError, match="the proxy that the environment names") as caught:
        require_model(openai_compatible("http://judge.invalid/v1", "m"), QUICK)
    assert "secret" not in str(caught.value) and "NO_PROXY=judge.invalid" in caught.value.fix


def test_a_proxy_is_not_asked_for_our_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with judging() as server:
        assert asked(server).text
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "a.localhost", "0.0.0.0"):
        assert is_loopback(host)
    for host in ("example.org", "10.0.0.1", "localhost.example.org", "::2", ""):
        assert not is_loopback(host)
