"""The prompt as ids: a text to continue, or a conversation with its turns, template and system text."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gpt2cli.errors import InputError
from gpt2cli.generation.stop_text import Continuation
from gpt2cli.jinja_template import JinjaTemplate
from gpt2cli.templates import Template, Turn
from gpt2cli.tokenizer.base import Tokenizer, begin

LEAST_ROOM = 8  # tokens for a question and the beginning of its reply


def plain_prompt(tokenizer: Tokenizer, text: str, control_tokens: bool = False) -> list[int]:
    """The ids of a text to continue, at least one: the empty text begins as the tokenizer's texts do."""
    ids = [*begin(tokenizer), *tokenizer.encode(text, control_tokens)]
    first = tokenizer.end_of_text if tokenizer.special.bos is None else tokenizer.special.bos
    return ids or [first]


@dataclass(frozen=True)
class Exchange:
    """A question and its reply: one turn of the conversation."""

    question: str
    reply: str
    ids: tuple[int, ...]  # what the model chose for the reply, without end-of-text
    finish_reason: str
    attempt: int = 0  # how often the question had been asked before
    n_dropped: int = 0  # turns that had left the context when it was asked
    n_held: int = field(default=0, compare=False)  # tokens in the KV cache by then


@dataclass(frozen=True)
class ChatFormat:
    """How turns are written for a model. Without a template they are one running text."""

    tokenizer: Tokenizer
    template: Template | JinjaTemplate | None
    system: str | None
    control_tokens: bool = False  # whether those in a user's text are read as such

    @property
    def stops(self) -> tuple[str, ...]:
        return self.template.stops if self.template else ()

    def prompt(self, exchanges: Sequence[Exchange], question: str) -> list[int]:
        """The ids before the reply, as in training, with earlier replies in the ids that the model chose.
        An empty text begins with end-of-text.
        """
        if isinstance(self.template, JinjaTemplate):
            return self.template.prompt_ids(
                [*_turns(self, exchanges), Turn("user", question)], self.tokenizer
            )
        ids = begin(self.tokenizer)
        if self.template:
            return [*ids, *_written(self, self.template, exchanges, question)]
        encode, end = self.encode, self.tokenizer.end_of_text
        ids += encode(f"{self.system}\n\n") if self.system else []
        if not ids and not (exchanges[0].question if exchanges else question):
            ids = [end]
        for exchange in exchanges:
            ids += [*encode(exchange.question), *exchange.ids]
            ids += [end] * (exchange.finish_reason == "end_of_text")
        return [*ids, *encode(question)]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, self.control_tokens)


def _written(
    chat_format: ChatFormat, template: Template, exchanges: Sequence[Exchange], question: str
) -> Iterator[int]:
    turns = _turns(chat_format, exchanges)
    replies = (exchange.ids for exchange in exchanges)
    for text, is_answer, _ in template.parts([*turns, Turn("user", question)]):
        if is_answer:
            yield from next(replies)
            yield chat_format.tokenizer.end_of_text  # ended, as every answer in training
        else:
            yield from chat_format.encode(text)


def _turns(chat_format: ChatFormat, exchanges: Sequence[Exchange]) -> list[Turn]:
    turns = [] if chat_format.system is None else [Turn("system", chat_format.system)]
    for exchange in exchanges:
        turns += [Turn("user", exchange.question), Turn("assistant", exchange.reply)]
    return turns


def first_that_fits(
    chat_format: ChatFormat, exchanges: Sequence[Exchange], question: str, n_dropped: int, most: int
) -> int:
    """The smallest number of oldest exchanges to drop, at least `n_dropped`, so that the prompt has at most
    `most` ids; all of them if none suffices.
    """
    numbers = range(n_dropped, len(exchanges))
    return n_dropped + bisect_left(
        numbers, True, key=lambda n: len(chat_format.prompt(exchanges[n:], question)) <= most
    )


def require_room(chat_format: ChatFormat, question: str, limit: int) -> None:
    """Raises InputError for a question that does not fit the context even alone."""
    n = len(chat_format.prompt([], question))
    if n > limit:
        beside = n - len(chat_format.encode(question))
        raise InputError(
            f"the message has {n} tokens"
            + f", {beside} of them from template and system text" * (beside > 0),
            f"this model's context holds {limit}",
            "shorten it",
        )


def require_room_beside(chat_format: ChatFormat, limit: int) -> None:
    """Raises InputError for a system text that leaves no room for a question."""
    n = len(chat_format.prompt([], "")) if chat_format.system else 0
    if n > limit - LEAST_ROOM:
        raise InputError(
            f"the system text has {n} tokens" + " with its template" * (chat_format.template is not None),
            f"this model's context holds {limit}, questions and replies included",
            "shorten the system text; /system TEXT sets another one in a chat",
        )


def own_ids(reply: Continuation, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of the reply's text, without the stop string at its end. That may begin inside a token: the
    part of the text in that token is encoded.
    """
    ids, text = reply.ids, reply.text
    if reply.finish_reason != "stop":
        return tuple(ids)
    n = next(n for n in range(len(ids), -1, -1) if text.startswith(tokenizer.decode(ids[:n])))
    return (*ids[:n], *tokenizer.encode(text[len(tokenizer.decode(ids[:n])) :]))
