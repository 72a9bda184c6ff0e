"""The Tokenizer protocol: text to ids and back, a size, an end-of-text id, a fingerprint.

`TextStream` decodes ids one by one, never splitting a character.

The tokenizers are in bpe.py and chars.py, their files in files.py.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gpt2cli.errors import InputError

END_OF_TEXT = "<|endoftext|>"  # separates documents; as an id only, never by typing it in a text
# The vocabularies of tokenizers that are not byte-level.
OTHER_KINDS = {
    "spiece.model": "SentencePiece",
    "sentencepiece.bpe.model": "SentencePiece",
    "tokenizer.model": "SentencePiece",
    "vocab.txt": "WordPiece",
}


CHARS = "chars"  # the name of a vocabulary of the characters of a text
SMALLEST = 257  # tokens of a byte-level vocabulary: the bytes and <|endoftext|>


def trained_size(name: str) -> int | None:
    """8192 of "bpe-8192", a vocabulary trained on the text that it will encode; None of another name."""
    found = re.fullmatch(r"bpe-(\d{1,9})", name)
    return int(found[1]) if found else None


def is_made_of_text(name: str) -> bool:
    """Whether the tokenizer of this name is made from the text that it will encode."""
    return name == CHARS or trained_size(name) is not None


@dataclass(frozen=True)
class AddedToken:
    """A token that stands beside the merges, as Hugging Face calls it. A control token is an id that
    ordinary text is never encoded to; any other is encoded wherever its text stands.
    """

    id: int
    content: str
    is_control: bool = True
    lstrip: bool = False  # takes the white space before it along
    rstrip: bool = False  # and after it
    normalized: bool = False  # found after those that are not, in what they leave over


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that have a meaning for one model, as its files say."""

    eos: int  # ends an answer and separates documents
    stops: tuple[int, ...]  # generation stops at each; as in transformers, `eos` need not be among them
    bos: int | None = None
    pad: int | None = None
    adds_bos: bool = False  # each text begins with `bos`

    def as_config(self) -> dict[str, int | list[int] | None]:
        """Their keys in config.json and generation_config.json."""
        eos = self.stops[0] if len(self.stops) == 1 else list(self.stops)
        pad = {} if self.pad is None else {"pad_token_id": self.pad}
        return {"bos_token_id": self.bos, "eos_token_id": eos, **pad}  # without them it would be 50256


class Tokenizer(Protocol):
    """Ids are 0 .. n_vocab - 1, `end_of_text` among them. Instances are immutable and picklable."""

    @property
    def name(self) -> str:
        """ "gpt2", "bpe" or "chars"."""

    @property
    def n_vocab(self) -> int: ...

    @property
    def special(self) -> SpecialTokens: ...

    @property
    def end_of_text(self) -> int:
        """`special.eos`: GPT-2's <|endoftext|>, or the model's own."""

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The texts of the ids that ordinary text is never encoded to."""

    def id_of(self, token: str) -> int | None:
        """The id of one token of the vocabulary, as its files spell it."""

    @property
    def fingerprint(self) -> str:
        """`fingerprint_of` the tokens: equal fingerprints mean that texts get equal ids."""

    def encode(self, text: str, control_tokens: bool = False) -> list[int]:
        """The ids of ordinary text: a typed "<|endoftext|>" is thirteen plain characters, unless
        `control_tokens` are read, each as its single id. Does not add the `bos` of `begin`.
        """

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the tokens, which may end inside a character. InputError for an unknown id."""

    def decode(self, ids: Iterable[int]) -> str:
        """`decode_bytes` as UTF-8, with U+FFFD where that is not possible."""


def begin(tokenizer: Tokenizer) -> list[int]:
    """The ids before each text: none for GPT-2, the `bos` of a tokenizer that adds it."""
    special = tokenizer.special
    return [special.bos] if special.adds_bos and special.bos is not None else []


def fingerprint_of(tokens: Iterable[bytes], *others: object) -> str:
    """SHA-256, in hex, over the tokens in the order of their ids, each after its length (4 bytes).

    `others`, where there are any, are what else decides about the ids of a text.
    """
    digest = hashlib.sha256(b"".join(len(token).to_bytes(4, "little") + token for token in tokens))
    if others:
        digest.update(json.dumps(others).encode())
    return digest.hexdigest()


def join_tokens(tokens: Sequence[bytes], ids: Iterable[int]) -> bytes:
    """The bytes of `ids`, one after another. Raises InputError for an id outside the vocabulary."""
    ids = list(ids)
    # Checked first, because a negative index would quietly count from the end.
    if ids and not (min(ids) >= 0 and max(ids) < len(tokens)):
        wrong = next(i for i in ids if not 0 <= i < len(tokens))
        raise InputError(
            f"token id {int(wrong)} is not in the vocabulary",
            f"this tokenizer knows the ids 0 to {len(tokens) - 1}",
            "use the tokenizer that belongs to the model",
        )
    return b"".join([tokens[i] for i in ids])


def without_surrogates(text: str) -> str:
    """Pairs of surrogates become their character and lone ones U+FFFD: UTF-8 has neither."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class TextStream:
    """The pieces that `feed` and `finish` return, put together, are `tokenizer.decode` of all ids.

    A byte-level token may hold a part of a UTF-8 character (an emoji is up to four tokens), so
    bytes wait here until their character is whole or can no longer become one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The text that `token_id` completes, which may be empty."""
        return self._decoder.decode(self._tokenizer.decode_bytes((token_id,)))

    def finish(self) -> str:
        """The text of an unfinished character at the end. Resets the stream."""
        tail = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return tail
