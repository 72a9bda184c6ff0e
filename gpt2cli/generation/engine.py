"""Owns decoding: from prompts of ids to new ids, one step for all rows at a time.

The past is kept in a cache, so each token goes through the model once; one row can keep it from
prompt to prompt. How an id is chosen is in sampling.py, what the ids say in text.py, what the
prompts of a conversation are in conversation.py.
"""

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt2cli.errors import InputError, UsageError
from gpt2cli.generation.sampling import Decoding, choose, row_generators, uniforms
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.model.layers import KVCache


@dataclass(frozen=True)
class Step:
    """One new id a row; None for a row that has ended. A stop id is the last id of its row.

    `window_moved`: some row had filled the context, and this step and the following see only
    the last half of it.
    """

    ids: tuple[int | None, ...]
    window_moved: bool


@dataclass(frozen=True)
class Padding:
    """Rows of unequal length end together: the shorter ones begin with padding that nobody sees."""

    n_pads: Tensor  # (B, 1)
    visible: Tensor  # (B, n_positions), True for the places of real tokens


def generate(
    model: GPT2LMHead,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
) -> Iterator[Step]:
    """Continue each prompt until a stop id or for `max_new_tokens`.

    Learned positions end at n_positions. A row that would pass it goes on from its last
    n_positions // 2 ids. A batch gives each row what the row would get alone. The model is in
    evaluation mode until the iterator ends or is closed.
    Raises InputError for a prompt that is empty, too long or holds an unknown id; UsageError for
    max_new_tokens below 1; DivergedError for scores that are not finite.
    """
    limit = model.config.n_positions
    _check(prompts, model, max_new_tokens)
    rows = [list(prompt) for prompt in prompts]  # the ids in the window of each row
    active = [True] * len(rows)
    cache = model.new_cache(len(rows), min(limit, max(map(len, rows)) + max_new_tokens))
    generators = row_generators(decoding.seed, len(rows))
    seen = _seen(rows, model) if decoding.repetition_penalty != 1 else None

    was_training = model.training
    model.eval()
    try:
        moved = False
        logits, padding = prefill(model, cache, rows)
        for n in range(1, max_new_tokens + 1):
            ids = sample(logits, decoding, generators, seen)  # (B,)
            chosen = ids.tolist()
            for row, token in zip(rows, chosen, strict=True):
                row.append(token)
            yield Step(tuple(t if on else None for t, on in zip(chosen, active, strict=True)), moved)
            active = [on and t not in stop_ids for t, on in zip(chosen, active, strict=True)]
            if n == max_new_tokens or not any(active):
                return
            if cache.length < limit:
                moved = False
                logits = decode_one(model, cache, ids, padding)
            else:
                moved = _move_window(rows, active, limit)
                logits, padding = prefill(model, cache, rows)
    finally:
        model.train(was_training)


@dataclass
class Past:
    """What one row has read. `ids` is what the cache holds, whatever exception has passed."""

    cache: KVCache
    ids: list[int] = field(default_factory=list)
    n_read: int = 0  # ids of the last prompt that the cache did not hold


def new_past(model: GPT2LMHead) -> Past:
    """An empty one, with room for the whole context."""
    return Past(model.new_cache(1, model.config.n_positions))


def continue_row(
    model: GPT2LMHead,
    past: Past,
    prompt: Sequence[int],
    decoding: Decoding,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
) -> Generator[int, None, None]:
    """Continue one prompt until a stop id, for `max_new_tokens`, or to the end of the context.

    Of the prompt only what comes after its common beginning with `past.ids` goes through the model.
    The last id that comes out has not been read yet. Chance is `generator`'s; without one it is that
    of `generate`. A repetition penalty does not weigh the stop ids: the prompt of a conversation has
    one after every reply. May be closed at any place. Raises what `generate` raises.
    """
    _check([prompt], model, max_new_tokens)
    generators = row_generators(decoding.seed, 1) if generator is None else [generator]
    seen = _seen([prompt], model) if decoding.repetition_penalty != 1 else None
    if seen is not None:
        seen[:, list(stop_ids)] = False

    was_training = model.training
    model.eval()
    try:
        kept = min(n_common(past.ids, prompt), len(prompt) - 1)  # scores come from reading something
        cut(past, kept)
        past.n_read = len(prompt) - kept
        logits = read(model, past, prompt[kept:])
        for n in range(1, max_new_tokens + 1):
            ids = sample(logits, decoding, generators, seen)  # (1,)
            token = int(ids)
            yield token
            if n == max_new_tokens or token in stop_ids or len(past.ids) == model.config.n_positions:
                return
            logits = read(model, past, [token])
    finally:
        model.train(was_training)


