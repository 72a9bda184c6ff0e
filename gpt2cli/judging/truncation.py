"""Owns telling whether a server has read all that it was sent, by the prompt tokens it counts.

A server whose context is too small may cut a prompt silently, and its judge then grades half a
response. Its tokenizer is not known here, so this is a floor, not an estimate. Words are sound:
no usual tokenizer makes one token of two words that whitespace separates. Pieces (words and runs
of signs) are tighter: over GPT-2's and SmolLM2's tokenizers, English, Chinese, code and plays all have
at least 0.85 times the tokens per piece that a short prompt of ours has. What a server needs for a
short prompt is seen from its own answers; MARGIN of that is the floor for the others.
"""

import re
from collections.abc import Sequence

MARGIN = 0.75
# An escape in a JSON string is a sign like others, not the letter that stands in it.
_PIECE = re.compile(r"(?:\\u[0-9a-f]{4}|\\.|[^\w\s])+|\w+")


def least_tokens(messages: Sequence[dict[str, str]], tokens_per_piece: float | None) -> int:
    """A server that counts fewer tokens has not read it all. None: nothing is known of the server yet."""
    n_words = sum(len(message["content"].split()) for message in messages)
    return max(n_words, int(MARGIN * (tokens_per_piece or 0.0) * _n_pieces(messages)))


def tokens_per_piece(messages: Sequence[dict[str, str]], prompt_tokens: int) -> float:
    return prompt_tokens / _n_pieces(messages)


def _n_pieces(messages: Sequence[dict[str, str]]) -> int:
    return sum(len(_PIECE.findall(message["content"])) for message in messages)
