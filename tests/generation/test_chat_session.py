"""Several turns with one cache, against the same turns without any."""

import copy

import pytest
import torch
from conversing import (
    CHAT,
    GREEDY,
    LETTERS,
    WILD,
    after,
    conversing,
    counted,
    done,
    failing,
    require_same,
    require_true,
    tiny,
    uncached,
    written,
)
from speaking import save_model_that_says

from gpt2cli.checkpoints.folder import load_model
from gpt2cli.errors import DivergedError, InputError, UsageError
from gpt2cli.generation.chat_session import Conversation, ReplyDone, TextDelta
from gpt2cli.generation.chat_settings import ChatSettings
from gpt2cli.generation.cpu.swap_linears import swap_for_decoding
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.templates import TEMPLATES, Template, Turn
from gpt2cli.tokenizer.bpe import gpt2


@pytest.fixture(scope="module")
def model() -> GPT2LMHead:
    return tiny(1024)


@pytest.fixture(scope="module")
def small() -> GPT2LMHead:
    return tiny(96)


TEMPLATES_AND_NONE = [*TEMPLATES.values(), None]


@pytest.mark.parametrize("template", TEMPLATES_AND_NONE)
@pytest.mark.parametrize("decoding", [GREEDY, WILD])
def test_over_ten_turns_each_token_is_read_once(
    model: GPT2LMHead, template: Template | None, decoding: object
) -> None:
    talk = conversing(model, decoding, 20, template, "Be short.")
    n_written = 0
    with counted(model) as widths:
        for turn in range(10):
            held = list(talk.prefix.ids)
            prompt = written(talk, talk.exchanges, f"question {turn}?")
            assert prompt[: len(held)] == held
            del widths[:]
            last = done(talk.say(f"question {turn}?"))
            n_new = len(prompt) - len(held)  # what the model had not read
            assert widths[0] == last.n_prefilled == n_new
            assert widths[1:] == [1] * (len(widths) - 1)
            assert (last.n_prompt, last.turn, last.n_dropped) == (len(prompt), turn + 1, 0)
            n_written += sum(widths)
    # A reply without end-of-text ends in a token that only the next question makes the model read.
    assert n_written == len(talk.prefix.ids)
    require_true(model, talk.prefix)


@pytest.mark.parametrize("template", TEMPLATES_AND_NONE)
@pytest.mark.parametrize("attention", ["sdpa", "formula"])
def test_greedy_replies_are_those_without_a_cache(template: Template | None, attention: str) -> None:
    talk = conversing(tiny(1024, 3, attention), GREEDY, 25, template, "Be short.")
    for question in ("How are you?", "", "Why", "And then\nwhat", "User:"):
        expected = uncached(talk, question, 25)
        last = done(talk.say(question))
        assert last.reply == LETTERS.decode(expected)[: len(last.reply)]
        assert last.finish_reason == "stop" or LETTERS.encode(last.reply) == expected


def test_pieces_are_the_reply_and_done_says_what_it_cost(model: GPT2LMHead) -> None:
    talk = conversing(model, WILD, 30)
    events = list(talk.say("hello"))
    last = events[-1]
    assert isinstance(last, ReplyDone) and all(isinstance(event, TextDelta) for event in events[:-1])
    assert "".join(event.text for event in events[:-1] if isinstance(event, TextDelta)) == last.reply
    assert talk.exchanges[0].reply == last.reply and last.is_kept
    assert 0 < last.prefill_seconds < last.seconds and last.tokens_per_second > 0
    assert done(conversing(model, WILD, 1).say("hello")).tokens_per_second == 0


