"""Owns turning ids into text as they come, without ever showing half a character.

Which ids come, and what is safe to print, is decided elsewhere.
"""

import codecs

from gpt2cli.tokenizer.base import Tokenizer


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
        """What an unfinished character at the end decodes to. The stream is then as new."""
        tail = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return tail
