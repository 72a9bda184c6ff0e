"""The endpoint of an LLM judge: address, model and API key, and errors that say how to fix them."""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx2

from gpt2cli.errors import ServiceError, UsageError

OLLAMA_PORT = 11434


@dataclass(frozen=True)
class JudgeServer:
    """`base_url` is the API root; the key is sent but never printed."""

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    is_ollama: bool = False

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, where no proxy applies."""
        return urlsplit(self.base_url).hostname in ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def ollama(model: str) -> JudgeServer:
    """Ollama at OLLAMA_HOST, or at 127.0.0.1:11434, without a key. Raises UsageError."""
    # As Ollama's own client reads it: any part may be missing, and 0.0.0.0 is a listening address.
    value = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'").strip()
    scheme, _, place = value.rpartition("://")
    if place.count(":") > 1 and "[" not in place:
        place = f"[{place}]"  # a bare IPv6 address
    if match := re.fullmatch(r"(\[.*\]|[^:/@]*)(?::(\d*))?(/.*)?", place):
        host, port, path = match.groups(default="")
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        port = port or ("" if scheme else str(OLLAMA_PORT))
        place = f"{host}:{port}{path}" if port else f"{host}{path}"
    url = f"{scheme or 'http'}://{place}"
    example = f"export OLLAMA_HOST=127.0.0.1:{OLLAMA_PORT}"
    return JudgeServer(_checked_url(url, "OLLAMA_HOST", example), _model_name(model), is_ollama=True)


def openai_compatible(base_url: str, model: str) -> JudgeServer:
    """Any other server; `base_url` ends before /chat/completions, as for OpenAI's own clients.

    The key comes from OPENAI_API_KEY, if it is set. Raises UsageError.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch("[!-~]*", key):  # the message must not show it
        raise UsageError("OPENAI_API_KEY has characters that no HTTP header may have", fix="set it again")
    url = _checked_url(base_url, "--base-url", "--base-url http://127.0.0.1:8080/v1")
    url = url.removesuffix("/chat/completions").rstrip("/")  # a copied address may go on
    return JudgeServer(url, _model_name(model), key or None)


def not_running(server: JudgeServer, why: str) -> ServiceError:
    if re.search("certificate|ssl|tls", why, re.I):
        fix = "http:// for https:// if it has no certificate, or export SSL_CERT_FILE=ITS-CERTIFICATE"
        return ServiceError(f"no secure connection to {server.base_url}", why, fix)
    if server.is_ollama:
        return ServiceError(f"Ollama does not answer at {server.base_url}", why, "ollama serve")
    fix = "start it, or name another one: --base-url URL"
    return ServiceError(f"no server answers at {server.base_url}", why, fix)


def no_model(server: JudgeServer, names: Sequence[str] = ()) -> ServiceError:
    """The server lacks the model; `names` are those that it lists."""
    why = f"it has {', '.join(names[:8])}" if names else ""
    if server.is_ollama:
        why = why or f"there is none of that name at {server.base_url}"
        return ServiceError(
            f"Ollama has no model {server.model}", why, f"ollama pull {shlex.quote(server.model)}"
        )
    fix = f"--judge-model {shlex.quote(names[0])}" if names else "name one that it has: --judge-model NAME"
    return ServiceError(f"{server.base_url} has no model {server.model}", why, fix)


def _checked_url(address: str, name: str, example: str) -> str:
    """The address without a trailing slash. Raises UsageError."""
    address = address.strip()
    try:
        parts = urlsplit(address)
        is_good = parts.scheme in ("http", "https") and bool(httpx2.URL(address).host) and parts.port != 0
    except (ValueError, httpx2.InvalidURL):
        is_good = False
    if not is_good or "@" in address:
        shown = re.sub("//.*@", "//", address)  # a password may stand before the @
        why = "a name or a password in it would show in the list of processes" if "@" in address else ""
        raise UsageError(f"{name}: {shown} is not the address of a server", why, example)
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")


def _model_name(model: str) -> str:
    if not model.strip() or not model.isprintable():
        raise UsageError("the judge's model has no name", fix="--ollama llama3.2")
    return model.strip()
