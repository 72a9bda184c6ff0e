"""Asks a judge's server all questions of a task in parallel, and stores each judgement as it arrives.

items -> questions -> replies -> judgements, one line each in the results file -> aggregate.
"""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, NoReturn, TypeVar

from gpt2cli.errors import ServiceError
from gpt2cli.json_lines import Ledger, Parse, appending
from gpt2cli.judge.chat_api import MAX_TOKENS, JudgeReply, NoReplyError
from gpt2cli.judge.client import TIMEOUT, JudgeClient
from gpt2cli.judge.endpoint import JudgeServer
from gpt2cli.judge.prompt import Messages
from gpt2cli.judge.results import (
    LONGEST_TEXT,
    RETRIED,
    Judgement,
    Status,
    Terms,
    read_results,
    require_terms,
    terms_of,
)
from gpt2cli.judge.strict_json import AnswerError
from gpt2cli.judge.truncation import least_tokens, least_uncached, tokens_per_piece

SEED = 123
N_PARALLEL = 4
MAX_BAD_ANSWERS = 3  # in a row that break the schema; then the question is unscored
MAX_UNANSWERED = 3  # questions in a row; then the server is given up
LARGEST_CONTEXT = 32768  # tokens, for Ollama
_CUT = {
    "length": "the answer was cut off for its length",
    "content_filter": "the server's filter cut the answer off",
}

V = TypeVar("V")  # of an answer: a grade, or a preference
J = TypeVar("J", bound=Judgement)


@dataclass(frozen=True)
class JudgeQuestion:
    """`fields` are the known fields of its judgement."""

    fields: dict[str, Any]
    messages: Messages | None  # None for an empty response
    is_sample: bool = False  # short and asked first, to learn the server's tokens per piece

    @property
    def is_canary(self) -> bool:
        return bool(self.fields["index"] < 0)


@dataclass(frozen=True)
class JudgeTask(Generic[V, J]):
    """How to ask and what to keep: grades of responses (grade.py), or comparisons of two (pairwise.py)."""

    schema: dict[str, Any]
    prompt: str  # a digest of its wording
    parse: Callable[[str], V]  # of a reply's text; raises AnswerError
    judgement: Callable[[V | None, dict[str, Any]], J]  # from the value, if any, and all other fields
    line: Parse[J]  # reads a line of the results file
    key: tuple[str, ...]  # the fields that identify a question; the last judgement with the same key counts

    def standing(self, questions: Sequence[JudgeQuestion], judgements: Iterable[J]) -> dict[int, J]:
        """{place of a question: its last judgement}; a file may hold others."""
        last = {tuple(getattr(one, name) for name in self.key): one for one in judgements}
        keys = [tuple(question.fields[name] for name in self.key) for question in questions]
        return {place: last[key] for place, key in enumerate(keys) if key in last}


@dataclass(frozen=True)
class JudgeOptions:
    seed: int = SEED
    n_parallel: int = N_PARALLEL
    timeout: float = TIMEOUT
    fresh: bool = False  # empty the file first
    retry: bool = False  # ask again for what is unscored or truncated


