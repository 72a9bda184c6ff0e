"""Owns asking many questions of one server at once: retries, strict answers, and when to give up.

What is asked and what an answer means is the caller's: a schema, and a function that reads a text.
For another kind of judgement, say which of two responses is better:

    questions = [Question(number, pair_messages(...)) for number, ... in ...]
    for reply in ask_all(questions, server, SCHEMA, parse_preference, seed=seed, stop=stop):
        reply.number, reply.status, reply.value   # value is what parse_preference returned, or None
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from gpt2cli.errors import ServiceError
from gpt2cli.judge.client import PATIENCE, Habits, ask, persist, require_model
from gpt2cli.judge.exchange import Hangup, LostError
from gpt2cli.judge.received import Answer, RefusedError, TooLongError
from gpt2cli.judge.rubric import AnswerError
from gpt2cli.judge.server import Server, lost, shown, way_on
from gpt2cli.judge.truncation import least_tokens, tokens_per_piece
from gpt2cli.patience import Patience

N_PARALLEL = 4
ANSWERS = 3  # that may break the schema before a question counts as unscored
UNANSWERED = 3  # questions in a row: then it is the server, not the question
POLL_SECONDS = 0.1  # between two looks at `stop`
TELL_SECONDS = 15.0  # between two lines about attempts in vain, of all questions together
R = TypeVar("R")
Status = Literal["scored", "unscored", "truncated", "empty"]
RETRIED: tuple[Status, ...] = ("unscored", "truncated")  # what `--retry` asks for again
Messages = list[dict[str, str]]
# How an answer may end; "" where a server does not say. The others are cut short.
_WHOLE = ("stop", "")
_CUT = {
    "length": "the answer was cut off for its length",
    "content_filter": "the server's filter cut the answer off",
}


@dataclass(frozen=True)
class Question:
    number: int  # the caller's own, by which a reply is known; each one once
    messages: Messages
    is_sample: bool = False  # a short one, asked before the others: it shows how this server counts tokens
    is_optional: bool = False  # costs nothing where it gets no answer


@dataclass(frozen=True)
class Reply(Generic[R]):
    """`status` is "scored" (and then only there is a value), "unscored" or "truncated"; never "empty"."""

    number: int
    status: Status
    value: R | None
    why: str  # "" where it is scored
    attempts: int  # requests sent, all of them
    seconds: float  # from the first one to the last answer
    prompt_tokens: int | None  # as the server counts them


class UnansweredError(ServiceError):
    """Some questions got no answer, all the others did."""


@dataclass(frozen=True)
class _Unanswered:
    question: Question
    error: LostError


# What a thread hands over: a reply, that a question got no answer, a line for people, or what ends it all.
_Outcome = Reply[R] | _Unanswered | str | BaseException


@dataclass
class _Course(Generic[R]):
    """What the threads share."""

    server: Server
    schema: dict[str, Any]
    parse: Callable[[str], R]
    seed: int
    patience: Patience
    tokens_per_piece: float | None
    habits: Habits
    tell: Callable[[str], None]
    waiting: deque[Question]
    done: "queue.SimpleQueue[_Outcome[R]]" = field(default_factory=queue.SimpleQueue)
    hangup: Hangup = field(default_factory=Hangup)
    n_unanswered: int = 0  # in a row


def ask_all(
    questions: Sequence[Question],
    server: Server,
    schema: dict[str, Any],
    parse: Callable[[str], R],
    *,
    seed: int,
    stop: Callable[[], int] = lambda: 0,
    n_parallel: int = N_PARALLEL,
    patience: Patience = PATIENCE,
    tell: Callable[[str], None] = lambda text: None,
    known: Iterable[tuple[Messages, int]] = (),
) -> Iterator[Reply[R]]:
    """Replies as they come, samples first, otherwise in no order; yielded in the caller's thread.

    `parse` raises AnswerError (rubric.py) for a text that is no answer: it is asked again with the
    next seed, and after ANSWERS of them the reply is "unscored". Ends early when `stop` returns a
    signal's number; closed or interrupted, it cuts the connections and leaves at once.
    `known` are samples of earlier, and what the server counted for them (truncation.py).
    `tell` is told, in the caller's thread, what it waits for, and of optional questions without an answer.
    Raises ServiceError where the server is lost or refuses for good, and UnansweredError at the end
    where some questions got no answer at all; what was yielded stays good.
    """
    rates = [tokens_per_piece(messages, n) for messages, n in known]
    habits, seldom, unanswered = Habits(), _seldom(tell), list[LostError]()
    for is_sample in (True, False):
        batch = {question.number: question for question in questions if question.is_sample is is_sample}
        rate = min(rates, default=None)  # so that nobody is accused wrongly
        course = _Course(server, schema, parse, seed, patience, rate, habits, seldom, deque(batch.values()))
        # Daemons: one that hangs in the look-up of a name would keep the process from ending.
        for _ in range(min(max(n_parallel, 1), len(batch))):
            threading.Thread(target=_work, args=(course,), daemon=True).start()
        try:
            for outcome in _collect(course, len(batch), stop):
                if isinstance(outcome, Reply):
                    if outcome.prompt_tokens and outcome.status != "truncated":
                        rates.append(tokens_per_piece(batch[outcome.number].messages, outcome.prompt_tokens))
                    yield outcome
                elif outcome.question.is_optional:
                    why = outcome.error.why
                    tell(f"no answer about what only tests the judge, which does not matter: {why}")
                else:
                    unanswered.append(outcome.error)
        finally:
            course.waiting.clear()
            course.hangup.hang_up()
        if stop():
            return
    if unanswered:
        n = sum(not question.is_optional for question in questions)
        raise UnansweredError(
            f"{shown(server)}: no answer to {len(unanswered)} of {n} questions",
            unanswered[-1].why,
            way_on(server, unanswered[-1]),
        )


def require_unless_stopped(server: Server, patience: Patience, stop: Callable[[], int]) -> None:
    """As `require_model`, but returns early when `stop` returns a signal's number."""
    hangup = Hangup()
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def look() -> None:
        try:
            require_model(server, patience, hangup)
            done.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again, in the caller's thread
            done.put(error)

    threading.Thread(target=look, daemon=True).start()
    try:
        while not stop():
            try:
                error = done.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            return
    finally:
        hangup.hang_up()


