"""Owns turning pieces into packed ids quickly. Runs in threads: tiktoken lets go of Python's lock
while it works, so threads use every core without a second process to feed, watch or orphan.
"""

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tiktoken

from gpt2cli.data.shards import Ids, packed
from gpt2cli.data.text_reader import Piece
from gpt2cli.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2cli.tokenizer.bpe import BPE, PATTERN


class Encoder(Protocol):
    def __call__(self, pieces: Sequence[Piece]) -> Ids:
        """The ids (N,) of consecutive pieces of one split, an end-of-text after each document's end."""


def encoder_for(tokenizer: Tokenizer, dtype: str) -> Encoder:
    """An encoder that many threads may call at once; its ids are `packed` for the files."""
    by_pieces = _by_bytes(tokenizer) if isinstance(tokenizer, BPE) else _one_by_one(tokenizer)
    return lambda pieces: packed(by_pieces(pieces), dtype, tokenizer.n_vocab)


def _by_bytes(tokenizer: BPE) -> Encoder:
    """One call for many documents, which matters where they are short, and no Python list.

    The texts are joined by the marker, which this Encoding, unlike the tokenizer's own, knows.
    That is right as long as no text contains the marker; then each is encoded by itself.
    """
    specials = set(tokenizer.specials)
    ranks = {token: i for i, token in enumerate(tokenizer.tokens) if i not in specials}
    plain = _one_by_one(tokenizer)
    own = threading.local()

    def encoding() -> tiktoken.Encoding:
        """One a thread: threads that share an Encoding wait for its regular expression, and lose
        from a quarter to a half of the speed.
        """
        if not hasattr(own, "encoding"):
            own.encoding = tiktoken.Encoding(
                tokenizer.name,
                pat_str=PATTERN,
                mergeable_ranks=ranks,
                special_tokens={END_OF_TEXT: tokenizer.end_of_text},
            )
        return own.encoding  # type: ignore[no-any-return]

    def encode(pieces: Sequence[Piece]) -> Ids:
        joined = "".join([piece.text + END_OF_TEXT if piece.ends else piece.text for piece in pieces])
        if joined.count(END_OF_TEXT) != sum(piece.ends for piece in pieces):
            return plain(pieces)
        ids: Ids = encoding().encode_to_numpy(joined, allowed_special={END_OF_TEXT})
        return ids

    return encode


def _one_by_one(tokenizer: Tokenizer) -> Encoder:
    def encode(pieces: Sequence[Piece]) -> Ids:
        parts = [np.empty(0, np.int64)]
        for piece in pieces:
            parts.append(np.array(tokenizer.encode(piece.text), dtype=np.int64))
            if piece.ends:
                parts.append(np.array([tokenizer.end_of_text], dtype=np.int64))
        return np.concatenate(parts)

    return encode
