"""The two HTTP APIs of LLM judges, and what their responses mean.

Most servers have OpenAI's /chat/completions. Ollama gets requests on its own /api/chat, because its /v1
ignores num_ctx: there, a prompt beyond the default context is truncated silently.
"""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from gpt2cli.errors import ServiceError
from gpt2cli.judge.endpoint import JudgeServer, no_model
from gpt2cli.judge.strict_json import is_unfinished_thought

TEMPERATURE = 0.0
MAX_TOKENS = 512  # of a reply; the longest that the schemas allow has about 150
THINKING_TOKENS = 4096  # where the server counts what a model thinks before it answers
LONGEST_THINKING = 16384
Object = dict[str, Any]


@dataclass(eq=False)
class NoReplyError(Exception):
    """No usable reply, but a retry may bring one."""

    why: str
    wait: float | None = None  # the server's Retry-After in seconds
    is_down: bool = False
    is_timeout: bool = False


@dataclass(frozen=True)
class JudgeReply:
    """The model's text; or, with a `refusal`, why the server refuses this one request."""

    text: str
    thinking: str = ""  # apart from the text, where the server gives it
    prompt_tokens: int | None = None  # as the server reports them
    cached_tokens: int = 0  # of the prompt; most servers count them in, some do not
    finish_reason: str = ""  # "" where the server gives none
    refusal: Literal["", "truncated", "unscored"] = ""
    attempts: int = 1

    @property
    def is_cut(self) -> bool:
        return self.finish_reason == "length"

    @property
    def lacks_room(self) -> bool:
        """Whether a model that thinks may have needed more tokens to come to its answer, or to its end."""
        if self.is_cut and (self.thinking or is_unfinished_thought(self.text)):
            return True
        # Some servers say "stop" all the same; others take a whole answer for thoughts.
        return not self.refusal and not self.text.strip() and not self.thinking.lstrip().startswith("{")


