"""Owns what happens in a reply, as far as whoever shows it has to know. Nothing is shown here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Text of the reply that is certain; not yet safe for a terminal."""

    text: str


@dataclass(frozen=True)
class Dropped:
    """The context is full: so many of the oldest turns have just left it."""

    n_turns: int


@dataclass(frozen=True)
class Done:
    """The last event of a reply. `finish_reason` is "end_of_text", "stop" (a stop string of the
    template), "length", "context" (nothing is left to drop) or "interrupted".
    """

    reply: str
    finish_reason: str
    turn: int  # from 1
    attempt: int  # from 0
    n_prompt: int  # tokens of the prompt
    n_prefilled: int  # tokens that were read, of the prompt and after drops
    n_new: int  # tokens of the reply
    n_dropped: int  # turns that left the context for this reply
    seconds: float
    prefill_seconds: float  # of these, until the first token and for reading again after drops
    tokens_per_second: float  # without the reading; 0 where it cannot be told
    is_kept: bool  # an interrupted reply without a single token leaves the conversation as it was


Event = Piece | Dropped | Done
