"""A conversation that is stored and loaded goes on as if nothing had been."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from conversing import CHAT, GREEDY, LETTERS, WILD, after, conversing, done, tiny, written

from gpt2cli.errors import InputError, NewerFormatError
from gpt2cli.generation.chat_session import Conversation
from gpt2cli.generation.chat_settings import ChatSettings
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.tokenizer.chars import Chars


@pytest.fixture(scope="module")
def model() -> GPT2LMHead:
    return tiny(160)


def said(model: GPT2LMHead) -> Conversation:
    talk = conversing(model, WILD, 14, CHAT, "Be short.")
    for n, question in enumerate(("How are you?", "Why?", "What is this\nin the end?", "And?")):
        done(talk.say(question, after(5 if n == 1 else 99)))
    done(talk.retry())
    assert 0 < talk.n_dropped < 4
    return talk


def test_it_is_the_same_conversation(model: GPT2LMHead) -> None:
    ours, theirs = said(model), conversing(model, GREEDY, 3)
    stored = json.loads(json.dumps(ours.transcript("runs/x")))
    theirs.restore(stored, "a.json")
    for name in ("exchanges", "n_dropped", "settings", "system"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert theirs.transcript("runs/x") == stored
    last = done(theirs.say("Who?"))
    prompt = written(theirs, theirs.exchanges[theirs.n_dropped : -1], "Who?")
    assert last.n_prefilled == last.n_prompt == len(prompt)  # the cache was empty
    assert last.reply == done(ours.say("Who?")).reply
    for talk in (ours, theirs):
        talk.undo()
        talk.undo()
    assert (ours.exchanges, ours.n_dropped) == (theirs.exchanges, theirs.n_dropped)
    assert done(ours.retry()).reply == done(theirs.retry()).reply


def test_what_was_there_before_is_gone(model: GPT2LMHead) -> None:
    ours, fresh = conversing(model, WILD), conversing(model, WILD)
    done(ours.say("Something else"))
    for talk in (ours, fresh):
        talk.restore(said(model).transcript("m"), "a.json")
    assert done(ours.say("Who?")).reply == done(fresh.say("Who?")).reply


def test_with_another_vocabulary_the_text_counts(model: GPT2LMHead) -> None:
    stored = said(model).transcript("m")
    other = Chars("".join(sorted({*LETTERS.characters, "é"})))
    talk = Conversation(model, other, CHAT, None, ChatSettings(**vars(GREEDY), max_new_tokens=3))
    talk.restore(stored, "a.json")
    assert [other.decode(e.ids) for e in talk.exchanges] == [e.reply for e in talk.exchanges]
    few = Conversation(model, Chars("abc"), CHAT, None, ChatSettings(**vars(GREEDY), max_new_tokens=3))
    with pytest.raises(InputError, match="not in the vocabulary"):
        few.restore(stored, "a.json")
    assert few.exchanges == ()


def test_without_ids_a_reply_is_encoded(model: GPT2LMHead) -> None:
    ours = said(model)
    stored = ours.transcript("m")
    for turn in stored["turns"]:
        del turn["ids"]
    talk = conversing(model)
    talk.restore(stored, "a.json")
    assert talk.exchanges == ours.exchanges


def test_half_a_surrogate_pair_is_replaced(model: GPT2LMHead) -> None:
    stored = said(model).transcript("m")
    stored["system"] = "Be \udc80."
    with pytest.raises(InputError, match="not in the vocabulary"):  # U+FFFD is not
        conversing(model).restore(stored, "a.json")


def change(*path: Any, to: Any = None) -> Callable[[Any], None]:
    def apply(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return apply


def remove(*path: Any) -> Callable[[Any], None]:
    def apply(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return apply


WRONG = [
    (change("format", to=0), "format"),
    (remove("format"), "format"),
    (change("more", to=1), "more"),
    (remove("turns"), "turns"),
    (change("turns", to={}), "turns"),
    (change("turns", 1, to=["How?", "So."]), "turns.1"),
    (change("turns", 0, "question", to=3), "turns.0.question"),
    (change("turns", 0, "role", to="user"), "turns.0.role"),
    (change("turns", 2, "reply", to="other"), "turns.2.ids"),
    (change("turns", 2, "ids", to=[0, 10**9]), "turns.2.ids"),
    (change("turns", 2, "ids", 0, to=-1), "turns.2.ids"),
    (change("turns", 2, "ids", 0, to=True), "turns.2.ids.0"),
    (change("turns", 2, "finish_reason", to="tired"), "turns.2.finish_reason"),
    (change("turns", 0, "attempt", to=-1), "turns.0.attempt"),
    (change("turns", 0, "dropped", to=1), "dropped"),
    (change("dropped", to=9), "dropped"),
    (change("turns", 3, "dropped", to=3), "dropped"),
    (change("settings", "temperature", to=float("nan")), "settings"),
    (change("settings", "top_k", to="40"), "settings.top_k"),
    (change("settings", "top_p", to=0), "settings"),
    (change("settings", "max_new_tokens", to=0), "settings"),
    (remove("settings", "seed"), "settings.seed"),
    (change("system", to=["x"]), "system"),
]


@pytest.mark.parametrize(("spoil", "place"), WRONG, ids=[str(n) for n in range(len(WRONG))])
def test_anything_else_is_refused_with_its_place(
    model: GPT2LMHead, spoil: Callable[[Any], None], place: str
) -> None:
    stored = copy.deepcopy(said(model).transcript("m"))
    spoil(stored)
    talk = conversing(model)
    done(talk.say("Before"))
    before = (talk.exchanges, talk.settings, talk.system, list(talk.prefix.ids))
    with pytest.raises(InputError) as caught:
        talk.restore(stored, "a.json")
    assert caught.value.what == f"a.json: {place}: is not part of a saved conversation"
    assert caught.value.why and caught.value.fix == "/save FILE writes one"
    assert (talk.exchanges, talk.settings, talk.system, list(talk.prefix.ids)) == before


@pytest.mark.parametrize("value", [None, [], "text", 3, {}])
def test_what_is_no_conversation_at_all_is_refused(model: GPT2LMHead, value: Any) -> None:
    with pytest.raises(InputError, match=r"^a\.json: .*is not part of a saved conversation"):
        conversing(model).restore(value, "a.json")


@pytest.mark.parametrize("newer", [2, "2.0"])
def test_a_conversation_of_a_later_version_asks_for_the_upgrade(newer: object, model: GPT2LMHead) -> None:
    stored = said(model).transcript("runs/x") | {"format": newer, "mood": "calm"}
    with pytest.raises(NewerFormatError) as caught:
        conversing(model, GREEDY, 3).restore(stored, "a.json")
    assert caught.value.fix == "pip install --upgrade gpt2cli"
