"""The character vocabulary: one id per character in code point order, <|endoftext|> last.

The caller supplies the characters; files.py writes the file.
"""

import functools
from collections.abc import Iterable

import numpy as np

from gpt2cli.errors import InputError
from gpt2cli.tokenizer.base import (
    END_OF_TEXT,
    SpecialTokens,
    fingerprint_of,
    join_tokens,
    without_surrogates,
)


class Chars:
    """A `Tokenizer` over the distinct characters (Unicode code points) of a corpus."""

    name = "chars"
    control_tokens = (END_OF_TEXT,)

    def __init__(self, characters: str) -> None:
        """`characters`: distinct and sorted, as `from_text` makes them."""
        assert characters == "".join(sorted(set(characters))), "characters must be distinct and sorted"
        self.characters = characters
        self.end_of_text = len(characters)
        self.special = SpecialTokens(self.end_of_text, (self.end_of_text,), self.end_of_text)
        self.n_vocab = len(characters) + 1
        self._codes = _codes(characters)
        self._tokens = [character.encode("utf-8") for character in characters] + [END_OF_TEXT.encode()]

    @classmethod
    def from_text(cls, texts: Iterable[str]) -> "Chars":
        """The vocabulary of a corpus: one string, or any cut of it into pieces, each of them once or more.

        Raises InputError if there are no characters.
        """
        found: set[str] = set()
        for text in [texts] if isinstance(texts, str) else texts:
            found.update(without_surrogates(text))
        if not found:
            raise InputError("no characters to make a vocabulary of", "the text is empty", "give a text file")
        return cls("".join(sorted(found)))

    @functools.cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self._tokens)

    def id_of(self, token: str) -> int | None:
        try:
            return self._tokens.index(token.encode("utf-8"))
        except ValueError:
            return None

    def encode(self, text: str, control_tokens: bool = False) -> list[int]:
        """One id per character. Raises InputError naming the first that is not in the vocabulary."""
        if control_tokens and END_OF_TEXT in text:
            before, after = text.split(END_OF_TEXT, 1)
            return [*self.encode(before), self.end_of_text, *self.encode(after, control_tokens)]
        text = without_surrogates(text)
        codes = _codes(text)
        ids = np.searchsorted(self._codes, codes)
        known = self._codes[np.minimum(ids, len(self._codes) - 1)] == codes
        if not known.all():
            self._refuse(text, int(np.argmin(known)))
        found: list[int] = ids.tolist()
        return found

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return join_tokens(self._tokens, ids)

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def _refuse(self, text: str, position: int) -> None:
        character = text[position]
        raise InputError(
            f"character {character!a} (U+{ord(character):04X}) at position {position} of the text"
            " is not in the vocabulary",
            f"this character model knows only the {len(self.characters)} characters of its training text",
            f"leave it out, or use: {ascii(self.characters[:100])[1:-1]}",
        )


def _codes(text: str) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """The code points of a text, (len(text),)."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
