"""What leaves a conversation when the context is full, and what a reply is then."""

import pytest
import torch
from conversing import (
    CHAT,
    GREEDY,
    LETTERS,
    WILD,
    conversing,
    counted,
    done,
    failing,
    require_true,
    tiny,
    uncached,
    written,
)

from gpt2cli.generation.chat_session import ChatEvent, Conversation, TextDelta, TurnsDropped
from gpt2cli.generation.engine import common_length
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.templates import Template

LIMIT = 128


@pytest.fixture(scope="module")
def model() -> GPT2LMHead:
    return tiny(LIMIT, seed=4)


def filled(model: GPT2LMHead, n_turns: int, **more: object) -> Conversation:
    """After so many turns of about 30 tokens, in which a base model fits four."""
    talk = conversing(model, **{"max_new_tokens": 8, "template": None, **more})  # type: ignore[arg-type]
    for turn in range(n_turns):
        done(talk.say(f"turn {turn} says this much "))
        require_true(model, talk.prefix)
    return talk


@pytest.mark.parametrize("template", [CHAT, None])
@pytest.mark.parametrize("system", ["Be short.", None])
def test_before_a_reply_the_oldest_turns_go_until_it_has_room(
    model: GPT2LMHead, template: Template | None, system: str | None
) -> None:
    talk = conversing(model, GREEDY, 8, template, system)
    n_drops = 0
    for turn in range(9):
        question, n_before, held = f"turn {turn} says this much ", talk.n_dropped, list(talk.prefix.ids)
        events = list(talk.say(question))
        n_said = sum(event.n_turns for event in events if isinstance(event, TurnsDropped))
        assert talk.n_dropped - n_before == n_said == done(events).n_dropped
        n_drops += n_said
        exchanges = talk.exchanges
        kept = written(talk, exchanges[talk.n_dropped : -1], question)
        assert len(kept) + 8 <= LIMIT
        if n_said:  # no turn went without need
            assert len(written(talk, exchanges[talk.n_dropped - 1 : -1], question)) + 8 > LIMIT
            assert done(events).n_prefilled == len(kept) - common_length(held, kept)
        require_true(model, talk.prefix)
        assert talk.prefix.ids[: len(kept)] == kept
        talk.undo()
        talk.n_dropped = n_before + n_said  # the same remaining turns, without a cache
        expected = uncached(talk, question, 8)
        talk.n_dropped = n_before
        again = done(talk.say(question))
        assert again.reply == done(events).reply
        assert again.finish_reason == "stop" or LETTERS.encode(again.reply) == expected
    assert n_drops >= 4 and len(talk.exchanges) == 9  # what left the context is still to be seen


@torch.no_grad()
def expected_over_the_end(
    talk: Conversation, events: list[ChatEvent], n_before: int
) -> tuple[list[int], int]:
    """Greedy ids that an uncached model chooses with the turns that were left at each token, and how
    often the context was full.
    """
    *_, exchange = talk.exchanges
    drops = [event.n_turns for event in events if isinstance(event, TurnsDropped)]
    ids: list[int] = []
    n_dropped, n_moves = n_before, 0
    for _ in exchange.ids:
        window = [*written(talk, talk.exchanges[n_dropped:-1], exchange.question), *ids]
        while len(window) > LIMIT:
            n_dropped += drops.pop(0)
            n_moves += 1
            window = [*written(talk, talk.exchanges[n_dropped:-1], exchange.question), *ids]
        ids.append(int(talk._model(torch.tensor([window]))[0, -1].argmax()))
    assert not drops
    return ids, n_moves


@pytest.mark.parametrize("template", [CHAT, None])
def test_inside_a_reply_the_oldest_turns_go_and_it_goes_on(
    model: GPT2LMHead, template: Template | None
) -> None:
    talk = filled(model, 3 if template is None else 1, decoding=GREEDY, template=template)
    talk.set("max_new_tokens", "300")
    n_before = talk.n_dropped
    prompt = written(talk, talk.exchanges[n_before:], "x")
    assert len(prompt) + LIMIT // 4 <= LIMIT, "nothing is dropped before the reply"
    with counted(model) as widths:
        events = list(talk.say("x"))
    last = done(events)
    assert last.finish_reason == "context"
    ids, n_moves = expected_over_the_end(talk, events, n_before)
    assert list(talk.exchanges[-1].ids) == ids
    assert n_moves == (2 if template is None else 1)  # never more turns than it needed
    assert last.n_prefilled == sum(width for width in widths if width > 1)
    alone = written(talk, [], "x")
    assert last.n_new == LIMIT + 1 - len(alone)  # the last token needs no place
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == last.reply
    require_true(model, talk.prefix)
    first_drop = next(n for n, event in enumerate(events) if isinstance(event, TurnsDropped))
    assert first_drop > 5  # pieces came before it
    assert done(talk.say("y")).n_dropped == 1  # the long reply went with its question


