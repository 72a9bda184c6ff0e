"""A judge on loopback, OpenAI-compatible and Ollama in one, that grades by a rule and misbehaves on script.

Each question takes the next fault of its response's own list, then of the common script; after the
last one everything is in order. The grade is a function of all that is asked, so that a test can
tell a judgement that was lost, invented or given to the wrong item. Every request is kept.
"""

import contextlib
import hashlib
import http.server
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from loopback import serving_on_loopback

MODEL = "stub"
Fields = dict[str, str]


def grade(fields: Fields) -> dict[str, Any]:
    """What this judge says of a response: points made of a digest of the question."""
    names = ("instruction", "input", "reference", "response")
    digest = hashlib.sha256(json.dumps([fields[name] for name in names]).encode()).digest()
    points = {
        name: byte % 101
        for name, byte in zip(("relevance", "correctness", "clarity", "score"), digest, strict=False)
    }
    return {"reason": f"Because of {digest.hex()[:12]}.", **points}


def prefer(fields: Fields) -> dict[str, Any]:
    """Which of two responses this judge likes better: the one with the larger digest, in either order."""
    first, second = (hashlib.sha256(fields[name].encode()).hexdigest() for name in ("first", "second"))
    better = "tie" if first == second else "first" if first > second else "second"
    return {"reason": "By its digest.", "better": better}


def answer(fields: Fields) -> dict[str, Any]:
    return grade(fields) if "response" in fields else prefer(fields)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]  # empty for GET
    fields: Fields  # what the user message holds


@dataclass
class Judge:
    """What is served and what goes wrong. Change it while it runs."""

    script: list[str] = field(default_factory=list)  # kinds of FAULTS, or ok
    faults: dict[str, list[str]] = field(default_factory=dict)  # by response, before the script
    listing: list[str] = field(default_factory=list)  # for GET /models
    models: list[str] | None = field(default_factory=lambda: [MODEL])  # None: there is no such list
    listed: bytes | None = None  # instead of the list of models
    refuses: set[str] = field(default_factory=set)  # what response_format is refused: "schema", a type, ""
    limit: str = "max_tokens"  # what the limit of an answer is called here
    unknown: set[str] = field(default_factory=set)  # parameters that are refused, each in an error of its own
    thinks: int = 0  # tokens before an answer
    context: int = 1 << 20  # tokens of a prompt and its answer
    cached: int = 0  # tokens of a prompt that are not counted with it, but apart
    tokens: Callable[[list[dict[str, str]]], int | None] = lambda messages: n_tokens(messages)
    answer: Callable[[Fields], dict[str, Any]] = answer
    requests: list[Request] = field(default_factory=list)
    is_dead: bool = False  # every connection is reset; the fault "die" sets it
    base_url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Event = field(default_factory=threading.Event)  # a question has come
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self) -> list[Fields]:
        """The questions, in the order in which they came."""
        return [request.fields for request in self.requests if request.method == "POST"]


def n_tokens(messages: list[dict[str, str]]) -> int:
    """As many as a usual tokenizer makes, about."""
    return int(1.1 * sum(len(re.findall(r"\w+|[^\w\s]+", m["content"])) for m in messages)) + 10


def uncached_tokens() -> Callable[[list[dict[str, str]]], int]:
    """For `Judge.tokens`: the tokens after what an earlier prompt begins with too, at least one."""
    earlier: list[str] = []

    def count(messages: list[dict[str, str]]) -> int:
        text = "\n".join(message["content"] for message in messages)
        n_cached = max((len(os.path.commonprefix([text, one])) for one in earlier), default=0)  # noqa: RUF071
        earlier.append(text)
        rest = text[n_cached:]
        return n_tokens([{"content": rest}]) if rest else 1

    return count


@contextlib.contextmanager
def judging(*script: str) -> Iterator[Judge]:
    """A running server."""
    judge = Judge(list(script))
    handler = type("Handler", (_Handler,), {"judge": judge})
    with serving_on_loopback(handler, judge.closing) as port:
        judge.base_url = f"http://127.0.0.1:{port}/v1"
        yield judge


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "stub"}}).encode()


