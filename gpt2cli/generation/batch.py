"""Replies to many prompts, batched by length; each row matches what it would get unbatched."""

from collections.abc import Callable, Iterator, Sequence

from gpt2cli.generation.engine import generate
from gpt2cli.generation.sampling import SamplingOptions, chance
from gpt2cli.generation.stop_text import Continuation
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.tokenizer.base import Tokenizer


def answer_prompts(
    model: GPT2LMHead,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    stops: Sequence[str],
    options: SamplingOptions,
    max_new_tokens: int,
    n_rows: int,
    stop: Callable[[], int],
) -> Iterator[tuple[int, Continuation]]:
    """(number of the prompt, its finished reply), the shortest prompts first, `n_rows` in a batch.

    A reply has at most `max_new_tokens`, ends before a text in `stops`, and ends with the context.
    Ends early when `stop` returns true. Raises what `generate` raises.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), n_rows):
        batch = order[start : start + n_rows]
        replies = answer_batch(
            model, tokenizer, [prompts[i] for i in batch], stops, options, max_new_tokens, stop
        )
        if replies is None:
            return
        yield from zip(batch, replies, strict=True)


def answer_batch(
    model: GPT2LMHead,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[str],
    options: SamplingOptions,
    max_new_tokens: int,
    stop: Callable[[], int],
) -> list[Continuation] | None:
    """The replies to prompts in one batch; None if `stop` returned true."""
    context = model.config.n_positions
    # Each token that goes through the model takes a position; the last of a reply does not.
    room = [min(max_new_tokens, context + 1 - len(prompt)) for prompt in prompts]
    replies = [Continuation(tokenizer, stops) for _ in prompts]
    for n, step in enumerate(generate(model, prompts, options, max(room), set(tokenizer.special.stops)), 1):
        if stop():
            return None
        for reply, token, most in zip(replies, step.ids, room, strict=True):
            if token is not None:
                reply.feed(token)
            if n >= most:
                reply.finish()
        if all(reply.finish_reason for reply in replies):
            break
    return replies


def continue_prompts(
    model: GPT2LMHead,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    n_samples: int,
    stops: Sequence[str],
    options: SamplingOptions,
    max_new_tokens: int,
    n_rows: int,
) -> Iterator[tuple[int, list[Continuation]]]:
    """(number of the prompt, its continuations), in the order of the prompts, about `n_rows` in a batch.

    Each is what its prompt alone gets: the draws of a sample depend on the seed and the sample's number,
    not on the prompt's. Prompts of like length share a batch. Raises what `generate` raises.
    """
    n_prompts = max(1, n_rows // n_samples)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    done: dict[int, list[Continuation]] = {}
    n_yielded = 0
    for start in range(0, len(order), n_prompts):
        batch = order[start : start + n_prompts]
        replies = {i: [Continuation(tokenizer, stops) for _ in range(n_samples)] for i in batch}
        rows = [reply for i in batch for reply in replies[i]]
        steps = generate(
            model,
            [prompts[i] for i in batch for _ in range(n_samples)],
            options,
            max_new_tokens,
            set(tokenizer.special.stops),
            generators=[chance(options.seed, sample) for _ in batch for sample in range(n_samples)],
        )
        for step in steps:
            for reply, token in zip(rows, step.ids, strict=True):
                if token is not None:
                    reply.feed(token)
            if all(reply.finish_reason for reply in rows):
                break
        for reply in rows:
            reply.finish()
        done |= replies
        while n_yielded in done:
            yield n_yielded, done.pop(n_yielded)
            n_yielded += 1
