"""A conversation with a model: its turns, the KV cache of its prefix, and the cost of a reply.

A reply is a function of the turns in the context before it, the settings, its number and its attempt;
turns that were undone play no part. This holds bit for bit, except where the cache was prefilled again in
between, as when turns leave the context: the last bits of keys and values depend on how many ids are
prefilled together. Turns become ids in chat_prompt.py, ids are chosen in engine.py, and conversations are
stored by chat_file.py.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.generation.chat_file import Transcript, from_json, to_json
from gpt2cli.generation.chat_prompt import (
    ChatFormat,
    Exchange,
    first_that_fits,
    own_ids,
    require_room,
    require_room_beside,
)
from gpt2cli.generation.chat_settings import ChatSettings
from gpt2cli.generation.engine import Throughput, common_length, continue_row, new_prefix_cache, truncate
from gpt2cli.generation.sampling import chance
from gpt2cli.generation.stop_text import Continuation
from gpt2cli.jinja_template import JinjaTemplate
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.templates import Template
from gpt2cli.tokenizer.base import Tokenizer, without_surrogates

Stop = Callable[[], object]


@dataclass(frozen=True)
class TextDelta:
    """The next text of the reply; not yet safe for a terminal."""

    text: str


@dataclass(frozen=True)
class TurnsDropped:
    """The context was full: this many of the oldest turns have left it."""

    n_turns: int


@dataclass(frozen=True)
class ReplyDone:
    """The last event of a reply. `finish_reason` is "end_of_text", "stop" (a stop string of the
    template), "length", "context" (no turn is left to drop) or "interrupted".
    """

    reply: str
    finish_reason: str
    turn: int  # from 1
    attempt: int  # from 0
    n_prompt: int  # tokens of the prompt
    n_prefilled: int  # tokens that went through the model, of the prompt and after drops
    n_new: int  # tokens of the reply
    n_dropped: int  # turns that left the context for this reply
    seconds: float
    prefill_seconds: float  # of these, before the first token and after drops
    tokens_per_second: float  # without prefill; 0 if unknown
    is_kept: bool  # an interrupted reply without a single token leaves the conversation as it was


ChatEvent = TextDelta | TurnsDropped | ReplyDone


@dataclass
class _Cost:
    n_prompt: int = 0
    n_prefilled: int = 0
    n_dropped: int = 0
    throughput: Throughput = field(default_factory=Throughput)


class Conversation:
    """One reply at a time: read or close an iterator of events before you call another method.

    `history` is how many previous turns the model is shown; None shows all that fit. With `control_tokens`,
    those in a text are read as single ids. Puts the model into evaluation mode. Raises InputError for a
    system text that leaves no room.
    """

    def __init__(
        self,
        model: GPT2LMHead,
        tokenizer: Tokenizer,
        template: Template | JinjaTemplate | None,
        system: str | None,
        settings: ChatSettings,
        history: int | None = None,
        control_tokens: bool = False,
    ) -> None:
        self._model, self._settings, self.history = model.eval(), settings, history
        self._format = _with_system(model, ChatFormat(tokenizer, template, None, control_tokens), system)
        self.prefix = new_prefix_cache(model)
        self._exchanges: list[Exchange] = []
        self.n_dropped = 0  # how many of the oldest turns have left the context
        self.last_prompt: tuple[int, ...] = ()  # of the last turn; empty where it was undone

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All turns, oldest first, including those that have left the context."""
        return tuple(self._exchanges)

    @property
    def template(self) -> Template | JinjaTemplate | None:
        return self._format.template

    @property
    def system(self) -> str | None:
        return self._format.system

    @property
    def settings(self) -> dict[str, int | float]:
        return asdict(self._settings)

    def say(self, text: str, stop: Stop = lambda: False) -> Iterator[ChatEvent]:
        """Stream the reply. It ends "interrupted" if `stop` returns true before a token.

        The tokens so far are kept, also when the iterator is closed or an exception passes; a signal's
        exception passes after ReplyDone. Raises InputError, at the first event, for a text that does not fit
        the context or holds characters that a character model does not know; the conversation is then
        unchanged.
        """
        yield from self._ask(without_surrogates(text), 0, stop, self.exchanges, self.n_dropped)

    def retry(self, stop: Stop = lambda: False) -> Iterator[ChatEvent]:
        """Ask the last question again, with other random numbers. UsageError at the first event if there
        is none. The old reply stays until the new one has a token.
        """
        exchanges, n_dropped = self.exchanges, self.n_dropped
        last = self.undo()
        yield from self._ask(last.question, last.attempt + 1, stop, exchanges, n_dropped)

    def undo(self) -> Exchange:
        """Remove and return the last question and its reply. UsageError if there is none."""
        if not self._exchanges:
            raise UsageError("there is no turn yet", "nothing has been said")
        last = self._exchanges[-1]
        self._return_to(self._exchanges[:-1], last.n_dropped, last.n_held)
        return last

    def clear(self) -> None:
        """Forget every turn; system text and settings stay."""
        self._return_to((), 0, 0)

    def recall(self, exchanges: Sequence[Exchange]) -> None:
        """Become a conversation of these turns; system text and settings stay."""
        self._return_to(exchanges, 0, 0)

    def set(self, name: str, value: str) -> None:
        """Change one of SETTINGS from its text; UsageError says what it can be."""
        self._settings = self._settings.changed(name, value)

    def set_system(self, text: str | None) -> None:
        """Replace the system text; None removes it. InputError for one that leaves no room."""
        self._format = _with_system(self._model, self._format, text)

    def transcript(self, model: str) -> dict[str, Any]:
        """A JSON object of the whole conversation; `model` is the model's name."""
        stored = Transcript(self.system, self._settings, self.exchanges, self.n_dropped, self.history)
        return to_json(stored, self._format, model)

    def restore(self, value: Any, where: str) -> None:
        """Become the conversation of a transcript: turns, system text, settings, history.

        Raises InputError, naming the place in `where`, for anything that `transcript` does not write, and
        for a system text that leaves no room; the conversation is then unchanged.
        """
        stored = from_json(value, self._format.tokenizer, where)
        self.set_system(stored.system)
        self._settings, self.history = stored.settings, stored.history
        self._return_to(stored.exchanges, stored.n_dropped, 0)

    def prompt(self, question: str) -> list[int]:
        """The ids that the model would be fed for this question. Raises InputError as `say`."""
        question = without_surrogates(question)
        require_room(self._format, question, self._model.config.n_positions)
        return self._fitting(question, self._n_hidden, [])[1]

    @property
    def _n_hidden(self) -> int:
        """How many of the oldest turns the next prompt leaves out."""
        return max(self.n_dropped, 0 if self.history is None else len(self._exchanges) - self.history)

    def _fitting(self, question: str, n_hidden: int, reply: Sequence[int]) -> tuple[int, list[int]]:
        """How many turns to leave out, at least `n_hidden`, and the prompt without them, `reply` included."""
        limit, left = self._model.config.n_positions, self._settings.max_new_tokens - len(reply)
        most = limit - len(reply) - min(left, limit // 4)  # a reply needs room of its own
        n_hidden = first_that_fits(self._format, self._exchanges, question, n_hidden, most)
        return n_hidden, [*self._format.prompt(self._exchanges[n_hidden:], question), *reply]

    def _ask(
        self, question: str, attempt: int, stop: Stop, exchanges: Sequence[Exchange], n_dropped: int
    ) -> Iterator[ChatEvent]:
        """Ask; without a reply, return to `exchanges` and `n_dropped`."""
        asked = Exchange(question, "", (), "", attempt, self.n_dropped, len(self.prefix.ids))
        turn = len(self._exchanges) + 1
        reply, cost = Continuation(self._format.tokenizer, self._format.stops), _Cost()
        reason, signal = "interrupted", None
        try:
            reason = yield from self._answer(asked, reply, cost, stop)
        except (KeyboardInterrupt, SystemExit) as error:
            signal = error
        finally:
            rest = reply.finish(reason)
            is_kept = bool(reply.ids) or reply.finish_reason != "interrupted"
            if is_kept:
                self._keep(asked, reply)
            else:
                self._return_to(exchanges, n_dropped, asked.n_held)
        if rest:
            yield TextDelta(rest)
        yield ReplyDone(
            reply=reply.text,
            finish_reason=reply.finish_reason,
            turn=turn,
            attempt=attempt,
            n_prompt=cost.n_prompt,
            n_prefilled=cost.n_prefilled,
            n_new=len(reply.ids),
            n_dropped=cost.n_dropped,
            seconds=cost.throughput.seconds,
            prefill_seconds=cost.throughput.prefill_seconds,
            tokens_per_second=cost.throughput.tokens_per_second,
            is_kept=is_kept,
        )
        if signal:
            raise signal

    def _answer(
        self, asked: Exchange, reply: Continuation, cost: _Cost, stop: Stop
    ) -> Generator[ChatEvent, None, str]:
        """Feed the reply; returns why it ends."""
        limit, ends = self._model.config.n_positions, set(self._format.tokenizer.special.stops)
        settings = self._settings
        generator = chance(settings.seed, len(self._exchanges), asked.attempt)
        require_room(self._format, asked.question, limit)
        n_hidden = self._n_hidden
        while True:
            left = settings.max_new_tokens - len(reply.ids)
            n_hidden, prompt = self._fitting(asked.question, n_hidden, reply.ids)
            if len(prompt) > limit:
                return "context"
            if n_hidden > self._n_hidden:
                n_new, self.n_dropped = n_hidden - self._n_hidden, n_hidden
                cost.n_dropped += n_new
                yield TurnsDropped(n_new)
            if stop():
                return "interrupted"
            cost.n_prompt, self.last_prompt = cost.n_prompt or len(prompt), tuple(prompt)
            cost.throughput.start_prefill()
            chosen = continue_row(self._model, self.prefix, prompt, settings, left, ends, generator)
            with closing(chosen):
                for n, token in enumerate(chosen):
                    cost.throughput.add()
                    cost.n_prefilled += self.prefix.n_prefilled if n == 0 else 0
                    piece = reply.feed(token)
                    if piece:
                        yield TextDelta(piece)
                    if reply.finish_reason:
                        return reply.finish_reason
                    if stop():
                        return "interrupted"
            if len(reply.ids) == settings.max_new_tokens:
                return "length"
            if n_hidden == len(self._exchanges):
                return "context"
            n_hidden += 1

    def _keep(self, asked: Exchange, reply: Continuation) -> None:
        """Add the turn, and drop from the cache what the next prompt will not begin with.

        Where `history` moves on, that is all of it: a message by itself is answered as after `clear`.
        """
        ids, n_hidden = own_ids(reply, self._format.tokenizer), self._n_hidden
        prompt = self._format.prompt(self._exchanges[n_hidden:], asked.question)
        self._exchanges.append(replace(asked, reply=reply.text, ids=ids, finish_reason=reply.finish_reason))
        next_prompt = [*prompt, *ids, self._format.tokenizer.end_of_text]
        is_next = self._n_hidden == n_hidden
        truncate(self.prefix, common_length(self.prefix.ids, next_prompt) if is_next else 0)

    def _return_to(self, exchanges: Sequence[Exchange], n_dropped: int, n_held: int) -> None:
        self._exchanges, self.n_dropped, self.last_prompt = list(exchanges), n_dropped, ()
        truncate(self.prefix, n_held)


def _with_system(model: GPT2LMHead, chat_format: ChatFormat, system: str | None) -> ChatFormat:
    chat_format = replace(chat_format, system=None if system is None else without_surrogates(system))
    require_room_beside(chat_format, model.config.n_positions)
    return chat_format