# Answers instead of a completion: status, headers, body. Another attempt may bring a better one.
BUSY: dict[str, tuple[int, dict[str, str], bytes]] = {
    "500": (500, {}, _error("out of luck")),
    "503": (503, {}, b"busy"),
    "408": (408, {}, b""),
    "429": (429, {"Retry-After": "0"}, _error("slow down")),
    "html": (200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><html>Please sign in</html>"),
    "not-json": (200, {}, b'{"choices": [{"message": {"content": "{\\"score'),
    "not-utf8": (200, {}, b'{"choices": "\xff"}'),
    "error": (200, {}, _error("the runner has stopped")),
    "no-choices": (200, {}, b'{"choices": []}'),
    "odd-shape": (200, {}, b'[{"choices": 1}]'),
    "deep": (200, {}, b"[" * 100_000),
    "gzip": (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"),
}
# Another attempt would bring the same.
FINAL: dict[str, tuple[int, dict[str, str], bytes]] = {
    "401": (401, {}, _error("Incorrect API key provided")),
    "403": (403, {}, b"no"),
    "404": (404, {}, b"no such page"),
    "404-model": (404, {}, _error(f"model '{MODEL}' not found")),
    "redirect": (307, {"Location": "http://127.0.0.1:9/v1/chat/completions"}, b""),
    "429-late": (429, {"Retry-After": "99999"}, b"tomorrow"),
    "400": (400, {}, _error("this question is not welcome")),
    "400-context": (400, {}, _error("the request exceeds the available context size, try increasing it")),
}
# What goes wrong with the connection.
BROKEN = ("die", "reset", "cut", "cut-unmarked", "huge", "bad-head")
SLOW = ("hang", "slow", "slow-head", "endless")


def _with(**changes: str) -> Callable[[dict[str, Any]], str]:
    """An answer in which JSON texts stand in the place of values."""
    return lambda good: (
        json.dumps(good | dict.fromkeys(changes, "@@")).replace('"@@"', "%s")
        % tuple(changes[name] for name in good if name in changes)
    )


# Texts that are not what was asked for, made of what would have been right.
TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "85/100": _with(score='"85/100"'),
    "text-85": _with(score='"85"'),
    "101": _with(score="101"),
    "-5": _with(clarity="-5"),
    "nan": _with(score="NaN"),
    "infinity": _with(relevance="Infinity"),
    "1e400": _with(score="1e400"),
    "arabic": _with(score="٨٥"),
    "arabic-text": _with(score='"٨٥"'),
    "fullwidth": _with(score="８５"),
    "true": _with(score="true"),
    "null": _with(correctness="null"),
    "huge-number": _with(score="9" * 5000),
    "no-reason": _with(reason='" "'),
    "list": _with(score="[85]"),
    "prose": lambda good: f"I would give it {good.get('score', 'a tie')} points out of 100.",
    "before": lambda good: "Sure! " + json.dumps(good),
    "two-fences": lambda good: f"```json\n{json.dumps(good)}\n```\n" * 2,
    "corrected": lambda good: f"```json\n{json.dumps(good)}\n```\nNo, rather less.",
    "thought-alone": lambda good: f"<think>It is worth {good.get('score', 'a tie')}.</think>",
    "thought-twice": lambda good: f"<think>So.</think>{json.dumps(good)}{json.dumps(good)}",
    "twice": lambda good: json.dumps(good) * 2,
    "double-key": lambda good: json.dumps(good)[:-1] + f', "reason": {json.dumps(good["reason"])}}}',
    "missing": lambda good: json.dumps(dict(list(good.items())[:-1])),
    "array": lambda good: json.dumps([good]),
    "raw-newline": lambda good: json.dumps({**good, "reason": "a@b"}).replace("@", "\n"),
    "deep-text": lambda good: "[" * 100_000,
}
# What stands around the same answer.
AROUND: dict[str, Callable[[str], str]] = {
    "fenced": lambda good: f"```json\n{good}\n```",
    "fence": lambda good: f"```\n{good}```\n",
    "one-line": lambda good: f"```json {good} ```",
    "fenced-after-words": lambda good: f"Here is the grade:\n\n```JSON\n{good}\n```",
    "thought": lambda good: f'<think>\nMaybe {{"score": 3}}?\n</think>\n\n{good}',
    "thought-fenced": lambda good: f"<think>So.</think>```json\n{good}\n```",
    "thought-unopened": lambda good: f"Well, 85 points, or ```90```.\n</think>\n{good}",
    "thought-of-mistral": lambda good: f"[THINK]So.[/THINK]{good}",
    "thought-of-harmony": lambda good: f"<|channel|>analysis<|message|>So.<|channel|>final<|message|>{good}",
    "extra": lambda good: good[:-1] + ', "note": "x", "details": {"total": 3}}',
    "marked": lambda good: good.replace('"reason": "', '"reason": "</think> ```3``` '),
}
# The last ones are answers all the same.
ODD = (
    *AROUND,
    "few-tokens",
    "length",
    "filtered",
    "no-usage",
    "no-tokens",
    "no-finish",
    "float",
    "surrogate",
)
FAULTS = (*BUSY, *FINAL, *BROKEN, *SLOW, *TEXTS, *ODD)


class _Handler(http.server.BaseHTTPRequestHandler):
    judge: Judge
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        judge = self.judge
        with judge.lock:
            self._keep("GET", {}, {})
            kind = judge.listing.pop(0) if judge.listing else "ok"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if judge.is_dead or kind in (*BROKEN, *SLOW):
                self._break("reset" if judge.is_dead else kind)
            elif kind != "ok":
                self._send(*{**BUSY, **FINAL}[kind])
            elif judge.models is None or self.path != "/v1/models":
                self._send(404, {}, b"not here")
            else:
                listed = [{"id": name, "object": "model"} for name in judge.models]
                body = json.dumps({"object": "list", "data": listed or None, "error": None}).encode()
                self._send(200, {}, body if judge.listed is None else judge.listed)

    def do_POST(self) -> None:
        judge = self.judge
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        fields = json.loads(body["messages"][1]["content"])
        with judge.lock:
            self._keep("POST", body, fields)
            own = judge.faults.get(fields.get("response", ""))
            kind = "ok"
            if not judge.is_dead:
                kind = own.pop(0) if own else judge.script.pop(0) if judge.script else "ok"
            judge.is_dead |= kind == "die"
            judge.arrived.set()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if judge.is_dead or kind in (*BROKEN, *SLOW):
                self._break("reset" if judge.is_dead else kind)
            elif kind in BUSY or kind in FINAL:
                self._send(*{**BUSY, **FINAL}[kind])
            elif self.path == "/api/chat":
                self._send(*_chat(judge, body, fields, kind))
            elif self.path != "/v1/chat/completions":
                self._send(404, {}, b"not here")
            elif named := sorted(judge.unknown & set(body)):
                self._send(
                    400, {}, _error(f"Unsupported value: '{named[0]}' is not supported with this model.")
                )
            elif judge.thinks and _limit(body) + judge.tokens(body["messages"]) > judge.context:  # type: ignore[operator]
                self._send(*FINAL["400-context"])
            elif judge.limit not in body:
                self._send(400, {}, _error(f"Unsupported parameter. Use '{judge.limit}' instead."))
            elif _form(body) & judge.refuses:
                self._send(400, {}, _error("response_format is not supported"))
            else:
                self._send(200, {}, _completion(judge, body, fields, kind))

    def _keep(self, method: str, body: dict[str, Any], fields: Fields) -> None:
        self.close_connection = True
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.judge.requests.append(Request(method, self.path, headers, body, fields))

    def _break(self, kind: str) -> None:
        body = b'{"choices": [{"message": {"content": "'
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif kind in ("cut", "cut-unmarked"):
            self._head(200, {"Content-Length": "500"} if kind == "cut" else {})
            self.wfile.write(body)
        elif kind == "bad-head":  # which says the key back
            key = self.headers.get("authorization", "?")
            self.wfile.write(f"HTTP/1.1 200 OK\r\n{key}\r\n\r\n".encode())
        elif kind == "huge":
            self._send(200, {}, b" " * (2 << 20))
        elif kind == "hang":
            self.judge.closing.wait(60)
        elif kind == "endless":
            self._head(200, {})
            while not self.judge.closing.is_set():
                self.wfile.write(b" " * 65536)
        else:
            if kind == "slow":
                self._head(200, {"Content-Length": "500"})
            else:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not self.judge.closing.wait(0.02):
                self.wfile.write(b"x")
                self.wfile.flush()

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._head(status, {"Content-Length": str(len(body)), **headers})
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def _limit(body: dict[str, Any]) -> int:
    fields = {**body, **body.get("options", {})}
    limits = ("max_tokens", "max_completion_tokens", "num_predict")
    return int(next((fields[name] for name in limits if name in fields), 1 << 20))


def _form(body: dict[str, Any]) -> set[str]:
    """What a server may dislike in the way in which JSON is asked for."""
    form = body.get("response_format", {})
    found = {form.get("type", "")} | ({"schema"} if "schema" in form else set())
    return found | (
        {"bounds"} if "maxLength" in json.dumps(form) and form["type"] == "json_schema" else set()
    )


def _chat(judge: Judge, body: dict[str, Any], fields: Fields, kind: str) -> tuple[int, dict[str, str], bytes]:
    """As Ollama answers: other names; a prompt beyond num_ctx is refused, or cut where that is allowed."""
    form = body.get("format", "")
    if {"schema" if isinstance(form, dict) else form} & judge.refuses:
        return 400, {}, b'{"error": "json: cannot unmarshal object into Go struct field ChatRequest.format"}'
    whole = json.loads(_completion(judge, body, fields, kind))
    choice, n_read = whole["choices"][0], whole.get("usage", {}).get("prompt_tokens")
    if n_read is not None and n_read > body["options"]["num_ctx"]:
        if not body.get("truncate", True):
            return 400, {}, b'{"error": "the input length exceeds the context length"}'
        n_read = body["options"]["num_ctx"]
    answer = {"model": body["model"], "message": choice["message"], "done": True}
    answer |= {"done_reason": choice["finish_reason"], "prompt_eval_count": n_read}
    return 200, {}, json.dumps({name: value for name, value in answer.items() if value is not None}).encode()


def _completion(judge: Judge, body: dict[str, Any], fields: Fields, kind: str) -> bytes:
    good = judge.answer(fields)
    text = TEXTS[kind](good) if kind in TEXTS else AROUND.get(kind, str)(json.dumps(good))
    if kind == "nothing":
        text = ""
    if kind == "float":
        text = json.dumps({name: float(v) if isinstance(v, int) else v for name, v in good.items()})
    if kind == "surrogate":
        text = json.dumps({**good, "reason": "half \ud800"})
    usage: dict[str, Any] = {"prompt_tokens": 5 if kind == "few-tokens" else judge.tokens(body["messages"])}
    message = {"role": "assistant", "content": text}
    if judge.cached:
        usage["prompt_tokens"] = judge.tokens(body["messages"]) - judge.cached  # type: ignore[operator]
        usage["prompt_tokens_details"] = {"cached_tokens": judge.cached}
    if kind == "ok" and judge.thinks:
        message["thinking" if "options" in body else "reasoning_content"] = "Let me see. " * 9
    is_cut = kind == "ok" and judge.thinks > _limit(body)
    if is_cut:
        message["content"], kind = "", "length"
    if kind == "no-tokens":
        usage["prompt_tokens"] = 0
    reason = {"length": "length", "filtered": "content_filter", "no-finish": None}.get(kind, "stop")
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}
    return json.dumps(whole if kind == "no-usage" else {**whole, "usage": usage}).encode()