@torch.inference_mode()
def read(model: GPT2LMHead, past: Past, ids: Sequence[int]) -> Tensor:
    """Let the model read ids behind what the cache holds; scores of the next token, (1, V)."""
    input_ids = torch.tensor([ids], device=model.transformer.wpe.weight.device)  # (1, T)
    past.cache.length = len(past.ids)
    try:
        logits = model.extend(input_ids, past.cache)
        past.ids += ids
    finally:  # interrupted, it holds what it held
        cut(past, len(past.ids))
    return logits


def cut(past: Past, n: int) -> None:
    """Forget all but the first n ids."""
    del past.ids[n:]
    past.cache.length = len(past.ids)


def n_common(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of their common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


@torch.inference_mode()
def prefill(
    model: GPT2LMHead, cache: KVCache, rows: Sequence[Sequence[int]]
) -> tuple[Tensor, Padding | None]:
    """Run the rows through the model from an empty cache; scores of the next token, (B, V)."""
    cache.length = 0
    device = model.transformer.wpe.weight.device
    T = max(map(len, rows))
    input_ids = torch.tensor([[0] * (T - len(row)) + list(row) for row in rows], device=device)  # (B, T)
    if all(len(row) == T for row in rows):
        return model.extend(input_ids, cache), None

    places = torch.arange(model.config.n_positions, device=device)
    n_pads = torch.tensor([[T - len(row)] for row in rows], device=device)  # (B, 1)
    padding = Padding(n_pads, visible=places >= n_pads)
    positions = (places[:T] - n_pads).clamp(min=0)  # (B, T): a row's first real token is at 0
    mask = places[:T] <= places[:T, None]  # (T, T), causal
    mask = mask & padding.visible[:, None, None, :T]  # (B, 1, T, T)
    # A query of padding sees itself: a softmax over nothing is NaN, and would spread.
    mask = mask | torch.eye(T, dtype=torch.bool, device=device)
    hidden = model.transformer(input_ids, cache, positions, mask)
    return model.lm_head(hidden[:, -1]), padding


@torch.inference_mode()
def decode_one(model: GPT2LMHead, cache: KVCache, ids: Tensor, padding: Padding | None) -> Tensor:
    """Append one id a row, (B,), to the cache; scores of the next token, (B, V)."""
    if padding is None:
        return model.extend(ids[:, None], cache)
    S = cache.length + 1
    mask = padding.visible[:, None, None, :S]  # (B, 1, 1, S)
    hidden = model.transformer(ids[:, None], cache, cache.length - padding.n_pads, mask)
    return model.lm_head(hidden[:, -1])  # type: ignore[no-any-return]


@torch.inference_mode()
def sample(
    logits: Tensor, decoding: Decoding, generators: Sequence[torch.Generator], seen: Tensor | None
) -> Tensor:
    """The next id of each row, (B,), noted in `seen`. A row draws one number a step."""
    ids = choose(logits, decoding, uniforms(generators), seen)
    if seen is not None:
        seen.scatter_(1, ids[:, None], True)
    return ids


def _move_window(rows: list[list[int]], active: Sequence[bool], limit: int) -> bool:
    """Cut the rows that have outgrown the context to its last half; is a row in use among them?

    The others stay whole, as they would alone. A row that has ended only has to be somewhere.
    """
    moved = False
    for row, on in zip(rows, active, strict=True):
        if not on:
            del row[:-1]
        elif len(row) > limit:
            del row[: -max(limit // 2, 1)]
            moved = True
    return moved


def _seen(rows: Sequence[Sequence[int]], model: GPT2LMHead) -> Tensor:
    """Which tokens each row holds, (B, V)."""
    device = model.transformer.wpe.weight.device
    seen = torch.zeros(len(rows), model.config.vocab_size, dtype=torch.bool, device=device)
    for row, ids in zip(seen, rows, strict=True):
        row[torch.tensor(ids, device=device)] = True
    return seen


def _check(prompts: Sequence[Sequence[int]], model: GPT2LMHead, max_new_tokens: int) -> None:
    limit, V = model.config.n_positions, model.config.vocab_size
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens is {max_new_tokens}", "it must be at least 1")
    for prompt in prompts:
        if not prompt:
            raise InputError("a prompt has no tokens", "the model needs one to continue from")
        if len(prompt) > limit:
            raise InputError(f"the prompt has {len(prompt)} tokens", f"this model's context ends at {limit}")
        if not 0 <= min(prompt) <= max(prompt) < V:
            wrong = next(token for token in prompt if not 0 <= token < V)
            raise InputError(f"the prompt holds the id {wrong}", f"this model's ids are 0 to {V - 1}")
