"""What a model can say, token by token, on its way to a terminal: every token, and many sequences."""

import random
import re
import sys

import pytest

from gpt2cli.generation.stop_text import Continuation
from gpt2cli.tokenizer.base import TextStream
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.ui.console import printable

FEW = 2000
# C0 but newline and tab, DEL and C1; separators of lines; marks and overrides of direction; surrogates.
UNSAFE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"
    "\\ud800-\\udfff]"
)
# Bytes that begin, continue and break characters, alone and in tokens: two in five ids are of these.
FRAGMENTS = [i for i, token in enumerate(gpt2().tokens) if token[:1] >= b"\x80" and len(token) < 3]
CONTROLS = [i for i, token in enumerate(gpt2().tokens) if len(token) == 1 and (token < b" " or token > b"~")]


def streamed(ids: list[int], stops: tuple[str, ...] = ()) -> tuple[Continuation, list[str]]:
    reply = Continuation(gpt2(), stops)
    return reply, [*map(reply.feed, ids), reply.finish()]


def sequences(n: int, seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    pools = (range(gpt2().n_vocab), FRAGMENTS, CONTROLS)
    return [
        [chance.choice(pool) for pool in chance.choices(pools, (6, 2, 2), k=chance.randint(1, 6))]
        for _ in range(n)
    ]


def test_the_pattern_knows_what_steers() -> None:
    for text in ("\x1b[2J", "\x9b31m", "\r", "\x08", "\x00", "\x7f", "\u202e", "\u2066", "\ud83d", "\u2028"):
        assert UNSAFE.search(text), ascii(text)
    assert not UNSAFE.search("a\n\tb ü 漢 😂 \u200d �")


def test_every_token_alone_is_streamed_as_it_decodes_and_shown_safely() -> None:
    shown = []
    for token in range(gpt2().n_vocab):
        reply, pieces = streamed([token])
        whole = "" if token == gpt2().end_of_text else gpt2().decode([token])
        assert reply.text == "".join(pieces) == whole
        shown.append("".join(map(printable, pieces)))
        assert shown[-1] == printable(whole)
    assert len(shown) == 50257
    assert not UNSAFE.search("".join(shown))


@pytest.mark.parametrize("n", [10_000, pytest.param(100_000, marks=pytest.mark.proofs)])
def test_sequences_are_streamed_as_they_decode_and_shown_safely(n: int) -> None:
    end = gpt2().end_of_text
    n_unsafe = 0
    for ids in sequences(n, seed=0):
        reply, pieces = streamed(ids)
        said = ids[: ids.index(end)] if end in ids else ids
        whole = gpt2().decode(said)
        assert "".join(pieces) == reply.text == whole and reply.ids == said
        shown = "".join(map(printable, pieces))
        assert shown == printable(whole)
        assert not UNSAFE.search(shown), ascii(shown)
        n_unsafe += UNSAFE.search(whole) is not None
    assert n_unsafe > n // 10, "there was something to be made safe"


def test_a_stream_without_a_reply_is_as_safe() -> None:
    for ids in sequences(FEW, 99):
        stream = TextStream(gpt2())
        pieces = [*map(stream.feed, ids), stream.finish()]
        assert "".join(pieces) == gpt2().decode(ids)
        assert not UNSAFE.search("".join(map(printable, pieces)))


def test_stop_strings_take_nothing_but_the_end() -> None:
    for ids in sequences(FEW, 100):
        whole = streamed(ids)[0].text
        stop = whole[len(whole) // 2 :][:2] or "x"
        reply, pieces = streamed(ids, (stop,))
        assert "".join(pieces) == reply.text == whole.partition(stop)[0]
        assert not UNSAFE.search("".join(map(printable, pieces)))


def test_no_character_of_any_plane_is_let_through() -> None:
    text = "".join(map(chr, range(sys.maxunicode + 1)))
    assert not UNSAFE.search(printable(text))