@pytest.mark.parametrize("decoding", [GREEDY, WILD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reply_after_undo_is_that_of_a_conversation_without_the_turn(
    model: GPT2LMHead, decoding: object, dtype: torch.dtype
) -> None:
    packed = swap_for_decoding(copy.deepcopy(model).to(dtype))
    ours, theirs = (conversing(packed, decoding, 20) for _ in range(2))
    for talk in (ours, theirs):
        done(talk.say("How are you?"))
        done(talk.say("Why?"))
    done(ours.say("What is this?"))
    done(ours.say("And this?"))
    assert [ours.undo().question, ours.undo().question] == ["And this?", "What is this?"]
    assert done(ours.say("What else?")).reply == done(theirs.say("What else?")).reply
    assert ours.exchanges == theirs.exchanges
    require_same(ours.prefix, theirs.prefix)


def test_retry_gives_other_replies_that_are_always_the_same(model: GPT2LMHead) -> None:
    ours, theirs = conversing(model, WILD), conversing(model, WILD)
    replies = []
    for talk in (ours, theirs):
        done(talk.say("How are you?"))
        done(talk.say("Why?"))
        first = talk.exchanges[-1].reply
        replies.append([first, *(done(talk.retry()).reply for _ in range(3))])
    assert replies[0] == replies[1] and len(set(replies[0])) == 4
    assert [(e.question, e.attempt) for e in ours.exchanges] == [("How are you?", 0), ("Why?", 3)]
    ours.undo()
    assert done(ours.say("Why?")).reply == replies[0][0]  # asked anew, it is a first attempt


def test_another_seed_or_turn_gives_another_reply(model: GPT2LMHead) -> None:
    talk = conversing(model, WILD, 30, None)
    replies = [done(talk.say("x")).reply for _ in range(3)]
    talk.clear()
    assert talk.exchanges == () and done(talk.say("x")).reply == replies[0]
    talk.clear()
    talk.set("seed", "6")
    assert len({done(talk.say("x")).reply, *replies}) == 4


def test_clear_and_system_are_conversations_that_were_so_from_the_beginning(model: GPT2LMHead) -> None:
    talk = conversing(model, WILD)
    done(talk.say("How are you?"))
    talk.clear()
    talk.set_system("Be kind.")
    fresh = conversing(model, WILD, system="Be kind.")
    assert done(talk.say("Why?")).reply == done(fresh.say("Why?")).reply
    require_same(talk.prefix, fresh.prefix)
    talk.set_system(None)
    assert done(talk.say("Why?")).n_prefilled == len(written(talk, talk.exchanges[:1], "Why?"))
    require_true(model, talk.prefix)


def test_interrupted_the_part_that_was_made_is_the_reply(small: GPT2LMHead) -> None:
    talk = conversing(small, WILD, 20)
    last = done(talk.say("How?", after(6)))
    assert (last.finish_reason, last.is_kept) == ("interrupted", True) and last.n_new == 6
    assert talk.exchanges[0].reply == last.reply and len(talk.exchanges[0].ids) == 6
    require_true(small, talk.prefix)
    held = len(talk.prefix.ids)
    again = done(talk.say("Why?"))
    assert again.n_prefilled == len(written(talk, talk.exchanges[:1], "Why?")) - held
    require_true(small, talk.prefix)


@pytest.mark.parametrize("n", [1, 3])
def test_closed_or_broken_off_the_part_that_was_made_is_the_reply(small: GPT2LMHead, n: int) -> None:
    talk = conversing(small, WILD, 20)
    events = talk.say("How?")
    pieces = [next(events) for _ in range(n)]
    events.close()  # type: ignore[attr-defined]
    exchange = talk.exchanges[0]
    assert exchange.finish_reason == "interrupted"
    assert exchange.reply == "".join(piece.text for piece in pieces if isinstance(piece, TextDelta))
    require_true(small, talk.prefix)
    with failing(small, 2, layer=0, error=KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        done(talk.say("Why?"))
    assert len(talk.exchanges[1].ids) == 2
    require_true(small, talk.prefix)
    assert done(talk.say("And?")).finish_reason != "interrupted"


def test_interrupted_before_a_token_the_conversation_is_as_before(small: GPT2LMHead) -> None:
    ours, theirs = conversing(small, WILD), conversing(small, WILD)
    for talk in (ours, theirs):
        done(talk.say("How?"))
    before = ours.exchanges
    last = done(ours.say("Why?", after(0)))
    assert (last.finish_reason, last.is_kept, last.n_new) == ("interrupted", False, 0)
    with failing(small, 0, layer=1, error=KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        done(ours.retry())
    assert done(ours.retry(after(0))).is_kept is False
    assert ours.exchanges == before  # the reply that was to be made anew is still there
    assert done(ours.say("Who?")).reply == done(theirs.say("Who?")).reply
    require_true(small, ours.prefix)


@pytest.mark.parametrize("template", [CHAT, None])
def test_a_message_over_the_context_is_refused_and_leaves_no_trace(
    small: GPT2LMHead, template: Template | None
) -> None:
    talk = conversing(small, GREEDY, 5, template, "Be short.")
    done(talk.say("How?"))
    before, held = talk.exchanges, list(talk.prefix.ids)
    n = len(written(talk, [], "x" * 90))
    with pytest.raises(InputError) as caught:
        done(talk.say("x" * 90))
    assert caught.value.what == f"the message has {n} tokens, {n - 90} of them from template and system text"
    assert caught.value.why == "this model's context holds 96"
    assert (talk.exchanges, talk.prefix.ids, talk.n_dropped) == (before, held, 0)
    with pytest.raises(InputError, match="U\\+00E9"):
        done(talk.say("é"))
    assert done(talk.say("Why?")).turn == 2


def test_nothing_to_take_back_is_a_usage_error(small: GPT2LMHead) -> None:
    talk = conversing(small)
    for act in (talk.undo, lambda: done(talk.retry())):
        with pytest.raises(UsageError, match="there is no turn yet"):
            act()


def test_settings_change_by_name_and_only_to_what_means_something(small: GPT2LMHead) -> None:
    talk = conversing(small, WILD)
    for name, value, number in (("top_k", "20", 20), ("temperature", "0", 0.0), ("max_new_tokens", "3", 3)):
        talk.set(name, value)
        assert talk.settings[name] == number
    before = talk.settings
    for name, value, what, why in (
        ("top_k", "-1", "--top-k is -1", "it must be 0 (every token) or a positive whole number"),
        ("top_k", "2.5", "top_k is '2.5'", "it must be a whole number"),
        ("top_p", "nan", "--top-p is nan", "it must be above 0 and at most 1"),
        ("top_p", "much", "top_p is 'much'", "it must be a number"),
        ("top_k", "1_0", "top_k is '1_0'", "it must be a whole number"),
        ("top_k", "\u0663", "top_k is '\u0663'", "it must be a whole number"),
        ("max_new_tokens", "0", "--max-new-tokens is 0", "it must be at least 1"),
    ):
        with pytest.raises(UsageError) as caught:
            talk.set(name, value)
        assert (caught.value.what, caught.value.why) == (what, why)
    assert talk.settings == before
    assert done(talk.say("How?")).n_new <= 3


def test_scores_that_are_not_finite_end_the_reply(small: GPT2LMHead) -> None:
    broken = copy.deepcopy(small)
    with torch.no_grad():
        broken.lm_head.weight[1] = float("nan")
    talk = conversing(broken)
    with pytest.raises(DivergedError):
        done(talk.say("How?"))
    assert talk.exchanges == ()


def test_a_base_model_goes_on_with_one_text(small: GPT2LMHead) -> None:
    talk, both = conversing(small, GREEDY, 6, None), conversing(small, GREEDY, 12, None)
    assert done(talk.say("")).n_prompt == 1  # a text that is still empty begins with end-of-text
    talk.clear()
    first, second = done(talk.say("Once upon")), done(talk.say(""))
    assert first.finish_reason == second.finish_reason == "length"
    assert done(both.say("Once upon")).reply == first.reply + second.reply
    require_same(talk.prefix, both.prefix)


@pytest.fixture
def stopping(tmp_path_factory: pytest.TempPathFactory) -> Conversation:
    """Its model answers "hi" and then speaks for the user."""
    n = len(gpt2().encode(CHAT.question(Turn("user", "hi"))))
    text = " word" * (n - 1) + " fine?\n\nUser:\nhello"
    folder = save_model_that_says(tmp_path_factory.mktemp("stop") / "model", text, gpt2(), n_positions=200)
    loaded = load_model(folder)
    return Conversation(
        loaded.model, loaded.tokenizer, CHAT, None, ChatSettings(**vars(GREEDY), max_new_tokens=40)
    )


def test_a_stop_string_ends_the_reply_and_is_not_part_of_the_history(stopping: Conversation) -> None:
    last = done(stopping.say("hi"))
    assert (last.reply, last.finish_reason) == (" fine?", "stop")
    exchange = stopping.exchanges[0]
    assert gpt2().decode(exchange.ids) == " fine?"
    prompt = gpt2().encode("User:\nhi\n\nAssistant:\n")
    assert stopping.prefix.ids == [*prompt, *exchange.ids]  # what was read of the stop string is forgotten
    require_true(stopping._model, stopping.prefix)
    second = done(stopping.say("so"))
    assert second.n_prefilled == 1 + len(gpt2().encode("User:\nso\n\nAssistant:\n"))


def test_a_system_text_without_room_is_refused_wherever_it_comes_from(small: GPT2LMHead) -> None:
    long = "x" * 90
    stored = conversing(tiny(200), system=long).transcript("m")
    talk = conversing(small, system="Be short.")
    done(talk.say("How?"))
    before = (talk.exchanges, talk.system, talk.settings)
    for act in (
        lambda: conversing(small, system=long),
        lambda: talk.set_system(long),
        lambda: talk.restore(stored, "a.json"),
    ):
        with pytest.raises(InputError, match=r"the system text has \d+ tokens"):
            act()
    assert (talk.exchanges, talk.system, talk.settings) == before
    assert done(talk.say("Why?")).turn == 2


@pytest.mark.parametrize("template", TEMPLATES_AND_NONE)
def test_without_history_a_reply_is_that_of_a_fresh_conversation(
    model: GPT2LMHead, template: Template | None
) -> None:
    talk = conversing(model, GREEDY, 12, template, "Be short.")
    talk.history = 0
    for question in ("How are you?", "Why?", "And?"):
        fresh = conversing(model, GREEDY, 12, template, "Be short.")
        assert done(talk.say(question)).reply == done(fresh.say(question)).reply
        assert talk.last_prompt == tuple(written(talk, [], question))
    assert len(talk.exchanges) == 3 and talk.n_dropped == 0


def test_history_hides_turns_and_shows_them_again(small: GPT2LMHead) -> None:
    talk = conversing(tiny(1024), WILD, 12)
    for n, history in enumerate((1, 1, 2, 1, None, 1, 0)):
        talk.history = history
        shown = talk.exchanges[max(0, n - history) if history is not None else 0 :]
        done(talk.say(f"question {n}?"))
        assert talk.last_prompt == tuple(written(talk, shown, f"question {n}?"))
        require_true(talk._model, talk.prefix)
    talk.history = 1
    shown = talk.exchanges[-2:-1]
    last = talk.undo()
    assert talk.prompt(last.question) == written(talk, shown, last.question)
    full = conversing(small, GREEDY, 30)
    full.history = 2
    for n in range(6):  # the context overflows all the same
        last = done(full.say(f"and question number {n}?"))
        assert last.finish_reason in ("length", "stop", "end_of_text")
        require_true(small, full.prefix)
    before = full.n_dropped
    full.history = None
    done(full.say("now?"))
    assert full.n_dropped >= before > 0, "a turn that has left the context never comes back"