def judge(
    task: JudgeTask[V, J],
    questions: Sequence[JudgeQuestion],
    server: JudgeServer,
    path: Path,
    options: JudgeOptions,
    *,
    begin: Callable[[int], None] = lambda n_missing: None,
    keep: Callable[[J], None] = lambda judgement: None,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Ask the questions that have no judgement in `path` yet. Each new one is appended, then given to `keep`.

    `begin` gets the number of these questions, canaries aside; `tell` gets notices of failed attempts.
    Raises ServiceError if the server is missing or lost, or left a question without an answer;
    InputError for a file of another judge; ResourceError for one in use.
    """
    terms = terms_of(server, task.prompt, task.schema, options.seed)
    there = read_results(path, task.line)
    if options.fresh:
        there = ()
    require_terms(path, there, terms)
    missing = _missing(task, questions, there, options)
    begin(sum(not question.is_canary for question in missing))
    if not missing:
        return
    if any(question.messages for question in missing):  # before a file is made or emptied
        asyncio.run(_until_a_signal(_require_model(server, options)))
    with appending(path, task.line, fresh=options.fresh) as file:
        client = JudgeClient(server, options.timeout, _context_for(questions), tell)
        rates = [
            tokens_per_piece(questions[place].messages or [], one.prompt_tokens)
            for place, one in task.standing(questions, there).items()
            if questions[place].is_sample and one.prompt_tokens and one.status != "truncated"
        ]
        run = _Run(task, client, terms, options, file, keep, rates)
        asyncio.run(_until_a_signal(run.ask_all(missing)))


def judgements_of(task: JudgeTask[V, J], questions: Sequence[JudgeQuestion], path: Path) -> list[J]:
    """A file's judgements of the questions as they are now, by index. Raises InputError for another file."""
    standing = task.standing(questions, read_results(path, task.line))
    return sorted(standing.values(), key=lambda judgement: judgement.index)


async def _until_a_signal(work: Coroutine[Any, Any, None]) -> None:
    """Await the work; SIGTERM and SIGHUP cancel it, as Ctrl-C does, where they would end the program.

    An exception from their handler inside a task would be reported as that task's crash.
    """
    task, loop, received = asyncio.current_task(), asyncio.get_running_loop(), list[int]()
    assert task

    def cancel(number: int, frame: FrameType | None) -> None:
        received.append(number)
        loop.call_soon_threadsafe(task.cancel)

    is_main = threading.current_thread() is threading.main_thread()
    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if is_main and callable(signal.getsignal(n))]
    before = {number: signal.signal(number, cancel) for number in heard}
    try:
        await work
    except asyncio.CancelledError:
        if not received:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])


async def _require_model(server: JudgeServer, options: JudgeOptions) -> None:
    async with JudgeClient(server, options.timeout) as client:
        await client.require_model()


def _missing(
    task: JudgeTask[V, J], questions: Sequence[JudgeQuestion], there: Iterable[J], options: JudgeOptions
) -> list[JudgeQuestion]:
    """Canaries are asked along with others, never alone."""
    standing = task.standing(questions, there)
    done = {place for place, one in standing.items() if not (options.retry and one.status in RETRIED)}
    missing = [question for place, question in enumerate(questions) if place not in done]
    is_asked = any(question.messages and not question.is_canary for question in missing)
    return [question for question in missing if is_asked or not question.is_canary]


