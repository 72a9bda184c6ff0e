"""Where a judge is, in every way in which an address is given, and what is said when it is not there."""

import asyncio
import socket

import pytest

from gpt2cli.errors import ServiceError, UsageError
from gpt2cli.judge.client import JudgeClient
from gpt2cli.judge.endpoint import JudgeServer, ollama, openai_compatible

# What OLLAMA_HOST may hold: any part may be missing, and it may say where Ollama listens, which is not
# where to call.
LOCAL = "http://127.0.0.1"
ADDRESSES = {
    "": f"{LOCAL}:11434",
    "gpu-box": "http://gpu-box:11434",
    "10.0.0.7": "http://10.0.0.7:11434",
    "10.0.0.7:81": "http://10.0.0.7:81",
    "gpu-box:80": "http://gpu-box:80",
    "gpu-box:8000": "http://gpu-box:8000",
    ":8000": f"{LOCAL}:8000",
    "fe80::7": "http://[fe80::7]:11434",
    "[fe80::7]": "http://[fe80::7]:11434",
    "[fe80::7]:8000": "http://[fe80::7]:8000",
    "\t gpu-box\n": "http://gpu-box:11434",
    "'gpu-box'": "http://gpu-box:11434",
    "http://gpu-box": "http://gpu-box",
    "https://gpu-box": "https://gpu-box",
    "https://gpu-box:8000": "https://gpu-box:8000",
    "http://gpu-box/behind/": "http://gpu-box/behind",
    "0.0.0.0": f"{LOCAL}:11434",
    "0.0.0.0:8000": f"{LOCAL}:8000",
    "http://0.0.0.0:8000": f"{LOCAL}:8000",
    "::": "http://[::1]:11434",
    "[::]:8000": "http://[::1]:8000",
}


@pytest.mark.parametrize("value", ADDRESSES)
def test_every_form_of_ollamas_host(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", value)
    assert ollama("m") == JudgeServer(ADDRESSES[value], "m", None, is_ollama=True)


@pytest.mark.parametrize("value", ["ftp://h", "h:70000", "h:x", "["])
def test_an_ollama_host_that_is_no_address(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", value)
    with pytest.raises(UsageError, match=r"^OLLAMA_HOST: ") as caught:
        ollama("m")
    assert caught.value.fix == "export OLLAMA_HOST=127.0.0.1:11434"


@pytest.mark.parametrize(
    "wrong", ["h:8080", "ftp://h", "", "http://", "http://h:99999999/", "file:///x", "h"]
)
def test_a_base_url_that_is_no_address(wrong: str) -> None:
    assert openai_compatible("http://h:1/v1/ ", "m").base_url == "http://h:1/v1"
    with pytest.raises(UsageError, match=r"^--base-url: ") as caught:
        openai_compatible(wrong, "m")
    assert caught.value.fix == "--base-url http://127.0.0.1:8080/v1"


@pytest.mark.parametrize(
    "address", ["ftp://me:secret@h", "http://me:sec/ret@h", "http://secret@h/v1", "http://:secret@h"]
)
def test_a_password_is_refused_and_not_shown(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", address)
    for call in (lambda: openai_compatible(address, "m"), lambda: ollama("m")):
        with pytest.raises(UsageError, match="a name or a password in it") as caught:
            call()
        assert "secret" not in str(caught.value) and "ret@" not in str(caught.value)


def test_a_model_and_a_key_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (" ", "a\x1b[2J"):
        with pytest.raises(UsageError, match="has no name"):
            ollama(name)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u00e9\u200b")
    with pytest.raises(UsageError) as caught:
        openai_compatible("http://x/v1", "m")
    assert caught.value.what.startswith("OPENAI_API_KEY") and "sk-" not in str(caught.value)


def test_which_servers_are_on_this_machine() -> None:
    for host in ("localhost", "LOCALHOST", "127.0.0.1", "[::1]", "0.0.0.0"):
        assert openai_compatible(f"http://{host}:8080/v1", "m").is_local
    for host in ("example.org", "10.0.0.1", "localhost.example.org", "[::2]"):
        assert not openai_compatible(f"http://{host}:8080/v1", "m").is_local


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_server_that_does_not_run_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def require_model(server: JudgeServer) -> None:
        async with JudgeClient(server) as client:
            await client.require_model()

    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{closed_port()}")
    with pytest.raises(ServiceError) as caught:
        asyncio.run(require_model(ollama("llama3.2")))
    assert "Ollama does not answer at http://127.0.0.1:" in caught.value.what
    assert caught.value.fix == "ollama serve" and "refused" in caught.value.why
    with pytest.raises(ServiceError) as caught:
        asyncio.run(require_model(openai_compatible(f"http://127.0.0.1:{closed_port()}/v1", "m")))
    assert "no server answers at" in caught.value.what and "--base-url URL" in caught.value.fix


def test_an_address_that_goes_on_to_the_request_is_cut_back() -> None:
    for end in ("/chat/completions", "/chat/completions/", ""):
        assert openai_compatible(f"http://127.0.0.1:8080/v1{end}", "m").base_url == "http://127.0.0.1:8080/v1"
