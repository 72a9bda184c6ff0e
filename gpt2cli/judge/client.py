"""The HTTP client of an LLM judge: one question in, one reply out, with retries and timeouts."""

import asyncio
import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2

from gpt2cli import __version__
from gpt2cli.errors import UsageError
from gpt2cli.judge.chat_api import (
    LONGEST_THINKING,
    MAX_TOKENS,
    OLLAMA,
    OPENAI,
    THINKING_TOKENS,
    JudgeReply,
    JudgeResponse,
    NoReplyError,
    adapt,
    read_reply,
    refused_parameters,
    refuses_form,
    require_chat,
)
from gpt2cli.judge.endpoint import JudgeServer, no_model, not_running
from gpt2cli.judge.prompt import Messages

TIMEOUT = 300.0  # seconds per request: a judge on a CPU may need minutes
LIST_TIMEOUT = CONNECT_TIMEOUT = 10.0
ATTEMPTS = 6
TIMED_OUT_ATTEMPTS = 2  # a third would cost as long again
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two attempts; doubles from one to the next
LONGEST_RETRY_AFTER = 120.0  # seconds; beyond, the request is given up
NOTICE_SECONDS = 15.0  # between two notices of failed attempts
LARGEST = 1 << 20  # bytes of a response
SHORTEST_KEY = 8  # characters; "1" or "none" is not a secret, and occurs in every reply


