"""Owns what a judge's server means by its responses: an answer, a model's name, or one kind of failure.

Three kinds: `LostError` (exchange.py), which another attempt may mend; `TooLongError` and
`RefusedError`, which are one question's alone; and ServiceError, which is the end.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from gpt2cli.errors import ServiceError
from gpt2cli.judge.exchange import LostError, Received
from gpt2cli.judge.server import Server, elsewhere, no_model, shown
from gpt2cli.patience import retry_after

_BUSY = {408, 409, 425, 429}  # and everything from 500 on
_TOO_LONG = re.compile(
    r"context.{0,20}(length|size|window)|exceeds?.{0,40}context|n_ctx|num_ctx|too long|too many tokens", re.I
)
_NO_SUCH_MODEL = re.compile(
    r"\bmodel\b.*(not found|not exist|unknown|not loaded)|(no such|unknown) model", re.I
)
_FORM_WORDS = re.compile(
    r"response.?format|json.?(schema|object)|grammar|schema|structured"
    r"|(unsupported|unknown|unrecogni[sz]ed|unexpected|extra|additional)\W+(\w+\W+){0,2}"
    r"(field|param|argument|propert|input|key)",
    re.I,
)
_LIMIT_WORDS = re.compile(r"max_completion_tokens", re.I)
_SAID = 4000  # characters of an error in which its kind is looked for; a person is shown less


class TooLongError(Exception):
    """The server says that the question does not fit into its context."""


class RefusedError(Exception):
    """The server does not take this question, whatever it is asked a second time."""


@dataclass(frozen=True)
class Answer:
    text: str
    prompt_tokens: int | None  # that the server has read, where it says so
    finish_reason: str  # "length" is an answer cut short


def answer_of(received: Received) -> Answer:
    said = _message(received)
    if received.status == 413 or (received.status >= 400 and _TOO_LONG.search(_message(received, _SAID))):
        raise TooLongError(said or "the question is too large for the server")
    if received.status >= 400:
        raise RefusedError(f"the server answers {received.status}: {said}")
    value = _json(received)
    if value is None:
        raise LostError(f"the answer is not JSON: {said}")
    if value.get("error"):
        raise (
            TooLongError(said)
            if _TOO_LONG.search(said)
            else LostError(f"the server reports an error: {said}")
        )
    try:
        choice = value["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise LostError("the answer holds no message") from None
    if not isinstance(text, str | None):
        raise LostError("the answer's message is no text")
    usage = value.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    is_count = isinstance(count, int) and not isinstance(count, bool)
    # Servers that do not count write 0.
    return Answer(text or "", (count or None) if is_count else None, str(reason or ""))


def names_of(server: Server, received: Received) -> list[str] | None:
    """The models that a server lists; None where it has no list that says anything."""
    value = _json(received)
    if received.status != 200 or value is None or value.get("error"):
        return None
    listed = value.get("data", False)
    if server.is_ollama and listed is None:  # what it writes where it has none
        return []
    if not isinstance(listed, list):
        return None
    names = [model.get("id") for model in listed if isinstance(model, dict)]
    texts = [name for name in names if isinstance(name, str)]
    return texts if texts or (server.is_ollama and not listed) else None


def raise_refused(server: Server, received: Received) -> None:
    if received.status in (401, 403):
        raise ServiceError(
            f"{shown(server)}: the server refuses us ({received.status})",
            _message(received) or "it wants to know who asks",
            "export OPENAI_API_KEY=..." if not server.is_ollama else "look at OLLAMA_HOST",
        )


def raise_for_good(server: Server, received: Received) -> None:
    """Raise ServiceError for what no other attempt and no other question would change."""
    status, said = received.status, _message(received)
    raise_refused(server, received)
    if 300 <= status < 400:
        raise elsewhere(server, received.headers.get("location", ""))
    if status < 500 and (_json(received) or {}).get("error") and _NO_SUCH_MODEL.search(said):
        raise no_model(server, [])
    if status in (404, 405, 501):
        raise ServiceError(
            f"{shown(server)}: there is no /chat/completions ({status})",
            said or "it is not an OpenAI-compatible server, or its address goes on",
            f"--base-url {shown(server)}/v1"
            if not server.base_url.endswith("/v1")
            else "look at the address",
        )


def raise_busy(received: Received) -> None:
    status = received.status
    if status in _BUSY or status >= 500:
        said = _message(received)
        if _TOO_LONG.search(said):
            raise TooLongError(said)
        why = f"the server answers {status}" + (f": {said}" if said else "")
        raise LostError(why, retry_after(received.headers.get("retry-after", "")))


def wants_other_limit(received: Received) -> bool:
    return received.status in (400, 422) and bool(_LIMIT_WORDS.search(_message(received, _SAID)))


def refuses_form(received: Received) -> bool:
    said = _message(received, _SAID)
    may_be = received.status in (400, 422) or received.status >= 500
    return may_be and bool(_FORM_WORDS.search(said)) and not _TOO_LONG.search(said)


def _json(received: Received) -> dict[str, Any] | None:
    try:
        value = json.loads(received.body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _message(received: Received, longest: int = 200) -> str:
    """What a server says of an error; "" where it says nothing."""
    value = _json(received)
    if value is not None:
        error = value.get("error") or value.get("detail") or value.get("message") or ""
        said = error.get("message", error) if isinstance(error, dict) else error
        said = said if isinstance(said, str) else json.dumps(said)
    else:
        said = received.body[:_SAID].decode("utf-8", "replace")
    return " ".join(said.split())[:longest]
