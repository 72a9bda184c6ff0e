"""The decode engine: prompts of ids in, new ids out, one step for all rows at a time.

A KV cache lets each token go through the model once; a conversation keeps its cache from prompt to
prompt. Ids are chosen in sampling.py and become text in stop_text.py; chat_prompt.py writes the prompts of
a conversation.
"""

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from gpt2cli.errors import InputError
from gpt2cli.generation.sampling import Sampler, SamplingOptions, Watch, require_length, to_list
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.model.layers import KVCache


@dataclass(frozen=True)
class DecodeStep:
    """One new id per row; None for a row that has ended. A stop id is the last id of its row.

    `window_moved`: a row had filled the context; from this step on it sees only the last half of it. With
    rotary positions the window slides instead, token by token.
    """

    ids: tuple[int | None, ...]
    window_moved: bool


def generate(
    model: GPT2LMHead,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    watch: Watch | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Iterator[DecodeStep]:
    """Continue each prompt until a stop id or for `max_new_tokens`. `watch` sees each choice of ids; the
    rows draw from `generators`, by default those of the seed and their numbers.

    Learned positions end at n_positions: a row that would pass it continues from its last
    n_positions // 2 ids. Rotary ones do not end: a row goes on, and each token attends to the last
    n_positions, as under a sliding mask. In a batch each row gets what it would get alone; equal prompts are
    prefilled once. The model is in evaluation mode until the iterator ends or is closed. Raises InputError
    for a prompt that is empty, too long or holds an unknown id; UsageError for max_new_tokens below 1;
    DivergedError for logits that are not finite.
    """
    limit, slides = model.config.n_positions, model.config.positions == "rotary"
    _check(prompts, model, max_new_tokens)
    rows = [list(prompt) for prompt in prompts]  # the ids in the window of each row
    active = [True] * len(rows)
    kv = model.new_cache(len(rows), min(limit, max(map(len, rows)) + max_new_tokens))
    sampler = Sampler(options, rows, model.config.vocab_size, _device(model), generators, watch=watch)
    n_left, moved = max_new_tokens, False

    was_training = model.training
    model.eval()
    try:
        while True:
            logits, batch = prefill(model, kv, rows)
            extend = partial(decode_one, model, batch)
            n_steps = n_left if slides else min(n_left, limit - kv.length + 1)
            for chosen in _decode(extend, logits, sampler, n_steps):
                n_left -= 1
                for row, token in zip(rows, chosen, strict=True):
                    row.append(token)
                ids = tuple(token if on else None for token, on in zip(chosen, active, strict=True))
                yield DecodeStep(ids, moved)
                active = [on and t not in stop_ids for t, on in zip(chosen, active, strict=True)]
                if not any(active):
                    return
                moved = False
            if not n_left:
                return
            moved = _move_window(rows, active, limit)
    finally:
        if was_training:
            model.train()


@dataclass
class PrefixCache:
    """The KV cache of one row, kept from prompt to prompt. It holds `ids`, also after an exception."""

    kv: KVCache
    ids: list[int] = field(default_factory=list)
    n_prefilled: int = 0  # ids of the last prompt that the cache did not hold


def new_prefix_cache(model: GPT2LMHead) -> PrefixCache:
    """An empty one, with room for the whole context."""
    return PrefixCache(model.new_cache(1, model.config.n_positions))


def continue_row(
    model: GPT2LMHead,
    prefix: PrefixCache,
    prompt: Sequence[int],
    options: SamplingOptions,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
) -> Generator[int, None, None]:
    """Continue one prompt until a stop id, for `max_new_tokens`, or to the end of the context.

    Only the part of the prompt after its common prefix with `prefix.ids` goes through the model. The
    last id that is yielded is not in the cache yet. Without `generator` the ids are those of `generate`. A
    repetition penalty does not apply to the stop ids: a conversation's prompt has one after every reply.
    May be closed at any point. Raises what `generate` raises.
    """
    _check([prompt], model, max_new_tokens)
    generators = None if generator is None else [generator]
    sampler = Sampler(options, [prompt], model.config.vocab_size, _device(model), generators, stop_ids)

    was_training = model.training
    model.eval()
    try:
        kept = min(common_length(prefix.ids, prompt), len(prompt) - 1)  # logits need at least one id
        truncate(prefix, kept)
        prefix.n_prefilled = len(prompt) - kept
        logits = extend_row(model, prefix, prompt[kept:])
        n_most = min(max_new_tokens, model.config.n_positions - len(prompt) + 1)

        def extend(ids: Tensor) -> Tensor:
            return extend_row(model, prefix, ids.tolist())

        for (token,) in _decode(extend, logits, sampler, n_most):
            yield token
            if token in stop_ids:
                return
    finally:
        if was_training:
            model.train()


def _decode(
    extend: Callable[[Tensor], Tensor], logits: Tensor, sampler: Sampler, n_steps: int
) -> Iterator[list[int]]:
    """The new ids of all rows, step by step. Those of the last step do not go through the model."""
    for n in range(1, n_steps + 1):
        ids = sampler(logits)  # (B,)
        yield to_list(ids)
        if n < n_steps:
            logits = extend(ids)  # (B, V)


@torch.inference_mode()
def extend_row(model: GPT2LMHead, prefix: PrefixCache, ids: Sequence[int]) -> Tensor:
    """Append ids to the cache; logits of the next token, (1, V)."""
    input_ids = torch.tensor([ids], device=_device(model))  # (1, T)
    prefix.kv.length = len(prefix.ids)
    try:
        logits = model.extend(input_ids, prefix.kv)
        prefix.ids += ids
    finally:  # after an interrupt it holds what it held before
        truncate(prefix, len(prefix.ids))
    return logits


def truncate(prefix: PrefixCache, n: int) -> None:
    """Forget all but the first n ids."""
    del prefix.ids[n:]
    prefix.kv.length = len(prefix.ids)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of their common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


@dataclass
class BatchCache:
    """The KV cache of B rows. Equal prompts are prefilled once, and copied only at the first decode step, so
    that the first token does not wait for it.
    """

    kv: KVCache
    n_pads: Tensor | None  # (B, 1), of rows of unequal length: padding on the left, which no token sees
    distinct: KVCache | None = None  # of the distinct prompts, until copied
    sources: Sequence[int] = ()  # the distinct prompt of each row


@torch.inference_mode()
def prefill(model: GPT2LMHead, kv: KVCache, rows: Sequence[Sequence[int]]) -> tuple[Tensor, BatchCache]:
    """Fill a cache of B rows, replacing its content; logits of the next token, (B, V)."""
    prompts = list(dict.fromkeys(map(tuple, rows)))
    if len(prompts) == len(rows):
        logits, n_pads = _prefill_each(model, kv, rows)
        return logits, BatchCache(kv, n_pads)
    place = {prompt: n for n, prompt in enumerate(prompts)}
    sources = [place[tuple(row)] for row in rows]
    distinct = model.new_cache(len(prompts), max(map(len, prompts)))
    logits, n_pads = _prefill_each(model, distinct, prompts)
    kv.length = distinct.length
    n_pads = None if n_pads is None else n_pads[sources]
    return logits[sources], BatchCache(kv, n_pads, distinct, sources)


def _prefill_each(
    model: GPT2LMHead, kv: KVCache, rows: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor | None]:
    kv.length = 0
    device = _device(model)
    T = max(map(len, rows))
    input_ids = torch.tensor([[0] * (T - len(row)) + list(row) for row in rows], device=device)  # (B, T)
    if all(len(row) == T for row in rows):
        return model.extend(input_ids, kv), None

    places = torch.arange(T, device=device)
    n_pads = torch.tensor([[T - len(row)] for row in rows], device=device)  # (B, 1)
    positions = (places - n_pads).clamp(min=0)  # (B, T): a row's first real token is at 0
    mask = places <= places[:, None]  # (T, T), causal
    mask = mask & (places >= n_pads)[:, None, None]  # (B, 1, T, T)
    # A padding query sees itself: a softmax over nothing would be NaN, and spread.
    mask = mask | torch.eye(T, dtype=torch.bool, device=device)
    hidden = model.transformer(input_ids, kv, positions, mask, n_last=1)  # (B, 1, C)
    return model.lm_head(hidden[:, -1]), n_pads


@torch.inference_mode()
def decode_one(model: GPT2LMHead, batch: BatchCache, ids: Tensor) -> Tensor:
    """Append one id per row, (B,), to the cache; logits of the next token, (B, V)."""
    kv, n_pads = batch.kv, batch.n_pads
    if batch.distinct is not None:
        _copy_rows(batch.distinct, batch.sources, kv)
        batch.distinct = None
    if n_pads is None:
        return model.extend(ids[:, None], kv)
    size = kv.keys[0].shape[2]
    places = torch.arange(min(kv.length + 1, size), device=ids.device)  # (S,)
    held = kv.length - (kv.length - places) % size  # the number of the token there, padding counted
    mask = (held >= n_pads)[:, None, None]  # (B, 1, 1, S)
    hidden = model.transformer(ids[:, None], kv, kv.length - n_pads, mask)  # (B, 1, C)
    return model.lm_head(hidden[:, -1])  # type: ignore[no-any-return]


def _copy_rows(distinct: KVCache, sources: Sequence[int], kv: KVCache) -> None:
    T = kv.length
    for theirs, ours in zip(distinct.keys + distinct.values, kv.keys + kv.values, strict=True):
        for row, source in enumerate(sources):
            ours[row, :, :T] = theirs[source, :, :T]  # (H, T, D)


def _move_window(rows: list[list[int]], active: Sequence[bool], limit: int) -> bool:
    """Cut rows longer than the context to its last half; returns whether an active row was cut.

    A finished row keeps one id as a placeholder.
    """
    moved = False
    for row, on in zip(rows, active, strict=True):
        if not on:
            del row[:-1]
        elif len(row) > limit:
            del row[: -max(limit // 2, 1)]
            moved = True
    return moved


class Throughput:
    """Tokens per second, end-of-text included, for `generate` and `chat`; prefill is timed apart."""

    def __init__(self) -> None:
        self.start = self._last = time.perf_counter()
        self.prefill_seconds = 0.0
        self._seconds, self._n_tokens = 0.0, 0
        self._is_prefill = True

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @property
    def tokens_per_second(self) -> float:
        """0 before the second token."""
        return self._n_tokens / self._seconds if self._seconds > 0 else 0.0

    def start_prefill(self) -> None:
        """The time until the next token is prefill's."""
        self._is_prefill = True

    def add(self, n_tokens: int = 1) -> None:
        """Count tokens that came together, one per row."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        if self._is_prefill:
            self.prefill_seconds += passed
        else:
            self._seconds += passed
            self._n_tokens += n_tokens
        self._is_prefill = False


def _device(model: GPT2LMHead) -> torch.device:
    return model.transformer.ln_f.weight.device


def _check(prompts: Sequence[Sequence[int]], model: GPT2LMHead, max_new_tokens: int) -> None:
    limit, V = model.config.n_positions, model.config.vocab_size
    require_length(max_new_tokens)
    for prompt in prompts:
        if not prompt:
            raise InputError("a prompt has no tokens", "the model needs one to continue from")
        if len(prompt) > limit:
            raise InputError(f"the prompt has {len(prompt)} tokens", f"this model's context ends at {limit}")
        if not 0 <= min(prompt) <= max(prompt) < V:
            wrong = next(token for token in prompt if not 0 <= token < V)
            raise InputError(f"the prompt holds the id {wrong}", f"this model's ids are 0 to {V - 1}")