class JudgeClient:
    """Connections to one server, for `async with`; remembers which form of request the server takes, which
    parameters it refuses, and how much room its model needs to think.

    The API key is removed from everything it returns or raises.
    """

    def __init__(
        self,
        server: JudgeServer,
        timeout: float = TIMEOUT,
        num_ctx: int = 0,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.server, self.timeout, self.num_ctx, self.tell = server, timeout, num_ctx, tell
        self._api = OLLAMA if server.is_ollama else OPENAI
        self._form = 0  # of the API's
        self._refused: set[str] = set()  # parameters
        self._max_tokens = MAX_TOKENS
        self._rooms = [THINKING_TOKENS, LONGEST_THINKING]  # the next limits, for a model that thinks
        self._noticed = float("-inf")
        self._http = _open(server)

    async def __aenter__(self) -> "JudgeClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def require_model(self) -> None:
        """Raise ServiceError if the server does not run, denies access, or does not list the model.

        A server without a usable list passes.
        """
        try:
            async with asyncio.timeout(min(LIST_TIMEOUT, self.timeout)):
                response = await self._send("GET", self._api.models_path)
        except NoReplyError as error:
            if error.is_down:
                raise not_running(self.server, error.why) from None
            return
        except TimeoutError:
            return
        if response.status in (401, 403):
            require_chat(self._api, self.server, response)
        listed = response.json().get("data", "") if response.status == 200 else ""
        models = listed if isinstance(listed, list) else []
        names = [str(model["id"]) for model in models if isinstance(model, dict) and "id" in model]
        has_none = self.server.is_ollama and listed in (None, [])
        if has_none or (names and not {self.server.model, f"{self.server.model}:latest"} & set(names)):
            raise no_model(self.server, names)

    async def ask(self, messages: Messages, schema: dict[str, Any], seed: int) -> JudgeReply:
        """One reply. Pauses between attempts double, or follow the server's Retry-After.

        Raises NoReplyError after the last attempt, and ServiceError where a retry would not help.
        """
        n_timeouts = 0
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with asyncio.timeout(self.timeout):
                    return replace(await self._chat(messages, schema, seed), attempts=attempt)
            except NoReplyError as error:
                failed = error
            except TimeoutError:
                failed = NoReplyError(f"timed out: no answer within {self.timeout:g} s", is_timeout=True)
            n_timeouts += failed.is_timeout
            is_last = attempt == ATTEMPTS or n_timeouts == TIMED_OUT_ATTEMPTS
            if is_last or (failed.wait or 0.0) > LONGEST_RETRY_AFTER:
                break
            if time.monotonic() - self._noticed >= NOTICE_SECONDS:
                self._noticed = time.monotonic()
                self.tell(f"no answer yet: {failed.why}; trying again")
            # Jitter: requests that failed together do not come back together.
            pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1.0)
            await asyncio.sleep(pause if failed.wait is None else failed.wait)
        raise failed

    async def _chat(self, messages: Messages, schema: dict[str, Any], seed: int) -> JudgeReply:
        """Ask, and ask again with more room for a model that has thought and not answered."""
        cut, n_cut = None, 0
        while True:
            max_tokens = self._max_tokens
            reply = await self._request(messages, schema, seed, max_tokens)
            if cut and reply.refusal == "truncated":  # no room for that
                self._rooms, self._max_tokens = [], n_cut
                return _still_thinking(cut, n_cut, "serve it with a larger context")
            if not reply.lacks_room:
                return reply
            cut, n_cut = reply, max_tokens
            if max_tokens == self._max_tokens:
                if not reply.is_cut and (not self._rooms or max_tokens > MAX_TOKENS):
                    return reply  # it is no matter of room
                if not self._rooms:
                    return _still_thinking(cut, n_cut, "take one that thinks less, or not at all")
                self._max_tokens, *self._rooms = self._rooms
                self.tell(f"the judge thinks before it answers: it gets {self._max_tokens:,} tokens for it")

    async def _request(
        self, messages: Messages, schema: dict[str, Any], seed: int, max_tokens: int
    ) -> JudgeReply:
        """One reply, in the strictest form that the server takes."""
        forms, n = self._api.forms, self._form
        while True:
            body = {"model": self.server.model, "messages": messages, "stream": False}
            body |= forms[n](seed, schema, self.num_ctx + max_tokens - MAX_TOKENS)
            body = adapt(body, max_tokens, self._refused)
            response = await self._send("POST", self._api.path, body)
            if refused := refused_parameters(response, body):
                if new := sorted(refused - self._refused):
                    self._refused |= refused
                    self.tell(f"the server refuses {' and '.join(new)}: left out from now on")
                continue
            if not refuses_form(response) or n + 1 == len(forms):
                self._form = n
                return read_reply(self._api, self.server, response)
            n += 1

    async def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> JudgeResponse:
        """One exchange. Raises NoReplyError."""
        content = bytearray()
        try:
            async with self._http.stream(method, self.server.base_url + path, json=body) as response:
                async for block in response.aiter_bytes():
                    content += block
                    if len(content) > LARGEST:
                        raise NoReplyError(f"the answer has more than {LARGEST >> 20} MiB")
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            why = self._without_key(str(error)) or f"no connection within {CONNECT_TIMEOUT:g} seconds"
            refused = "nothing listens there: the connection was refused"
            raise NoReplyError(refused if "attempts failed" in why else why, is_down=True) from None
        except httpx2.RequestError as error:
            why = self._without_key(str(error) or type(error).__name__)
            raise NoReplyError(f"the answer ended early ({why})") from None
        names = ("location", "retry-after")
        texts = (content.decode("utf-8", "replace"), *(response.headers.get(name, "") for name in names))
        return JudgeResponse(response.status_code, *map(self._without_key, texts))

    def _without_key(self, text: str) -> str:
        """The text without the key, also where JSON or Python has quoted it, however often."""
        key = self.server.api_key or ""
        if len(key) < SHORTEST_KEY:
            return text
        return re.sub(r"\\*".join(map(re.escape, key)), "(the key)", text)


def _still_thinking(reply: JudgeReply, max_tokens: int, fix: str) -> JudgeReply:
    why = f"the judge was still thinking after {max_tokens:,} tokens: {fix}"
    return replace(reply, text=why, thinking=reply.thinking or reply.text, refusal="unscored")


def _open(server: JudgeServer) -> httpx2.AsyncClient:
    """Raises UsageError where a proxy or certificates that the environment names cannot be used."""
    headers = {"user-agent": f"gpt2cli/{__version__}"}
    headers |= {"authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    try:
        return httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT),  # asyncio.timeout bounds the rest
            trust_env=not server.is_local,  # proxies
            verify=httpx2.create_ssl_context(trust_env=server.base_url.startswith("https")),
        )
    except OSError as error:
        what = "the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read"
        fix = "unset SSL_CERT_FILE SSL_CERT_DIR, or name a file of certificates"
        raise UsageError(what, str(error), fix) from None
    except (ValueError, ImportError, httpx2.InvalidURL) as error:
        what = f"the proxy that the environment names cannot be used for {server.base_url}"
        why = re.sub("//[^/@]*@", "//", str(error))  # the proxy's address may hold a password
        fix = "unset HTTP_PROXY HTTPS_PROXY ALL_PROXY, or add the judge's host to NO_PROXY"
        raise UsageError(what, why, fix) from None
