"""Owns what is said to a judge's server, an OpenAI-compatible one, and how often.

What comes back is read by `received.py`, where the kinds of failure are named.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gpt2cli import __version__
from gpt2cli.judge.exchange import Hangup, LostError, Received, exchange
from gpt2cli.judge.received import (
    Answer,
    answer_of,
    names_of,
    raise_busy,
    raise_for_good,
    raise_refused,
    refuses_form,
    wants_other_limit,
)
from gpt2cli.judge.server import Server, no_model, not_running
from gpt2cli.patience import Patience

TEMPERATURE = 0.0
MAX_TOKENS = 512  # of an answer; the longest that the schema allows has about 150
THINKING_TOKENS = 4096  # where the server counts what a model thinks before it answers
# A judge on a CPU may think for minutes before its first byte.
PATIENCE = Patience(stall=300.0, window=300.0, slowest=0.0, total=300.0)
LIST_SECONDS = 10.0  # to say which models there are needs no thinking
TIME_OUTS = 2  # of one question; a third would cost as long again
_BOUNDS = ("minimum", "maximum", "minLength", "maxLength")
X = TypeVar("X")


@dataclass
class Habits:
    """What one question teaches for the next: how this server lets itself be asked."""

    form: int = 0  # of FORMS
    limits_thinking: bool = False  # it wants max_completion_tokens


def patience_of(seconds: float | None) -> Patience:
    """How long to wait for one answer; None is the default."""
    return PATIENCE if seconds is None else replace(PATIENCE, stall=seconds, window=seconds, total=seconds)


def require_model(server: Server, patience: Patience = PATIENCE, hangup: Hangup | None = None) -> None:
    """Raise ServiceError where the server does not run, refuses us, or says that it lacks the model.

    Whatever else becomes of the list of models is no verdict: only /chat/completions is
    indispensable, and says more. `judge` calls this by itself.
    """
    seconds = min(LIST_SECONDS, patience.total or LIST_SECONDS)
    brief = replace(patience, stall=seconds, window=seconds, total=seconds)
    try:
        received = _exchange(server, "GET", "models", None, brief, hangup)
    except LostError as error:
        if error.is_down:
            raise not_running(server, error.why) from None
        return
    raise_refused(server, received)
    names = names_of(server, received)
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
        limit = (
            {"max_completion_tokens": THINKING_TOKENS}
            if habits.limits_thinking
            else {"max_tokens": MAX_TOKENS}
        )
        question = {
            "model": server.model,
            "messages": messages,
            "temperature": TEMPERATURE,
            "seed": seed,
            **limit,
            "stream": False,
            **FORMS[form](schema),
        }
        content = json.dumps(question).encode("ascii")
        received = _exchange(server, "POST", "chat/completions", content, patience, hangup)
        raise_for_good(server, received)
        if "max_tokens" in limit and wants_other_limit(received):
            habits.limits_thinking = True
            continue
        if refuses_form(received):
            if form + 1 < len(FORMS):
                form += 1
                continue
            habits.form = form  # a weaker one there is not, so that the next question need not look for it
        raise_busy(received)
        answer = answer_of(received)
        habits.form = form
        return answer


def persist(
    do: Callable[[], X],
    patience: Patience,
    pause: Callable[[float], object],
    tell: Callable[[str], None] = lambda text: None,
) -> X:
    """Try until it works: pauses double, with jitter, or are as long as the server asks for.

    `tell` is told of each attempt in vain that is followed by another one. Raises the last LostError
    after `patience.attempts`, after TIME_OUTS, or when the server asks for too long a pause.
    """
    n_slow = 0
    for attempt in range(patience.attempts):
        try:
            return do()
        except LostError as error:
            n_slow += error.is_slow
            is_last = attempt + 1 == patience.attempts or n_slow == TIME_OUTS
            if is_last or (error.wait or 0.0) > patience.longest_wait:
                raise
            n_all = attempt + TIME_OUTS if error.is_slow else patience.attempts
            tell(f"no answer yet: {error.why}; trying again, {attempt + 2} of {n_all}")
            # Jitter, so that questions that failed together do not come back together.
            doubled = min(patience.first_pause * 2**attempt, patience.longest_pause)
            pause(doubled * random.uniform(0.5, 1.0) if error.wait is None else error.wait)
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


def _exchange(
    server: Server,
    method: str,
    place: str,
    content: bytes | None,
    patience: Patience,
    hangup: Hangup | None,
) -> Received:
    headers = {"user-agent": f"gpt2cli/{__version__}", "content-type": "application/json"}
    headers |= {"authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    url = f"{server.base_url}/{place}"
    return exchange(method, url, headers, content, patience, hangup or Hangup(), server.api_key)
