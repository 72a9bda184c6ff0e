"""Conversations with tiny models, and what they would be without a cache."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from loud import loud

from gpt2cli.generation.chat_prompt import Exchange
from gpt2cli.generation.chat_session import ChatEvent, Conversation, ReplyDone
from gpt2cli.generation.chat_settings import ChatSettings
from gpt2cli.generation.engine import PrefixCache, extend_row, generate, new_prefix_cache
from gpt2cli.generation.sampling import SamplingOptions
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.templates import TEMPLATES, Template, Turn, prompt_ids
from gpt2cli.tokenizer.chars import Chars

LETTERS = Chars.from_text("\n .:#?0123456789" + "abcdefghijklmnopqrstuvwxyz" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
CHAT = TEMPLATES["chat"]
GREEDY, WILD = SamplingOptions(temperature=0), SamplingOptions(temperature=1.5, top_k=0, seed=5)


def tiny(n_positions: int, seed: int = 0, attention: str = "sdpa") -> GPT2LMHead:
    """A random model of LETTERS whose ids change where a position, a mask or a past is wrong."""
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=n_positions, vocab_size=LETTERS.n_vocab)
    return loud(new_model(config, seed, attention), seed=seed)


def conversing(
    model: GPT2LMHead,
    decoding: SamplingOptions = GREEDY,
    max_new_tokens: int = 12,
    template: Template | None = CHAT,
    system: str | None = None,
) -> Conversation:
    return Conversation(
        model, LETTERS, template, system, ChatSettings(**vars(decoding), max_new_tokens=max_new_tokens)
    )


def done(events: Iterable[ChatEvent]) -> ReplyDone:
    last = list(events)[-1]
    assert isinstance(last, ReplyDone)
    return last


def written(conversation: Conversation, exchanges: Sequence[Exchange], question: str) -> list[int]:
    """The prompt as training would write it. With LETTERS a reply's text has only one spelling."""
    end = LETTERS.end_of_text
    if conversation.template is None:
        ids = LETTERS.encode(conversation.system + "\n\n") if conversation.system else []
        first = exchanges[0].question if exchanges else question
        ids = ids if ids or first else [end]
        for exchange in exchanges:
            ids += LETTERS.encode(exchange.question + exchange.reply)
            ids += [end] if exchange.finish_reason == "end_of_text" else []
        return ids + LETTERS.encode(question)
    turns = [] if conversation.system is None else [Turn("system", conversation.system)]
    for exchange in exchanges:
        turns += [Turn("user", exchange.question), Turn("assistant", exchange.reply)]
    return prompt_ids(conversation.template, [*turns, Turn("user", question)], LETTERS)


def uncached(conversation: Conversation, question: str, max_new_tokens: int) -> list[int]:
    """A greedy reply of the same model to the whole prompt, without the end-of-text."""
    prompt = written(conversation, conversation.exchanges[conversation.n_dropped :], question)
    steps = generate(conversation._model, [prompt], GREEDY, max_new_tokens, {LETTERS.end_of_text})
    ids = [token for step in steps if (token := step.ids[0]) is not None]
    return [token for token in ids if token != LETTERS.end_of_text]


@contextmanager
def counted(model: GPT2LMHead) -> Iterator[list[int]]:
    """The widths of all forward passes in the block."""
    widths: list[int] = []

    def note(module: Any, inputs: tuple[Any, ...]) -> None:
        widths.append(inputs[0].shape[1])

    hook = model.transformer.register_forward_pre_hook(note)
    yield widths
    hook.remove()


@contextmanager
def failing(model: GPT2LMHead, after: int, layer: int, error: BaseException) -> Iterator[None]:
    """A forward pass, the one after `after` others, breaks off behind a block; -1 is the output layer."""
    left = [after]

    def fail(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error

    place = model.lm_head if layer < 0 else model.transformer.h[layer]
    hook = place.register_forward_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def after(n: int) -> Callable[[], bool]:
    """False n times, then True: a reply ends after n tokens."""
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > n

    return stop


def require_true(model: GPT2LMHead, prefix: PrefixCache) -> None:
    """The cache holds `prefix.ids`: keys and values are those of a fresh forward pass."""
    assert prefix.kv.length == len(prefix.ids)
    if not prefix.ids:
        return
    fresh = new_prefix_cache(model)
    with torch.no_grad():
        extend_row(model, fresh, prefix.ids)
    for name in ("keys", "values"):
        for ours, theirs in zip(getattr(prefix.kv, name), getattr(fresh.kv, name), strict=True):
            end = len(prefix.ids)
            torch.testing.assert_close(ours[:, :, :end], theirs[:, :, :end], atol=1e-4, rtol=1e-3)


def require_same(ours: PrefixCache, theirs: PrefixCache) -> None:
    """To the last bit."""
    assert ours.ids == theirs.ids
    end = len(ours.ids)
    for name in ("keys", "values"):
        for one, other in zip(getattr(ours.kv, name), getattr(theirs.kv, name), strict=True):
            assert torch.equal(one[:, :, :end], other[:, :, :end])
