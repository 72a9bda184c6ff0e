"""Owns a conversation with a model: turns, what the model has read of them, and what a reply costs.

What a reply is made of is a function of the turns before it, the settings and the number of
attempts; not of what was said and taken back in between, to the last bit. How turns become ids is
in history.py, how ids are chosen in engine.py, how a conversation is stored in transcript.py.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gpt2cli.errors import UsageError
from gpt2cli.generation.engine import Past, continue_row
from gpt2cli.generation.events import Done, Dropped, Event, Piece, Reread
from gpt2cli.generation.history import Exchange, Speech, first_that_fits, own_ids, require_room
from gpt2cli.generation.memory import NOTHING, Memory, Read
from gpt2cli.generation.sampling import Decoding, chance
from gpt2cli.generation.settings import Settings
from gpt2cli.generation.text import Reply
from gpt2cli.generation.transcript import Transcript, from_json, to_json
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.prompts import Template
from gpt2cli.tokenizer.protocol import Tokenizer, without_surrogates

__all__ = ["Conversation", "Done", "Dropped", "Event", "Piece", "Reread"]

MOST_KEPT = 64  # turns that can be taken back to the last bit; it costs 16 kB each

Stop = Callable[[], object]


@dataclass(frozen=True)
class _State:
    """What a conversation returns to."""

    exchanges: tuple[Exchange, ...] = ()
    read: tuple[Read, ...] = ()  # before each of the last exchanges
    n_dropped: int = 0
    now: Read = NOTHING


@dataclass
class _Effort:
    """What a reply has cost so far."""

    n_prompt: int = 0
    n_prefilled: int = 0
    n_dropped: int = 0
    prefill_seconds: float = 0.0
    start: float = field(default_factory=time.perf_counter)


def never() -> bool:
    return False


class Conversation:
    """One reply at a time: an iterator of events is read to its end or closed before anything else.

    The model is put into evaluation mode.
    """

    def __init__(
        self,
        model: GPT2LMHead,
        tokenizer: Tokenizer,
        template: Template | None,
        system: str | None,
        decoding: Decoding,
        max_new_tokens: int,
    ) -> None:
        self._settings = Settings(decoding, max_new_tokens)
        self._memory = Memory(model.eval())
        self._model, self._speech = model, Speech(tokenizer, template, _clean(system))
        self._exchanges: list[Exchange] = []
        self._read_before: deque[Read] = deque(maxlen=MOST_KEPT)  # each of the last exchanges
        self._n_dropped = 0
        self._speaking = False

    @property
    def past(self) -> Past:
        """What the cache holds."""
        return self._memory.past

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All turns, oldest first, with those that have left the context."""
        return tuple(self._exchanges)

    @property
    def n_dropped(self) -> int:
        """How many of the oldest turns have left the context."""
        return self._n_dropped

    @property
    def template(self) -> Template | None:
        return self._speech.template

    @property
    def system(self) -> str | None:
        return self._speech.system

    @property
    def settings(self) -> dict[str, int | float]:
        """Their values, by the names of settings.py."""
        return self._settings.values

    def say(self, text: str, stop: Stop = never) -> Iterator[Event]:
        """Stream the reply. Where `stop` says so before a token, it ends "interrupted".

        What was made stays, also when the iterator is closed or an exception passes through it.
        Raises InputError, at the first event, for a text that has no place in the context or holds
        what a character model does not know; the conversation is then as before.
        """
        self._require_silence()
        yield from self._ask(without_surrogates(text), 0, stop, self._state())

    def retry(self, stop: Stop = never) -> Iterator[Event]:
        """Ask the last question again, with other chance. UsageError at the first event where there
        is none. The old reply stays until the new one has a token.
        """
        self._require_silence()
        before = self._state()
        last = self.undo()
        yield from self._ask(last.question, last.attempt + 1, stop, before)

    def undo(self) -> Exchange:
        """Forget the last question and its reply, which are returned. UsageError where there is none."""
        self._require_silence()
        if not self._exchanges:
            raise UsageError("there is no turn yet", "nothing has been said")
        last, state = self._exchanges[-1], self._state()
        now = state.read[-1] if state.read else NOTHING
        self._return_to(_State(state.exchanges[:-1], state.read[:-1], last.n_dropped, now))
        return last

    def clear(self) -> None:
        """Forget every turn; system text and settings stay."""
        self._require_silence()
        self._return_to(_State())

    def set(self, name: str, value: str) -> None:
        """Change a setting from its text; UsageError says what it can be, and nothing is changed."""
        self._require_silence()
        self._settings = self._settings.changed(name, value)

    def set_system(self, text: str | None) -> None:
        """Replace the text that stands before all turns; None takes it away."""
        self._require_silence()
        self._speech = replace(self._speech, system=_clean(text))

    def transcript(self, model: str) -> dict[str, Any]:
        """A JSON object of the whole conversation; `model` is its name for a reader."""
        self._require_silence()
        stored = Transcript(self.system, self._settings, self.exchanges, self._n_dropped)
        return to_json(stored, self._speech, model)

    def restore(self, value: Any, where: str) -> None:
        """Become the conversation of a transcript: turns, system text, settings.

        Raises InputError, naming the place in `where`, for anything that `transcript` does not
        make; the conversation is then as before.
        """
        self._require_silence()
        stored = from_json(value, self._speech.tokenizer, where)
        self.set_system(stored.system)
        self._settings = stored.settings
        self._return_to(_State(stored.exchanges, n_dropped=stored.n_dropped))

    def _ask(self, question: str, attempt: int, stop: Stop, before: _State) -> Iterator[Event]:
        """Ask, and return to `before` if nothing comes of it."""
        asked = self._state()
        reply = Reply(self._speech.tokenizer, self._speech.stops)
        effort = _Effort()
        generator = chance(self._settings.decoding.seed, len(asked.exchanges), attempt)
        self._speaking = True
        try:
            reason = yield from self._answer(question, reply, generator, effort, stop)
            rest = reply.finish(reason)
            if rest:
                yield Piece(rest)
        finally:
            self._speaking = False
            reply.finish("interrupted")
            is_kept = bool(reply.ids) or reply.finish_reason != "interrupted"
            if is_kept:
                self._keep(question, attempt, reply, asked)
            else:
                self._return_to(before)
        yield Done(
            reply.text,
            reply.finish_reason,
            len(asked.exchanges) + 1,
            attempt,
            effort.n_prompt,
            effort.n_prefilled,
            len(reply.ids),
            effort.n_dropped,
            time.perf_counter() - effort.start,
            effort.prefill_seconds,
            is_kept,
        )

    def _answer(
        self, question: str, reply: Reply, generator: torch.Generator, effort: _Effort, stop: Stop
    ) -> Generator[Event, None, str]:
        """Feed the reply until it ends by itself, or return why it ends."""
        limit, end = self._model.config.n_positions, self._speech.tokenizer.end_of_text
        require_room(self._speech, question, limit)
        n_dropped = self._n_dropped
        while True:
            left = self._settings.max_new_tokens - len(reply.ids)
            most = limit - len(reply.ids) - min(left, limit // 4)  # a reply needs room of its own
            n_dropped = first_that_fits(self._speech, self._exchanges, question, n_dropped, most)
            prompt = [*self._speech.prompt(self._exchanges[n_dropped:], question), *reply.ids]
            if len(prompt) > limit:
                return "context"
            if n_dropped > self._n_dropped:
                n_new, self._n_dropped = n_dropped - self._n_dropped, n_dropped
                effort.n_dropped += n_new
                yield Dropped(n_new)
            effort.n_prompt = effort.n_prompt or len(prompt)
            start = time.perf_counter()
            if n_missing := self._memory.n_missing(prompt):
                yield Reread(n_missing)
            effort.n_prefilled += self._memory.recall(prompt, stop)
            if stop():
                return "interrupted"
            chosen = continue_row(
                self._model, self.past, prompt, self._settings.decoding, left, {end}, generator
            )
            with closing(chosen):
                for n, token in enumerate(chosen):
                    if n == 0:
                        effort.n_prefilled += self.past.n_read
                        effort.prefill_seconds += time.perf_counter() - start
                    piece = reply.feed(token)
                    if piece:
                        yield Piece(piece)
                    if reply.finish_reason:
                        return reply.finish_reason
                    if stop():
                        return "interrupted"
            if len(reply.ids) == self._settings.max_new_tokens:
                return "length"
            if n_dropped == len(self._exchanges):
                return "context"
            n_dropped += 1

    def _keep(self, question: str, attempt: int, reply: Reply, asked: _State) -> None:
        """Note the turn; what was read and will not stand before the next question is forgotten."""
        tokenizer = self._speech.tokenizer
        ids = own_ids(reply, tokenizer)
        prompt = self._speech.prompt(self._exchanges[self._n_dropped :], question)
        self._memory.keep([*prompt, *ids, tokenizer.end_of_text])
        self._exchanges.append(
            Exchange(question, reply.text, ids, reply.finish_reason, attempt, asked.n_dropped)
        )
        self._read_before.append(asked.now)

    def _state(self) -> _State:
        return _State(tuple(self._exchanges), tuple(self._read_before), self._n_dropped, self._memory.now)

    def _return_to(self, state: _State) -> None:
        self._exchanges, self._n_dropped = list(state.exchanges), state.n_dropped
        self._read_before = deque(state.read, MOST_KEPT)
        self._memory.return_to(state.now)

    def _require_silence(self) -> None:
        assert not self._speaking, "a reply is read to its end or closed before anything else"


def _clean(system: str | None) -> str | None:
    return None if system is None else without_surrogates(system)