def _collect(course: _Course[R], n: int, stop: Callable[[], int]) -> Iterator[Reply[R] | _Unanswered]:
    fatal: BaseException | None = None
    n_done = 0
    while n_done < n and fatal is None and not stop():
        try:
            outcome = course.done.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        if isinstance(outcome, str):
            course.tell(outcome)
            continue
        n_done += 1
        if isinstance(outcome, BaseException):
            fatal = outcome
        else:
            yield outcome
    while not course.done.empty():  # answers that came meanwhile are not to be asked for again
        outcome = course.done.get()
        if isinstance(outcome, Reply):
            yield outcome
    if fatal is not None:
        raise fatal


def _seldom(tell: Callable[[str], None]) -> Callable[[str], None]:
    """The first text passes, and then one in TELL_SECONDS."""
    last = float("-inf")

    def passed(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_SECONDS:
            last = time.monotonic()
            tell(text)

    return passed


def _work(course: _Course[R]) -> None:
    while True:
        try:
            question = course.waiting.popleft()
        except IndexError:
            return
        outcome: _Outcome[R]
        try:
            outcome = _settle(question, course)
            course.n_unanswered = 0
        except LostError as error:
            # A question may be what the server dies of; while it answers others, they are asked.
            course.n_unanswered += not question.is_optional
            is_lost = error.is_down or course.n_unanswered >= UNANSWERED
            outcome = lost(course.server, error) if is_lost else _Unanswered(question, error)
        except BaseException as error:  # noqa: BLE001 - raised again, in the caller's thread
            outcome = error
        if isinstance(outcome, BaseException):
            course.waiting.clear()  # before it is known there, so that no other question is begun
        course.done.put(outcome)


def _settle(question: Question, course: _Course[R]) -> Reply[R]:
    """One question's reply. Raises LostError where no attempt brought any answer, and ServiceError."""
    attempts, began, prompt_tokens = 0, time.monotonic(), None
    over = course.hangup.over

    def reply(status: Status, value: R | None, why: str) -> Reply[R]:
        seconds = round(time.monotonic() - began, 3)
        return Reply(question.number, status, value, why, attempts, seconds, prompt_tokens)

    def once(seed: int) -> Answer:
        nonlocal attempts
        if over.is_set():
            raise LostError("nobody waits for it any more", wait=float("inf"))
        attempts += 1
        return ask(
            course.server,
            question.messages,
            course.schema,
            seed,
            patience=course.patience,
            habits=course.habits,
            hangup=course.hangup,
        )

    why = ""
    for seed in range(course.seed, course.seed + ANSWERS):  # the same one would bring the same text again
        try:
            answer = persist(partial(once, seed), course.patience, over.wait, course.done.put)
        except TooLongError as error:
            return reply("truncated", None, f"too long for the judge: {error}")
        except RefusedError as error:
            return reply("unscored", None, str(error))
        prompt_tokens = answer.prompt_tokens
        floor = least_tokens(question.messages, course.tokens_per_piece)
        if prompt_tokens is not None and prompt_tokens < floor:
            return reply("truncated", None, f"the judge read {prompt_tokens} tokens of at least {floor}")
        try:
            if answer.finish_reason not in _WHOLE:
                said = f"the server ended the answer by {answer.finish_reason[:40]!r}"
                raise AnswerError(_CUT.get(answer.finish_reason, said))
            return reply("scored", course.parse(answer.text), "")
        except AnswerError as error:
            why = str(error)
    return reply("unscored", None, why)
