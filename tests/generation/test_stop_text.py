import random

import pytest

from gpt2cli.errors import InputError
from gpt2cli.generation.stop_text import Continuation
from gpt2cli.tokenizer.bpe import gpt2


def feed(ids: list[int], stops: tuple[str, ...] = ()) -> tuple[Continuation, list[str]]:
    reply = Continuation(gpt2(), stops)
    return reply, [*(reply.feed(token) for token in ids), reply.finish()]


TEXTS = ["plain words", "tears of joy 😂😂 and a family 👨‍👩‍👧‍👦", "naïve déjà vu", "日本語のテキスト"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_put_together_are_the_decoded_text(text: str) -> None:
    reply, pieces = feed(gpt2().encode(text))
    assert "".join(pieces) == reply.text == text
    assert reply.finish_reason == "length"
    assert "�" not in "".join(pieces)


def test_a_dangling_part_of_a_character_is_shown_at_the_end() -> None:
    ids = gpt2().encode("joy 😂")[:-1]
    reply, pieces = feed(ids)
    assert reply.text == gpt2().decode(ids)
    assert "�" not in "".join(pieces[:-1])
    assert "�" in pieces[-1]


def test_end_of_text_ends_the_reply_and_is_not_part_of_it() -> None:
    reply, pieces = feed([*gpt2().encode("the end"), gpt2().end_of_text, *gpt2().encode(" or not")])
    assert (reply.text, reply.finish_reason) == ("the end", "end_of_text")
    assert reply.ids == gpt2().encode("the end")
    assert "".join(pieces) == "the end"


def cut(text: str, stops: tuple[str, ...]) -> str:
    return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]


@pytest.mark.parametrize(
    "stops", [("\n",), ("\n\n",), ("User:",), ("ab", "abc"), ("bc", "abcd"), ("aab",), ("😂",), ("nowhere",)]
)
@pytest.mark.parametrize(
    "text", ["one\n\ntwo", "I say\nUser: hi", "aaab aabc abcd", "so 😂 funny", "ends in a"]
)
def test_a_stop_string_ends_the_text_before_it(text: str, stops: tuple[str, ...]) -> None:
    reply, pieces = feed(gpt2().encode(text), stops)
    assert "".join(pieces) == reply.text == cut(text, stops)
    assert reply.finish_reason == ("stop" if any(stop in text for stop in stops) else "length")


def test_no_part_of_a_stop_string_is_shown_before_it_is_decided() -> None:
    reply = Continuation(gpt2(), ("###END",))
    shown = ""
    for token in gpt2().encode("text ## more ###EN"):
        shown += reply.feed(token)
        assert not shown.endswith("#") or shown == "text ##"
    assert shown == "text ## more "
    assert reply.feed(gpt2().encode("D")[0]) == ""
    assert (reply.text, reply.finish_reason) == ("text ## more ", "stop")


def test_what_waited_for_a_stop_string_that_does_not_come_is_shown_at_the_end() -> None:
    reply, pieces = feed(gpt2().encode("count ###EN"), ("###END",))
    assert reply.text == "".join(pieces) == "count ###EN"
    assert reply.finish_reason == "length"


def test_the_dangling_tail_can_complete_a_stop_string() -> None:
    reply, _ = feed(gpt2().encode("joy 😂")[:-1], ("�",))
    assert (reply.text, reply.finish_reason) == ("joy ", "stop")


def test_random_cuts_agree_with_a_search_in_the_whole_text() -> None:
    chance = random.Random(0)
    tokens = [gpt2().encode(character)[0] for character in "ab\n"]
    for _ in range(300):
        ids = chance.choices(tokens, k=chance.randrange(12))
        stops = tuple("".join(chance.choices("ab\n", k=chance.randint(1, 4))) for _ in range(2))
        reply, pieces = feed(ids, stops)
        assert "".join(pieces) == reply.text == cut(gpt2().decode(ids), stops)


def test_the_first_reason_stays() -> None:
    reply = Continuation(gpt2(), ("b",))
    reply.feed(gpt2().encode("b")[0])
    assert reply.finish("interrupted") == ""
    assert reply.feed(gpt2().encode("c")[0]) == ""
    assert (reply.text, reply.finish_reason) == ("", "stop")


def test_an_id_that_is_not_in_the_vocabulary_does_not_stay() -> None:
    reply = Continuation(gpt2())
    with pytest.raises(InputError):
        reply.feed(50257)
    assert reply.ids == []
