"""Owns where a judge's server is: its address, the model's name, and the key, which is never shown.

Also what a person is told when there is nothing, or not what is needed.
"""

import ipaddress
import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from gpt2cli.errors import ServiceError, UsageError

OLLAMA_PORT = 11434
_PORT_OF = {"http": 80, "https": 443}  # where OLLAMA_HOST is a URL without one


@dataclass(frozen=True)
class Server:
    base_url: str  # what /chat/completions is added to
    model: str
    api_key: str | None = field(default=None, repr=False)
    is_ollama: bool = False


def ollama(model: str) -> Server:
    """The Ollama at OLLAMA_HOST, or at 127.0.0.1:11434. It is sent no key. Raises UsageError."""
    return Server(f"{_ollama_address(os.environ.get('OLLAMA_HOST', ''))}/v1", _named(model), is_ollama=True)


def openai_compatible(base_url: str, model: str) -> Server:
    """Any other server; `base_url` ends before /chat/completions, as for OpenAI's own clients.

    The key is OPENAI_API_KEY's, where there is one. Raises UsageError.
    """
    return Server(_checked(base_url, "--base-url"), _named(model), _key())


def shown(server: Server) -> str:
    """Its address for people: without a password."""
    return str(httpx.URL(server.base_url).copy_with(userinfo=b"", query=None, fragment=None))


def not_running(server: Server, why: str) -> ServiceError:
    if server.is_ollama:
        return ServiceError(f"Ollama does not answer at {shown(server)}", why, "ollama serve")
    return ServiceError(
        f"no server answers at {shown(server)}", why, "start it, or name another one: --base-url URL"
    )


def no_model(server: Server, names: Sequence[str]) -> ServiceError:
    """`names` are the models that are there, as far as the server says."""
    there = ", ".join(names[:8])
    if server.is_ollama:
        return ServiceError(
            f"Ollama has no model {server.model}",
            f"it has {there}" if there else f"at {shown(server)} there is none of that name",
            f"ollama pull {shlex.quote(server.model)}",
        )
    return ServiceError(
        f"{shown(server)} has no model {server.model}",
        f"it has {there}" if there else "",
        f"--judge-model {shlex.quote(names[0])}" if names else "name one that it has: --judge-model NAME",
    )


def lost(server: Server, why: str) -> ServiceError:
    again = "the same command again: what is judged by now is kept"
    return ServiceError(
        f"the judge at {shown(server)} is lost",
        why,
        f"ollama serve, then {again}" if server.is_ollama else f"when it is back, {again}",
    )


def _ollama_address(value: str) -> str:
    """What OLLAMA_HOST means, by the rules of Ollama's own client (envconfig.Host)."""
    value = value.strip().strip("\"'").strip()
    scheme, separator, rest = value.partition("://")
    if not separator:
        scheme, rest = "http", value
    default = _PORT_OF.get(scheme, OLLAMA_PORT) if separator else OLLAMA_PORT
    place, _, path = rest.partition("/")
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*):([^:]*)", place)
    host, port = (match[1].strip("[]"), match[2]) if match else (place.strip("[]"), "")
    number = int(port) if re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 65536 else default
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:  # every address of the machine is where it listens, not where to call
            host = "127.0.0.1" if address.version == 4 else "::1"
    host = f"[{host}]" if ":" in host else host or "127.0.0.1"
    return _checked(f"{scheme}://{host}:{number}/{path}", "OLLAMA_HOST")


def _checked(address: str, name: str) -> str:
    said = re.sub("//[^/@]*@", "//", address)  # it may hold a password
    try:
        url = httpx.URL(address.strip())
    except httpx.InvalidURL as error:
        raise UsageError(f"{name}: {said} is not an address", str(error), _EXAMPLE[name]) from None
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
        raise UsageError(f"{name}: {said} is not an address of a server", fix=_EXAMPLE[name])
    return str(url.copy_with(query=None, fragment=None)).rstrip("/")


_EXAMPLE = {
    "--base-url": "--base-url http://127.0.0.1:8080/v1",
    "OLLAMA_HOST": f"export OLLAMA_HOST=127.0.0.1:{OLLAMA_PORT}",
}


def _named(model: str) -> str:
    if not model.strip() or not model.isprintable():
        raise UsageError("the judge's model has no name", fix="--ollama llama3.2")
    return model.strip()


def _key() -> str | None:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch("[!-~]*", key):  # shown to nobody, not even in an error
        raise UsageError("OPENAI_API_KEY has characters that HTTP cannot carry", fix="set it again")
    return key or None
