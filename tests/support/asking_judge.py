"""A judge's client in one call: ask a server a question, or whether it has the model."""

import asyncio

import pytest
from judge_server import MODEL, Judge

from gpt2cli.judge.chat_api import JudgeReply
from gpt2cli.judge.client import JudgeClient
from gpt2cli.judge.endpoint import JudgeServer, ollama, openai_compatible
from gpt2cli.judge.grade import GRADE_SCHEMA
from gpt2cli.judge.prompt import grade_messages

MESSAGES = grade_messages("ask", "", "right", "said")


def at(server: Judge) -> JudgeServer:
    return openai_compatible(server.base_url, MODEL)


def ask(server: JudgeServer, n: int = 1, timeout: float = 5.0, num_ctx: int = 4096) -> JudgeReply:
    """The last of n replies, one after the other."""

    async def asking() -> JudgeReply:
        async with JudgeClient(server, timeout, num_ctx) as client:
            for _ in range(n - 1):
                await client.ask(MESSAGES, GRADE_SCHEMA, 7)
            return await client.ask(MESSAGES, GRADE_SCHEMA, 7)

    return asyncio.run(asking())


def require_model(server: JudgeServer, timeout: float = 5.0) -> None:
    async def requiring() -> None:
        async with JudgeClient(server, timeout) as client:
            await client.require_model()

    asyncio.run(requiring())


def ollama_at(server: Judge, monkeypatch: pytest.MonkeyPatch, model: str = MODEL) -> JudgeServer:
    monkeypatch.setenv("OLLAMA_HOST", server.base_url.removesuffix("/v1"))
    return ollama(model)
