"""Where a judge is, in every way in which an address is given, and what is said when it is not there."""

import socket
from dataclasses import replace

import pytest

from gpt2cli.errors import ServiceError, UsageError
from gpt2cli.judge.client import (
    PATIENCE,
    require_model,
)
from gpt2cli.judge.exchange import LostError
from gpt2cli.judge.server import Server, elsewhere, lost, ollama, openai_compatible

QUICK = replace(PATIENCE, stall=5.0, window=5.0, total=5.0, first_pause=0.0, attempts=3)

# What OLLAMA_HOST may hold: any part may be missing, and it may say where Ollama listens, which is not
# where to call.
LOCAL = "http://127.0.0.1"
ADDRESSES = {
    "": f"{LOCAL}:11434",
    "gpu-box": "http://gpu-box:11434",
    "10.0.0.7": "http://10.0.0.7:11434",
    "10.0.0.7:81": "http://10.0.0.7:81",
    "gpu-box:8000": "http://gpu-box:8000",
    ":8000": f"{LOCAL}:8000",
    "gpu-box:70000": "http://gpu-box:11434",
    "gpu-box:x": "http://gpu-box:11434",
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
    "[::]:8000": "http://[::1]:8000",
}


@pytest.mark.parametrize("value", ADDRESSES)
def test_every_form_of_ollamas_host(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", value)
    server = ollama("m")
    assert server == Server(f"{ADDRESSES[value]}/v1", "m", None, True)


def test_addresses_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert openai_compatible("http://h:1/v1/ ", "m").base_url == "http://h:1/v1"
    for wrong in ("h:8080", "ftp://h", "", "http://", "http://h:99999999/", "file:///x"):
        with pytest.raises(UsageError, match="--base-url") as caught:
            openai_compatible(wrong, "m")
        assert caught.value.fix == "--base-url http://127.0.0.1:8080/v1"
    for password in ("ftp://me:secret@h", "http://me:sec/ret@h", "http://secret@h/v1", "http://:secret@h"):
        with pytest.raises(UsageError) as caught:
            openai_compatible(password, "m")
        assert "secret" not in str(caught.value) and "ret@" not in str(caught.value)
    assert caught.value.what == "--base-url: http://h was given with a name or a password in it"
    monkeypatch.setenv("OLLAMA_HOST", "ftp://h")
    with pytest.raises(UsageError, match="OLLAMA_HOST"):
        ollama("m")
    monkeypatch.delenv("OLLAMA_HOST")
    with pytest.raises(UsageError, match="has no name"):
        ollama(" ")


@pytest.mark.parametrize(
    ("place", "fix"),
    [
        ("/new/chat/completions", "--base-url http://h:1/new"),
        ("https://h/v1/chat/completions/", "--base-url https://h/v1"),
        ("", "name the address itself: --base-url ..."),
        ("ftp://h/x", "name the address itself: --base-url ..."),
        ("http://[", "name the address itself: --base-url ..."),
    ],
)
def test_a_redirect_is_named_with_the_address_to_give(place: str, fix: str) -> None:
    assert elsewhere(openai_compatible("http://h:1/v1", "m"), place).fix == fix


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_server_that_does_not_run_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{closed_port()}")
    with pytest.raises(ServiceError) as caught:
        require_model(ollama("llama3.2"), PATIENCE)
    assert "Ollama does not answer at http://127.0.0.1:" in caught.value.what
    assert caught.value.fix == "ollama serve" and "refused" in caught.value.why
    with pytest.raises(ServiceError) as caught:
        require_model(openai_compatible(f"http://127.0.0.1:{closed_port()}/v1", "m"), PATIENCE)
    assert "no server answers at" in caught.value.what and "--base-url URL" in caught.value.fix


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (LostError("x", is_down=True), "ollama serve, then the same command again"),
        (LostError("x", is_slow=True), "--timeout SECONDS waits longer"),
        (LostError("x", 900.0), "wait 900 seconds, then the same command again"),
        (LostError("x"), "look into the server's own log, then the same command again"),
    ],
)
def test_the_way_on_fits_the_fault(error: LostError, fix: str) -> None:
    assert lost(ollama("m"), error).fix.startswith(fix)
