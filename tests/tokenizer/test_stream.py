"""Text that is streamed against text that is decoded at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.tokenizer.base import TextStream
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.chars import Chars

# Ids of single bytes above 0x7F: they begin, continue and break UTF-8 characters.
HIGH_BYTES = [i for i, token in enumerate(gpt2().tokens[:256]) if token[0] > 0x7F]
EMOJI = gpt2().encode("👩‍👩‍👧 naïve 中文 😀")
IDS = st.integers(0, 50256) | st.sampled_from(HIGH_BYTES) | st.sampled_from(EMOJI)


@settings(max_examples=500)
@given(ids=st.lists(IDS, max_size=30))
def test_streamed_text_is_the_decoded_text(ids: list[int]):
    stream = TextStream(gpt2())
    assert "".join([*map(stream.feed, ids), stream.finish()]) == gpt2().decode(ids)


@settings(max_examples=300)
@given(text=st.text(min_size=1, max_size=40), data=st.data())
def test_streamed_text_of_characters_is_the_decoded_text(text: str, data: st.DataObject):
    tokenizer = Chars.from_text(text)
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1)))
    stream = TextStream(tokenizer)
    assert "".join([*map(stream.feed, ids), stream.finish()]) == tokenizer.decode(ids)


def test_no_piece_holds_half_a_character():
    pieces = []
    stream = TextStream(gpt2())
    for token_id in gpt2().encode("a😀中b"):
        pieces.append(stream.feed(token_id))
    assert [piece for piece in pieces if piece] == ["a", "😀", "中", "b"]
    assert "" in pieces  # the emoji is several tokens, so something waited
    assert stream.finish() == ""


def test_dangling_tail_comes_at_the_end_and_only_once():
    ids = gpt2().encode("x😀")[:-1]
    stream = TextStream(gpt2())
    assert "".join(map(stream.feed, ids)) == "x"
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""
    assert stream.feed(gpt2().encode("y")[0]) == "y"


@pytest.mark.parametrize("unit", ["😀", "é", "中"])
def test_every_prefix_of_bytes_waits_or_shows(unit: str):
    for end in range(1, len(unit.encode()) + 1):
        ids = [gpt2().tokens.index(bytes((byte,))) for byte in unit.encode()[:end]]
        stream = TextStream(gpt2())
        shown = "".join(map(stream.feed, ids))
        assert shown == (unit if end == len(unit.encode()) else "")
        assert shown + stream.finish() == gpt2().decode(ids)
