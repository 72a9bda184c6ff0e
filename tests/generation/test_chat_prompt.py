"""How turns become a prompt, and which ids of a reply are its own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.errors import InputError
from gpt2cli.generation.chat_prompt import (
    LEAST_ROOM,
    ChatFormat,
    Exchange,
    first_that_fits,
    own_ids,
    require_room,
    require_room_beside,
)
from gpt2cli.generation.stop_text import Continuation
from gpt2cli.templates import TEMPLATES, Template, Turn, prompt_ids
from gpt2cli.tokenizer.bpe import gpt2

END = gpt2().end_of_text


def exchange(question: str, reply: str, reason: str = "end_of_text") -> Exchange:
    return Exchange(question, reply, tuple(gpt2().encode(reply)), reason)


def reply_of(ids: list[int], stops: tuple[str, ...]) -> Continuation:
    reply = Continuation(gpt2(), stops)
    for token in ids:
        reply.feed(token)
    reply.finish()
    return reply


@pytest.mark.parametrize("template", TEMPLATES.values())
@pytest.mark.parametrize("system", [None, "", "Be kind."])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_prompt_is_what_training_puts_before_an_answer(
    template: Template, system: str | None, n: int
) -> None:
    exchanges = [exchange(f"Why {i}?", f" So {i}.", "length" if i else "stop") for i in range(n)]
    turns = [] if system is None else [Turn("system", system)]
    for one in exchanges:
        turns += [Turn("user", one.question), Turn("assistant", one.reply)]
    expected = prompt_ids(template, [*turns, Turn("user", "And?")], gpt2())
    assert ChatFormat(gpt2(), template, system).prompt(exchanges, "And?") == expected


def test_the_ids_that_the_model_chose_stay_as_they_are() -> None:
    spelled = [gpt2().encode(character)[0] for character in "hello"]  # not the one id of encode
    one = Exchange("x", "hello", tuple(spelled), "length")
    for template in (*TEMPLATES.values(), None):
        ids = ChatFormat(gpt2(), template, None).prompt([one], "y")
        start = next(n for n in range(len(ids)) if ids[n : n + 5] == spelled)
        assert (ids[start + 5] == END) == (template is not None)


def test_a_base_model_reads_one_text_and_end_of_text_only_where_it_said_so() -> None:
    speech = ChatFormat(gpt2(), None, "Title")
    first, second = exchange("Once", " upon", "length"), exchange(" a", " time.", "end_of_text")
    encode = gpt2().encode
    assert speech.prompt([first, second], "New") == [
        *encode("Title\n\n"), *encode("Once"), *encode(" upon"), *encode(" a"), *encode(" time."), END,
        *encode("New"),
    ]  # fmt: skip
    assert ChatFormat(gpt2(), None, None).prompt([], "") == [END]


def test_the_least_number_of_turns_goes() -> None:
    speech = ChatFormat(gpt2(), TEMPLATES["chat"], "Be kind.")
    exchanges = [exchange(f"Why {'so ' * i}?", " So.") for i in range(12)]
    sizes = [len(speech.prompt(exchanges[n:], "And?")) for n in range(13)]
    for most in range(sizes[-1] - 2, sizes[0] + 2):
        for n_dropped in (0, 5):
            fitting = [n for n in range(n_dropped, 13) if sizes[n] <= most]
            found = first_that_fits(speech, exchanges, "And?", n_dropped, most)
            assert found == (fitting[0] if fitting else 12)


def test_a_message_has_room_or_is_refused_with_both_numbers() -> None:
    speech = ChatFormat(gpt2(), None, None)
    require_room(speech, " word" * 9, 9)
    with pytest.raises(InputError) as caught:
        require_room(speech, " word" * 10, 9)
    assert (caught.value.what, caught.value.why) == (
        "the message has 10 tokens",
        "this model's context holds 9",
    )


@pytest.mark.parametrize(
    ("ids", "own"),
    [
        ([*gpt2().encode("fine"), 198, 628, *gpt2().encode("User:\n")], [*gpt2().encode("fine"), 198]),
        ([*gpt2().encode("fine"), 628, 198, *gpt2().encode("User:\n")], [*gpt2().encode("fine"), 198]),
        ([628, *gpt2().encode("User:\n")], []),
    ],
)
def test_a_stop_string_is_cut_off_also_inside_a_token(ids: list[int], own: list[int]) -> None:
    reply = reply_of(ids, TEMPLATES["chat"].stops)
    assert reply.finish_reason == "stop"
    assert list(own_ids(reply, gpt2())) == own


POOL = [*gpt2().encode("😂 é a\n\n\nb\n\nab"), 198, 628, *range(94, 100), 220, 50255]


@settings(max_examples=300)
@given(
    ids=st.lists(st.sampled_from(POOL), max_size=14), stop=st.sampled_from(["\n\n", "ab", "�", "\nb", "é"])
)
def test_own_ids_say_what_the_reply_says(ids: list[int], stop: str) -> None:
    reply = reply_of(ids, (stop,))
    own = own_ids(reply, gpt2())
    assert gpt2().decode(own) == reply.text
    assert reply.finish_reason == "stop" or list(own) == ids


def test_a_system_text_leaves_room_or_is_refused_with_both_numbers() -> None:
    for template in (TEMPLATES["chat"], None):
        speech = ChatFormat(gpt2(), template, "word " * 20)
        n = len(speech.prompt([], ""))
        require_room_beside(speech, n + LEAST_ROOM)
        with pytest.raises(InputError) as caught:
            require_room_beside(speech, n + LEAST_ROOM - 1)
        assert caught.value.what.startswith(f"the system text has {n} tokens")
        assert str(n + LEAST_ROOM - 1) in caught.value.why and "/system TEXT" in caught.value.fix
    require_room_beside(ChatFormat(gpt2(), TEMPLATES["alpaca"], None), 20)  # not the person's doing