@dataclass(frozen=True)
class JudgeResponse:
    """An HTTP response, with the API key removed."""

    status: int
    body: str
    location: str = ""
    retry_after: str = ""

    def json(self) -> Object:
        """The body's JSON object; empty for anything else."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def message(self, longest: int = 4000) -> str:
        """What an error response says, on one line."""
        value = self.json()
        said: Any = value.get("error") or value.get("detail") or value.get("message") or ""
        if not value:
            said = self.body[:4000]
        if isinstance(said, dict):
            said = said.get("message", said)
        return " ".join((said if isinstance(said, str) else json.dumps(said)).split())[:longest]


@dataclass(frozen=True)
class ChatApi:
    """`forms` make the rest of a request's body from seed, schema and num_ctx.

    The strictest way to ask for JSON comes first; a server that refuses one is asked with the next.
    """

    path: str
    models_path: str
    forms: tuple[Callable[[int, Object, int], Object], ...]
    # Text, thinking, prompt tokens, those of them that were cached, finish reason.
    content: Callable[[Object], tuple[object, object, object, object, object]]


def refused_parameters(response: JudgeResponse, body: Object) -> set[str]:
    """The parameters of the request that an error names: some hosts know no seed, or only one temperature."""
    said = response.message()
    if response.status not in (400, 422) or _TOO_LONG.search(said):
        return set()
    error = response.json().get("error")
    named = error.get("param") if isinstance(error, dict) else None
    known = ({*body} | {*body.get("options", {})}) - _NEEDED
    return {named} if named in known else {name for name in known if re.search(rf"\b{name}\b", said)}


def adapt(body: Object, max_tokens: int, refused: Collection[str]) -> Object:
    """The request with another limit of the reply, and without the parameters that the server refuses."""
    limits = dict.fromkeys(("max_tokens", "num_predict"), max_tokens)
    limits["max_completion_tokens"] = max(max_tokens, THINKING_TOKENS)  # OpenAI's newer name
    if "max_tokens" in body and "max_tokens" in refused:
        body = {**body, "max_completion_tokens": 0}

    def adapted(fields: Object) -> Object:
        return {name: limits.get(name, value) for name, value in fields.items() if name not in refused}

    options = {"options": adapted(body["options"])} if "options" in body else {}
    return adapted(body) | options


def refuses_form(response: JudgeResponse) -> bool:
    said = response.message()
    may_be = response.status in (400, 422) or response.status >= 500
    return may_be and bool(_FORM_WORDS.search(said)) and not _TOO_LONG.search(said)


def read_reply(api: ChatApi, server: JudgeServer, response: JudgeResponse) -> JudgeReply:
    """Raises NoReplyError where a retry may help, and as `require_chat`."""
    require_chat(api, server, response)
    status, value, said = response.status, response.json(), response.message(200)
    if status == 413 or ((status >= 400 or value.get("error")) and _TOO_LONG.search(response.message())):
        return JudgeReply(f"too long for the judge: {said}", refusal="truncated")
    if status in (408, 409, 425, 429) or status >= 500:
        wait = float(response.retry_after) if re.fullmatch(r" *[0-9]{1,9} *", response.retry_after) else None
        raise NoReplyError(f"the server answers {status}" + (f": {said}" if said else ""), wait)
    if status >= 400:
        return JudgeReply(f"the server answers {status}: {said}", refusal="unscored")
    if not value or value.get("error"):
        raise NoReplyError(f"the {'server reports an error' if value else 'answer is not JSON'}: {said}")
    try:
        text, thinking, n_tokens, n_cached, reason = api.content(value)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise NoReplyError("the answer holds no message") from None
    if not isinstance(text, str | None):
        raise NoReplyError("the answer's message is not text")
    # A server that does not count says 0.
    return JudgeReply(
        text or "",
        thinking if isinstance(thinking, str) else "",
        n_tokens if type(n_tokens) is int and n_tokens > 0 else None,
        n_cached if type(n_cached) is int and n_cached > 0 else 0,
        str(reason or ""),
    )


def require_chat(api: ChatApi, server: JudgeServer, response: JudgeResponse) -> None:
    """Raise ServiceError for a response that no retry and no other question would change."""
    status, said, url = response.status, response.message(200), server.base_url
    check = "check OLLAMA_HOST" if server.is_ollama else "check --base-url"
    if status in (401, 403):
        fix = check if server.is_ollama else "export OPENAI_API_KEY=..."
        raise ServiceError(f"{url}: the server denies access ({status})", said or "it wants a key", fix)
    if 300 <= status < 400:
        why = "nothing is sent to an address that you did not give"
        raise ServiceError(f"{url} redirects to {response.location or 'another place'}", why, check)
    if status < 500 and response.json().get("error") and _NO_SUCH_MODEL.search(said):
        raise no_model(server)
    if status in (404, 405, 501):
        fix = check if server.is_ollama or url.endswith("/v1") else f"--base-url {url}/v1"
        raise ServiceError(f"{url}: there is no {api.path} ({status})", said or "it is another server", fix)


_NEEDED = {"model", "messages", "stream", "response_format", "format", "options", "num_ctx"}
_TOO_LONG = re.compile(
    r"context.{0,20}(length|size|window)|exceeds?.{0,40}context|n_ctx|num_ctx|too long|too many tokens", re.I
)
_NO_SUCH_MODEL = re.compile(
    r"\bmodel\b.*(not found|not exist|unknown|not loaded)|(no such|unknown) model", re.I
)
_FORM_WORDS = re.compile(
    r"\bformat\b|response.?format|json.?(schema|object)|grammar|schema|structured|max_completion_tokens"
    r"|(unsupported|unknown|unrecogni[sz]ed|unexpected|extra|additional)\W+(\w+\W+){0,2}"
    r"(field|param|argument|propert|input|key)",
    re.I,
)


def _openai(seed: int, response_format: Object | None) -> Object:
    body = {"temperature": TEMPERATURE, "seed": seed, "max_tokens": MAX_TOKENS}
    return body | ({"response_format": response_format} if response_format else {})


def _strict(schema: Object) -> Object:
    form = {"name": "judgement", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": form}


def _unbounded(schema: Object) -> Object:
    bounds = ("minimum", "maximum", "minLength", "maxLength")
    properties = {
        name: {key: value for key, value in about.items() if key not in bounds}
        for name, about in schema["properties"].items()
    }
    return _strict({**schema, "properties": properties})


def _openai_content(value: Object) -> tuple[object, object, object, object, object]:
    choice, usage = value["choices"][0], value.get("usage") or {}
    message = choice["message"]
    thinking = message.get("reasoning_content") or message.get("reasoning")
    text = message.get("content") if thinking else message["content"]
    if isinstance(text, list):  # Mistral's, beside parts of another type that are thoughts
        text = "".join(part["text"] for part in text if part["type"] == "text")
    # OpenAI's name, DeepSeek's, that of gateways to Anthropic.
    cached = {**(usage.get("prompt_tokens_details") or {}), **usage}
    names = ("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens")
    n_cached = next((cached[name] for name in names if cached.get(name)), 0)
    return text, thinking, usage.get("prompt_tokens"), n_cached, choice.get("finish_reason")


OPENAI = ChatApi(
    path="/chat/completions",
    models_path="/models",
    forms=(
        lambda seed, schema, num_ctx: _openai(seed, _strict(schema)),
        lambda seed, schema, num_ctx: _openai(seed, _unbounded(schema)),  # OpenAI's own know no bounds
        lambda seed, schema, num_ctx: _openai(seed, {"type": "json_object", "schema": schema}),  # llama-cpp
        lambda seed, schema, num_ctx: _openai(seed, {"type": "json_object"}),
        lambda seed, schema, num_ctx: _openai(seed, None),
        # OpenAI's reasoning models know neither max_tokens nor a temperature.
        lambda seed, schema, num_ctx: {
            "seed": seed,
            "max_completion_tokens": THINKING_TOKENS,
            "response_format": _unbounded(schema),
        },
    ),
    content=_openai_content,
)


def _ollama(seed: int, num_ctx: int, **form: Any) -> Object:
    options = {"temperature": TEMPERATURE, "seed": seed, "num_predict": MAX_TOKENS, "num_ctx": num_ctx}
    # A prompt beyond num_ctx is an error then; versions that do not know this cut it.
    return {"options": options, "truncate": False, **form}


OLLAMA = ChatApi(
    path="/api/chat",
    models_path="/v1/models",
    forms=(
        lambda seed, schema, num_ctx: _ollama(seed, num_ctx, format=schema),
        lambda seed, schema, num_ctx: _ollama(seed, num_ctx, format="json"),  # before version 0.5
        lambda seed, schema, num_ctx: _ollama(seed, num_ctx),
    ),
    content=lambda value: (
        value["message"]["content"],
        value["message"].get("thinking"),
        value.get("prompt_eval_count"),
        0,
        value.get("done_reason"),
    ),
)
