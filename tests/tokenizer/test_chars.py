"""The character vocabulary: ids, what it does not know, and the speed of a long text."""

import hashlib
import pickle
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.errors import InputError
from gpt2cli.tokenizer.chars import Chars

TEXT = "To be, or not to be:\nthat is the question. é中😀"


@settings(max_examples=300)
@given(text=st.text(min_size=1, max_size=200))
def test_ids_are_places_in_the_sorted_characters(text: str):
    tokenizer = Chars.from_text(text)
    order = sorted(set(text))
    assert tokenizer.encode(text) == [order.index(character) for character in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.n_vocab, tokenizer.end_of_text) == (len(order) + 1, len(order))


def test_ids_are_plain_integers():
    assert {type(i) for i in Chars.from_text(TEXT).encode(TEXT)} == {int}
    assert Chars.from_text(TEXT).encode("") == []


def test_vocabulary_is_the_same_however_the_corpus_is_cut():
    whole = Chars.from_text(TEXT)
    cut = Chars.from_text(TEXT[i : i + 7] for i in range(0, len(TEXT), 7))
    counted = Chars.from_text({character: TEXT.count(character) for character in TEXT})
    assert whole.characters == cut.characters == counted.characters
    assert whole.fingerprint == cut.fingerprint != Chars.from_text(TEXT + "ß").fingerprint


def test_fingerprint_is_sha256_over_length_and_bytes():
    expected = hashlib.sha256(b"\1\0\0\0a\2\0\0\0\xc3\xa9\r\0\0\0<|endoftext|>").hexdigest()
    assert Chars("aé").fingerprint == expected


def test_typed_end_of_text_is_plain_text():
    tokenizer = Chars.from_text("x <|endoftext|> y")
    ids = tokenizer.encode("<|endoftext|>")
    assert len(ids) == 13 and tokenizer.end_of_text not in ids
    assert tokenizer.decode([tokenizer.end_of_text]) == "<|endoftext|>"


@pytest.mark.parametrize(
    ("unseen", "named"),
    [
        ("z", r"'z' \(U\+007A\)"),
        ("\x1b", r"'\\x1b' \(U\+001B\)"),
        ("🦊", r"'\\U0001f98a' \(U\+1F98A\)"),
        ("!", r"'!' \(U\+0021\)"),
    ],
)
def test_unseen_character_is_named(unseen: str, named: str):
    with pytest.raises(InputError, match=f"character {named} at position 5") as caught:
        Chars.from_text(TEXT).encode("to be" + unseen + unseen)
    assert "training text" in caught.value.why
    assert r"\n ,.:Tabehinoqrstu\xe9\u4e2d\U0001f600" in caught.value.fix


def test_vocabulary_of_one_character_refuses_others():
    assert Chars("b").encode("bb") == [0, 0]
    for other in "ac":
        with pytest.raises(InputError, match="not in the vocabulary"):
            Chars("b").encode(other)


def test_lone_surrogates_are_replaced():
    tokenizer = Chars.from_text(["a\ud800"])
    assert tokenizer.characters == "a\ufffd"
    assert tokenizer.decode(tokenizer.encode("\udfffa")) == "\ufffda"
    assert Chars.from_text("\ud83d\ude00").characters == "😀"
    with pytest.raises(InputError, match=r"U\+FFFD"):
        Chars("a").encode("\ud800")


@pytest.mark.parametrize("nothing", ["", [], ["", ""]])
def test_empty_corpus_is_refused(nothing):
    with pytest.raises(InputError, match="no characters"):
        Chars.from_text(nothing)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_unknown_id_is_named(wrong: int):
    with pytest.raises(InputError, match=f"token id {wrong} is not in the vocabulary"):
        Chars("ab").decode([0, wrong])


def test_pickled_copy_is_equal():
    copy = pickle.loads(pickle.dumps(Chars.from_text(TEXT)))
    assert copy.fingerprint == Chars.from_text(TEXT).fingerprint
    assert copy.encode(TEXT) == Chars.from_text(TEXT).encode(TEXT)


def test_a_megabyte_is_encoded_at_once():
    text = "".join(random.Random(0).choices(TEXT, k=1_000_000))
    start = time.perf_counter()
    ids = Chars.from_text(text).encode(text)
    assert time.perf_counter() - start < 1  # 0.06 s on a quiet machine; a loop over a dict takes longer
    assert len(ids) == len(text)
