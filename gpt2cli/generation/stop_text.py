"""The text of one row as its ids arrive, up to end-of-text or a stop string.

Ids come from engine.py; halves of characters wait in tokenizer/base.py. What is safe to show
on a terminal is decided in ui/console.py.
"""

from collections.abc import Sequence

from gpt2cli.tokenizer.base import TextStream, Tokenizer


class Continuation:
    """One continuation. `text` is all the pieces that `feed` and `finish` return.

    No part of a stop string is returned: text that may begin one waits for the next ids.
    `finish_reason` is "" while the reply grows, then "end_of_text", "stop" (a stop string), or the
    argument of `finish`.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        assert all(stop_strings), "an empty stop string would stop everything"
        self.ids: list[int] = []  # without the token that ended it; with the ids of a stop string
        self.text = ""
        self.finish_reason = ""
        self._ends = frozenset(tokenizer.special.stops)
        self._stream = TextStream(tokenizer)
        self._stops = tuple(stop_strings)
        self._waiting = ""  # text that may be the beginning of a stop string

    def feed(self, token_id: int) -> str:
        """The text that this id completes. After the end, ids are ignored."""
        if self.finish_reason:
            return ""
        if token_id in self._ends:
            return self.finish("end_of_text")
        piece = self._stream.feed(token_id)
        self.ids.append(token_id)  # none that is not in the vocabulary
        return self._release(piece)

    def finish(self, reason: str = "length") -> str:
        """The text that is still waiting, when no more ids will come. The first reason stays."""
        if self.finish_reason:
            return ""
        piece = self._release(self._stream.finish())
        if not self.finish_reason:
            self.finish_reason = reason
            piece += self._waiting
            self.text += self._waiting
        return piece

    def _release(self, piece: str) -> str:
        text = self._waiting + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.finish_reason = "stop"
            end = min(found)
        else:
            end = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._waiting = text[end:]
        self.text += text[:end]
        return text[:end]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