@dataclass
class _Run(Generic[V, J]):
    task: JudgeTask[V, J]
    client: JudgeClient
    terms: Terms
    options: JudgeOptions
    file: Ledger[J]
    keep: Callable[[J], None]
    rates: list[float]  # the server's tokens per piece of text, one of each sample
    unanswered: list[NoReplyError] = field(default_factory=list)
    n_in_a_row: int = 0  # of them
    sent: list[Messages] = field(default_factory=list)
    most_tokens: int = 0  # that the server has counted in a prompt

    async def ask_all(self, questions: Sequence[JudgeQuestion]) -> None:
        nothing = {"why": "there is no response", "attempts": 0, "seconds": 0.0, "prompt_tokens": None}
        for question in questions:
            if not question.messages:
                self._add(question, None, {"status": "empty", **nothing})
        slots = asyncio.Semaphore(self.options.n_parallel)
        async with self.client:
            for is_sample in (True, False):
                rate = min(self.rates, default=None)  # the lowest, to call no reply truncated wrongly
                asked = [q for q in questions if q.messages and q.is_sample is is_sample]
                tasks = [asyncio.create_task(self._settle(question, rate, slots)) for question in asked]
                try:
                    await asyncio.gather(*tasks)  # ends with the first error
                finally:
                    for task in tasks:
                        task.cancel()
        if self.unanswered:
            n = sum(bool(question.messages) and not question.is_canary for question in questions)
            self._give_up(
                f"{self.client.server.base_url}: no answer to {len(self.unanswered)} of {n} questions"
            )

    async def _settle(self, question: JudgeQuestion, rate: float | None, slots: asyncio.Semaphore) -> None:
        async with slots:
            try:
                value, outcome = await self._ask(question, rate)
            except NoReplyError as error:
                if question.is_canary and not error.is_down:
                    self.client.tell(f"no answer about a canary, which does not matter: {error.why}")
                    return
                # This question may be the cause: the others are asked while the server answers some.
                self.unanswered.append(error)
                self.n_in_a_row += 1
                if error.is_down or self.n_in_a_row == MAX_UNANSWERED:
                    self._give_up(f"the judge at {self.client.server.base_url} is lost")
                return
            self.n_in_a_row = 0
            if question.is_sample and outcome["prompt_tokens"] and outcome["status"] != "truncated":
                self.rates.append(tokens_per_piece(question.messages or [], outcome["prompt_tokens"]))
            self._add(question, value, outcome)

    async def _ask(self, question: JudgeQuestion, rate: float | None) -> tuple[V | None, dict[str, Any]]:
        """The value and the outcome's fields. After an answer that breaks the schema it asks again."""
        messages, began, attempts = question.messages or [], time.monotonic(), 0
        for n_bad in range(MAX_BAD_ANSWERS):
            self.sent.append(messages)
            seed = self.options.seed + n_bad  # the same seed would give the same text
            reply = await self.client.ask(messages, self.task.schema, seed)
            attempts += reply.attempts
            value, status, why = self._read(reply, messages, rate)
            if status != "unscored" or reply.refusal:
                break
        seconds = round(time.monotonic() - began, 3)
        text = reply.thinking if reply.refusal else reply.text or reply.thinking
        outcome = {"status": status, "why": why, "attempts": attempts, "seconds": seconds}
        outcome["text"] = "" if status == "scored" else text[:LONGEST_TEXT]
        return value, {**outcome, "prompt_tokens": reply.prompt_tokens}

    def _read(
        self, reply: JudgeReply, messages: Messages, rate: float | None
    ) -> tuple[V | None, Status, str]:
        if reply.refusal:
            return None, reply.refusal, reply.text
        if reply.prompt_tokens is not None and not self._is_whole(reply, messages, rate):
            floor = least_tokens(messages, rate)
            return None, "truncated", f"the judge read {reply.prompt_tokens} tokens of at least {floor}"
        if reply.finish_reason not in ("stop", ""):
            other = f"the server ended the answer by {reply.finish_reason[:40]!r}"
            return None, "unscored", _CUT.get(reply.finish_reason, other)
        try:
            # A server that takes all of an answer for thoughts leaves the text empty.
            return self.task.parse(reply.text or reply.thinking), "scored", ""
        except AnswerError as error:
            return None, "unscored", str(error)

    def _is_whole(self, reply: JudgeReply, messages: Messages, rate: float | None) -> bool:
        """Whether the server read all of the prompt, by its count.

        Some servers count what they read anew, and the cached part apart or not at all.
        """
        n_read = (reply.prompt_tokens or 0) + reply.cached_tokens
        # A server that truncates has read no prompt of more tokens than what is left of this one.
        is_uncached = n_read < self.most_tokens
        self.most_tokens = max(self.most_tokens, n_read)
        if n_read >= least_tokens(messages, rate):
            return True
        earlier = [one for one in self.sent if one is not messages] if is_uncached else ()
        return not reply.cached_tokens and n_read >= least_uncached(messages, earlier, rate)

    def _add(self, question: JudgeQuestion, value: V | None, outcome: dict[str, Any]) -> None:
        judgement = self.task.judgement(value, {**question.fields, **outcome, "terms": self.terms})
        self.file.add(judgement)
        self.keep(judgement)

    def _give_up(self, what: str) -> NoReturn:
        error, is_ollama = self.unanswered[-1], self.client.server.is_ollama
        again = "then the same command again: what is judged is kept"
        fix = f"look into the server's own log, {again}"
        if error.is_down:
            fix = f"{'ollama serve' if is_ollama else 'start it'}, {again}"
        elif error.is_timeout:
            fix = "--timeout SECONDS waits longer, --parallel 1 asks for less at once; what is judged is kept"
        elif error.wait:
            fix = f"wait {error.wait:.0f} seconds, {again}"
        raise ServiceError(what, error.why, fix)


def _context_for(questions: Sequence[JudgeQuestion]) -> int:
    """The num_ctx for the longest prompt. All share it, because Ollama reloads the model for another one."""
    sizes = [sum(len(m["content"].encode()) for m in question.messages or ()) for question in questions]
    needed = max(sizes, default=0) // 2 + 2 * MAX_TOKENS  # a token has 3 to 4 bytes; and the reply
    return next(n for n in (4096, 8192, 16384, LARGEST_CONTEXT) if n >= min(needed, LARGEST_CONTEXT))
