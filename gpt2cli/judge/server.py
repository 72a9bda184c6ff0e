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
from gpt2cli.judge.exchange import LostError

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
    """Its address for people."""
    return server.base_url


def not_running(server: Server, why: str) -> ServiceError:
    if re.search("certificate|ssl|tls", why, re.I):
        return ServiceError(
            f"no secure connection to {shown(server)}",
            why,
            "http:// for https:// if it has no certificate, or export SSL_CERT_FILE=ITS-CERTIFICATE",
        )
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


def elsewhere(server: Server, place: str) -> ServiceError:
    """A redirect, which is not followed: what a judge is sent goes nowhere else."""
    name = "export OLLAMA_HOST=" if server.is_ollama else "--base-url "
    there = ""
    with suppress(httpx.InvalidURL):
        there = str(httpx.URL(f"{server.base_url}/chat/completions").join(place)) if place else ""
    fix = f"{name}{shlex.quote(there.removesuffix('/').removesuffix('/chat/completions'))}"
    return ServiceError(
        f"{shown(server)} redirects to another place",
        there or "it does not say to which",
        fix if re.match(r"https?://[\w.:\[\]-]+(/|$)", there) else f"name the address itself: {name}...",
    )


def lost(server: Server, error: LostError) -> ServiceError:
    """No answer comes any more, and why."""
    return ServiceError(f"the judge at {shown(server)} is lost", error.why, way_on(server, error))


def way_on(server: Server, error: LostError) -> str:
    """What to do about a question without an answer."""
    again = "then the same command again: what is judged by now is kept"
    if error.is_down:
        return f"{'ollama serve' if server.is_ollama else 'start it'}, {again}"
    if error.is_slow:
        return "--timeout SECONDS waits longer, --parallel 1 asks for less at once; what is judged is kept"
    if error.wait:
        return f"wait {error.wait:.0f} seconds, {again}"
    return f"look into the server's own log, {again}"


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
    said = re.sub("//.*@", "//", address)  # before it may stand a password
    try:
        url = httpx.URL(address.strip())
    except httpx.InvalidURL as error:
        if said != address:
            raise _with_password(name, said) from None
        raise UsageError(f"{name}: {said} is not an address", str(error), _EXAMPLE[name]) from None
    if url.userinfo:
        raise _with_password(name, said)
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
        raise UsageError(f"{name}: {said} is not an address of a server", fix=_EXAMPLE[name])
    return str(url.copy_with(query=None, fragment=None)).rstrip("/")


def _with_password(name: str, said: str) -> UsageError:
    return UsageError(
        f"{name}: {said} was given with a name or a password in it",
        "it would stand in the list of processes, and is not sent",
        "leave out what stands before the @; a key goes into OPENAI_API_KEY",
    )


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
