"""Whatever is said, taken back, changed and broken off: the cache is true, and nothing is left of
what was taken back.
"""

from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from conversing import (
    CHAT,
    LETTERS,
    WILD,
    after,
    conversing,
    done,
    failing,
    require_same,
    require_true,
    tiny,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.errors import InputError, UsageError
from gpt2cli.generation.chat_session import Conversation
from gpt2cli.generation.engine import PrefixCache
from gpt2cli.model.gpt2 import GPT2LMHead

MODELS = [tiny(96, seed=seed) for seed in range(3)]
ROOMY = [tiny(2048, seed=9), tiny(2048, seed=9).to(torch.bfloat16)]  # no turn ever leaves

TEXTS = st.sampled_from(["", "a", "why?", "a longer text so that turns go", "User:\n", "x" * 97])
SETTINGS = st.sampled_from(
    [("top_k", "3"), ("temperature", "0"), ("max_new_tokens", "2"), ("max_new_tokens", "60"), ("seed", "8"),
     ("repetition_penalty", "1.3")]
)  # fmt: skip
SAY = st.tuples(st.just("say"), TEXTS)
STOPPED = st.tuples(st.sampled_from(["stopped", "closed"]), TEXTS, st.integers(0, 12))
BROKEN = st.tuples(st.just("broken"), TEXTS, st.integers(0, 12), st.integers(-1, 1))
RETRY = st.tuples(st.sampled_from(["retry", "retry closed"]), st.integers(0, 12))
UNDO = st.just(("undo",))
SET = st.tuples(st.just("set"), SETTINGS)
SYSTEM = st.tuples(st.just("system"), st.sampled_from([None, "Be short.", "Be long and kind."]))
ACTS = st.lists(SAY | STOPPED | BROKEN | RETRY | UNDO | SET | SYSTEM | st.just(("clear",)), max_size=9)


def broken(talk: Conversation, text: str, n: int, layer: int) -> None:
    with suppress(KeyboardInterrupt), failing(talk._model, n, layer, KeyboardInterrupt()):
        done(talk.say(text))


def closed(events: Any, n: int) -> None:
    for _ in islice(events, n):
        pass
    events.close()


DO: dict[str, Callable[..., Any]] = {
    "say": lambda talk, text: done(talk.say(text)),
    "stopped": lambda talk, text, n: done(talk.say(text, after(n))),
    "closed": lambda talk, text, n: closed(talk.say(text), n),
    "broken": broken,
    "retry": lambda talk, n: done(talk.retry(after(n))),
    "retry closed": lambda talk, n: closed(talk.retry(), n),
    "undo": lambda talk: talk.undo(),
    "set": lambda talk, change: talk.set(*change),
    "system": lambda talk, text: talk.set_system(text),
    "clear": lambda talk: talk.clear(),
}


def act(talk: Conversation, name: str, *arguments: Any) -> None:
    before = talk.exchanges
    try:
        DO[name](talk, *arguments)
    except UsageError:
        assert name in ("undo", "retry", "retry closed") and not before
    except InputError:
        assert "x" * 97 in arguments or name == "retry"
        assert talk.exchanges == before


@settings(max_examples=60)
@given(acts=ACTS, which=st.integers(0, 2), with_template=st.booleans())
def test_the_past_is_always_what_the_cache_holds(
    acts: list[tuple[Any, ...]], which: int, with_template: bool
) -> None:
    model = MODELS[which]
    talk = conversing(model, WILD, 10, CHAT if with_template else None)
    for name, *arguments in acts:
        n_before = len(talk.exchanges)
        act(talk, name, *arguments)
        require_true(model, talk.prefix)
        if len(talk.exchanges) > n_before:
            *turns, last = talk.exchanges[talk.n_dropped :]
            prompt = written(talk, turns, last.question)
            assert talk.prefix.ids[: len(prompt)] == prompt[: len(talk.prefix.ids)]
        assert all(LETTERS.decode(exchange.ids) == exchange.reply for exchange in talk.exchanges)
        assert 0 <= talk.n_dropped <= len(talk.exchanges)


def remaining(talk: Conversation, acts: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Do all, and tell which of them would have been enough."""
    kept: list[tuple[Any, ...]] = []
    for name, *arguments in acts:
        n_before = len(talk.exchanges)
        act(talk, name, *arguments)
        if name == "clear":
            kept = [one for one in kept if one[0] in ("set", "system")]
        elif name == "undo" and n_before:
            asked = [n for n, one in enumerate(kept) if one[0] not in ("set", "system")]
            del kept[asked[-1]]
        elif name in ("set", "system") or len(talk.exchanges) > n_before:
            kept.append((name, *arguments))
    return kept


PLAIN = SAY | STOPPED | BROKEN | UNDO | UNDO | SET | st.just(("clear",))


@settings(max_examples=50)
@given(acts=st.lists(PLAIN | SYSTEM, max_size=10), which=st.integers(0, 2), with_template=st.booleans())
def test_nothing_is_left_of_what_was_taken_back(
    acts: list[tuple[Any, ...]], which: int, with_template: bool
) -> None:
    require_alike(MODELS[which], acts, with_template)


@settings(max_examples=50)
@given(acts=st.lists(PLAIN, max_size=10), half=st.booleans(), with_template=st.booleans())
def test_where_nothing_left_the_context_it_is_so_to_the_last_bit(
    acts: list[tuple[Any, ...]], half: bool, with_template: bool
) -> None:
    require_same(*require_alike(ROOMY[half], acts, with_template))


def require_alike(
    model: GPT2LMHead, acts: list[tuple[Any, ...]], with_template: bool
) -> tuple[PrefixCache, PrefixCache]:
    """Do all, and elsewhere only what was not taken back; then ask both."""
    ours, theirs = (conversing(model, WILD, 10, CHAT if with_template else None) for _ in range(2))
    for name, *arguments in remaining(ours, acts):
        act(theirs, name, *arguments)
    assert (ours.exchanges, ours.n_dropped) == (theirs.exchanges, theirs.n_dropped)
    replies = [done(talk.say("and now?")) for talk in (ours, theirs)]
    assert replies[0].reply == replies[1].reply
    return ours.prefix, theirs.prefix
