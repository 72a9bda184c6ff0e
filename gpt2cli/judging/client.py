"""Owns what is said to a judge's server, an OpenAI-compatible one, and what its answers mean.

Three kinds of failure: `LostError` (exchange.py), which another attempt may mend; `TooLongError` and
`RefusedError`, which are this question's alone; and ServiceError, which is the end.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gpt2cli import __version__
from gpt2cli.errors import ServiceError
from gpt2cli.judging.exchange import Hangup, LostError, Received, exchange
from gpt2cli.judging.server import Server, lost, no_model, not_running, shown
from gpt2cli.weights.patience import Patience, retry_after

TEMPERATURE = 0.0
MAX_TOKENS = 512  # of an answer; the longest that the schema allows has about 150
# A judge on a CPU may think for minutes before its first byte.
PATIENCE = Patience(stall=300.0, window=300.0, slowest=0.0, total=300.0)
LIST_SECONDS = 30.0  # to say which models there are needs no thinking
_BUSY = {408, 409, 425, 429}  # and everything from 500 on
_TOO_LONG = re.compile(
    r"context.{0,20}(length|size|window)|exceeds?.{0,40}context|n_ctx|num_ctx|too long|too many tokens", re.I
)
_NO_SUCH_MODEL = re.compile(
    r"\bmodel\b.*(not found|not exist|unknown|not loaded)|(no such|unknown) model", re.I
)
_SCHEMA_WORDS = re.compile(r"response_format|json_schema|json_object|grammar|schema", re.I)
_BOUNDS = ("minimum", "maximum", "minLength", "maxLength")
X = TypeVar("X")


class TooLongError(Exception):
    """The server says that the question does not fit into its context."""


class RefusedError(Exception):
    """The server does not take this question, whatever it is asked a second time."""


@dataclass(frozen=True)
class Answer:
    text: str
    prompt_tokens: int | None  # that the server has read, where it says so
    finish_reason: str  # "length" is an answer cut short


@dataclass
class Habits:
    """What one question teaches for the next: how this server lets itself be asked for JSON."""

    form: int = 0  # of FORMS


def patience_of(seconds: float | None) -> Patience:
    """How long to wait for one answer; None is the default."""
    return PATIENCE if seconds is None else replace(PATIENCE, stall=seconds, window=seconds, total=seconds)


def require_model(server: Server, patience: Patience = PATIENCE, hangup: Hangup | None = None) -> None:
    """Raise ServiceError where the server does not run or lacks the model. `judge` calls it by itself.

    A server that has no list of models passes: only /chat/completions is indispensable.
    """
    hangup = hangup or Hangup()
    seconds = min(LIST_SECONDS, patience.total or LIST_SECONDS)
    brief = replace(patience, stall=seconds, window=seconds, total=seconds)

    def look() -> Received:
        try:
            received = exchange("GET", f"{server.base_url}/models", _headers(server), None, brief, hangup)
        except LostError as error:
            if error.is_down:
                raise not_running(server, error.why) from None
            raise
        _raise_for_good(server, received, listing=True)
        if received.status != 501:  # which says that there is no list
            _raise_busy(server, received)
        return received

    try:
        names = persist(lambda: _names(server, look()), patience, hangup.over.wait)
    except LostError as error:
        raise lost(server, error.why) from None
    if names is not None and not {server.model, f"{server.model}:latest"} & set(names):
        raise no_model(server, names)


def ask(
    server: Server,
    messages: list[dict[str, str]],
    schema: dict[str, Any],
    seed: int,
    *,
    patience: Patience = PATIENCE,
    habits: Habits | None = None,
    hangup: Hangup | None = None,
) -> Answer:
    """Ask once. Where the server refuses a schema, a weaker form of it is tried, and remembered.

    Raises LostError, TooLongError, RefusedError, and ServiceError.
    """
    habits = habits or Habits()
    form = habits.form
    while True:
        question = {
            "model": server.model,
            "messages": messages,
            "temperature": TEMPERATURE,
            "seed": seed,
            "max_tokens": MAX_TOKENS,
            "stream": False,
            **FORMS[form](schema),
        }
        url, headers = f"{server.base_url}/chat/completions", _headers(server)
        content = json.dumps(question).encode("ascii")
        received = exchange("POST", url, headers, content, patience, hangup or Hangup())
        _raise_for_good(server, received)
        if form + 1 < len(FORMS) and _refuses_form(server, received):
            form += 1
            continue
        _raise_busy(server, received)
        answer = _answer(server, received)
        habits.form = form
        return answer


def persist(do: Callable[[], X], patience: Patience, pause: Callable[[float], object]) -> X:
    """Try until it works: pauses double, with jitter, or are as long as the server asks for.

    Raises the last LostError after `patience.attempts`, or when the server asks for too long a pause.
    """
    for attempt in range(patience.attempts):
        try:
            return do()
        except LostError as error:
            if attempt + 1 == patience.attempts or (error.wait or 0.0) > patience.longest_wait:
                raise
            # Jitter, so that questions that failed together do not come back together.
            doubled = min(patience.first_pause * 2**attempt, patience.longest_pause) * random.uniform(
                0.5, 1.0
            )
            pause(doubled if error.wait is None else error.wait)
    raise AssertionError("there is no patience without an attempt")


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "judgement", "strict": True, "schema": schema},
        }
    }


def _unbounded(schema: dict[str, Any]) -> dict[str, Any]:
    properties = {
        name: {key: value for key, value in about.items() if key not in _BOUNDS}
        for name, about in schema["properties"].items()
    }
    return _strict({**schema, "properties": properties})


# The ways of asking for JSON, strongest first; which one a server knows, it shows by refusing the others.
FORMS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (
    _strict,
    _unbounded,  # OpenAI's own strict schemas know no bounds of texts
    lambda schema: {"response_format": {"type": "json_object", "schema": schema}},  # llama-cpp-python
    lambda schema: {"response_format": {"type": "json_object"}},
    lambda schema: {},
)


def _headers(server: Server) -> dict[str, str]:
    headers = {"user-agent": f"gpt2cli/{__version__}", "content-type": "application/json"}
    return headers | ({"authorization": f"Bearer {server.api_key}"} if server.api_key else {})


def _refuses_form(server: Server, received: Received) -> bool:
    said = _message(server, received)
    if _TOO_LONG.search(said):
        return False
    return received.status in (400, 422) or (received.status >= 500 and bool(_SCHEMA_WORDS.search(said)))


def _raise_for_good(server: Server, received: Received, *, listing: bool = False) -> None:
    """Raise ServiceError for what no other attempt and no other question would change."""
    status, said = received.status, _message(server, received)
    if status in (401, 403):
        raise ServiceError(
            f"{shown(server)}: the server refuses us ({status})",
            said or "it wants to know who asks",
            "export OPENAI_API_KEY=..." if not server.is_ollama else "look at OLLAMA_HOST",
        )
    if listing and 300 <= status < 400:
        raise ServiceError(
            f"{shown(server)}: redirects to another place",
            "the address of a judge is to be named as it is: what it is sent goes nowhere else",
            "name the address itself: --base-url URL",
        )
    if listing:
        return
    if status < 500 and "error" in (_json(received) or {}) and _NO_SUCH_MODEL.search(said):
        raise no_model(server, [])
    if status in (404, 405, 501):
        raise ServiceError(
            f"{shown(server)}: there is no /chat/completions ({status})",
            said or "it is not an OpenAI-compatible server, or its address goes on",
            f"--base-url {shown(server)}/v1"
            if not server.base_url.endswith("/v1")
            else "look at the address",
        )


def _raise_busy(server: Server, received: Received) -> None:
    status = received.status
    if status in _BUSY or status >= 500 or 300 <= status < 400:
        said = _message(server, received)
        if _TOO_LONG.search(said):
            raise TooLongError(said)
        why = f"the server answers {status}" + (f": {said}" if said else "")
        raise LostError(why, retry_after(received.headers.get("retry-after", "")))


def _names(server: Server, received: Received) -> list[str] | None:
    """The models that a server lists; None where it has no list. Raises LostError for what is none."""
    if received.status in (404, 405, 501):
        return None
    value = _json(received)
    if received.status != 200 or value is None or "error" in value:
        raise LostError(_message(server, received) or "its list of models is not readable")
    listed = value.get("data")
    if not isinstance(listed, list):
        return [] if server.is_ollama else None  # Ollama writes null where it has none
    return [model["id"] for model in listed if isinstance(model, dict) and isinstance(model.get("id"), str)]


def _answer(server: Server, received: Received) -> Answer:
    said = _message(server, received)
    if received.status == 413 or (received.status >= 400 and _TOO_LONG.search(said)):
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
    return Answer(text or "", count if is_count else None, str(reason or ""))


def _json(received: Received) -> dict[str, Any] | None:
    try:
        value = json.loads(received.body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _message(server: Server, received: Received) -> str:
    """What a server says of an error, short and without our key; "" where it says nothing."""
    value = _json(received)
    if value is not None:
        error = value.get("error") or value.get("detail") or value.get("message") or ""
        said = error.get("message", error) if isinstance(error, dict) else error
        said = said if isinstance(said, str) else json.dumps(said)
    else:
        said = received.body[:500].decode("utf-8", "replace")
    if server.api_key:
        said = said.replace(server.api_key, "(the key)")
    return " ".join(said.split())[:200]
