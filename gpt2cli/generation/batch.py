"""Owns answering many questions: in batches of like length, each row ending where it would alone.

Where the questions come from and where the answers go is the caller's business.
"""

from collections.abc import Callable, Iterator, Sequence

from gpt2cli.generation.engine import generate
from gpt2cli.generation.sampling import Decoding
from gpt2cli.generation.stop_text import Reply
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.tokenizer.base import Tokenizer


def answers(
    model: GPT2LMHead,
    tokenizer: Tokenizer,
    questions: Sequence[Sequence[int]],
    *,
    stops: Sequence[str],
    decoding: Decoding,
    max_new_tokens: int,
    n_rows: int,
    stop: Callable[[], int],
) -> Iterator[tuple[int, Reply]]:
    """(number of the question, its finished answer), the shortest questions first.

    An answer has at most `max_new_tokens`, and ends with the context. Ends early where `stop` asks
    for it. Raises what `generate` raises.
    """
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    for start in range(0, len(order), n_rows):
        batch = order[start : start + n_rows]
        replies = answer_batch(
            model, tokenizer, [questions[i] for i in batch], stops, decoding, max_new_tokens, stop
        )
        if replies is None:
            return
        yield from zip(batch, replies, strict=True)


def answer_batch(
    model: GPT2LMHead,
    tokenizer: Tokenizer,
    questions: Sequence[Sequence[int]],
    stops: Sequence[str],
    decoding: Decoding,
    max_new_tokens: int,
    stop: Callable[[], int],
) -> list[Reply] | None:
    """The answers to questions that are read together; None where `stop` came first."""
    context = model.config.n_positions
    # A position for each token that is read; the last one of an answer is not read any more.
    room = [min(max_new_tokens, context + 1 - len(question)) for question in questions]
    replies = [Reply(tokenizer, stops) for _ in questions]
    for n, step in enumerate(generate(model, questions, decoding, max(room), {tokenizer.end_of_text}), 1):
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