def test_a_reply_alone_at_the_end_of_the_context_ends(model: GPT2LMHead) -> None:
    talk = conversing(model, GREEDY, 1000, None)
    events = list(talk.say("Once upon a time"))
    last = done(events)
    assert (last.finish_reason, last.n_new, last.n_dropped) == ("context", LIMIT + 1 - 16, 0)
    assert not any(isinstance(event, TurnsDropped) for event in events)
    exact = conversing(model, GREEDY, 1000, None)
    assert done(exact.say("x" * LIMIT)).n_new == 1
    require_true(model, exact.prefix)


@pytest.mark.parametrize("decoding", [GREEDY, WILD])
@pytest.mark.parametrize("in_reply", [False, True])
def test_undo_brings_back_the_turns_that_it_had_cost(
    model: GPT2LMHead, decoding: object, in_reply: bool
) -> None:
    ours, theirs = (filled(model, 3, decoding=decoding) for _ in range(2))
    assert ours.n_dropped == 0
    if in_reply:
        ours.set("max_new_tokens", "60")
        last = done(ours.say("y"))
        ours.set("max_new_tokens", "8")
    else:
        last = done(ours.say("a turn that is so long that another must go"))
    assert last.n_dropped >= 1
    ours.undo()
    assert ours.n_dropped == 0
    with counted(model) as widths:
        again = done(ours.say("why"))
    assert widths[0] == again.n_prefilled and set(widths[1:]) <= {1}  # what is missing is read at once
    assert again.reply == done(theirs.say("why")).reply
    assert ours.exchanges == theirs.exchanges
    require_true(model, ours.prefix)


def test_undo_of_several_turns_over_several_drops(model: GPT2LMHead) -> None:
    ours, theirs = (filled(model, 6, decoding=WILD) for _ in range(2))
    for turn in range(4):
        assert done(ours.say(f"another turn of this length {turn}")).n_dropped >= 1
    for _ in range(4):
        ours.undo()
    assert (ours.exchanges, ours.n_dropped) == (theirs.exchanges, theirs.n_dropped)
    for question in ("a", "and this one is long again"):
        assert done(ours.say(question)).reply == done(theirs.say(question)).reply
        require_true(model, ours.prefix)


def test_a_reply_closed_as_it_drops_turns_leaves_a_true_cache(model: GPT2LMHead) -> None:
    ours, theirs = (filled(model, 3, decoding=WILD) for _ in range(2))
    ours.set("max_new_tokens", "60")
    events = ours.say("y")
    while not isinstance(next(events), TurnsDropped):
        pass
    events.close()  # type: ignore[attr-defined]
    assert ours.exchanges[-1].finish_reason == "interrupted"
    require_true(model, ours.prefix)
    ours.undo()
    ours.set("max_new_tokens", "8")
    assert done(ours.say("why")).reply == done(theirs.say("why")).reply
    require_true(model, ours.prefix)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_a_signal_while_it_reads_after_a_drop_passes_behind_the_end_of_the_reply(
    model: GPT2LMHead, error: BaseException
) -> None:
    talk = filled(model, 3)
    talk.set("max_new_tokens", "60")
    events: list[ChatEvent] = []
    with pytest.raises(type(error)):
        for event in talk.say("y"):
            events.append(event)
            if isinstance(event, TurnsDropped):
                breaks = failing(model, 0, layer=0, error=error)
                breaks.__enter__()
    breaks.__exit__(None, None, None)
    last = done(events)
    assert (last.finish_reason, last.is_kept) == ("interrupted", True)
    assert last.reply == talk.exchanges[-1].reply != ""
    require_true(model, talk.prefix)
