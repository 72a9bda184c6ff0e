"""Which of two answers better: what is met with what, what counts as a win, and what chance would do."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from judge_server import AROUND, MODEL, judging, n_tokens, uncached_tokens

from gpt2cli.errors import InputError
from gpt2cli.json_lines import line_of
from gpt2cli.judge.aggregate import sign_test, summarize_pairs
from gpt2cli.judge.endpoint import openai_compatible
from gpt2cli.judge.items import JudgeItem
from gpt2cli.judge.pairwise import (
    COMPARING,
    Comparison,
    Pair,
    comparison_questions,
    pairs_of,
    parse_preference,
)
from gpt2cli.judge.results import Status, Terms
from gpt2cli.judge.runner import JudgeOptions, judge, judgements_of
from gpt2cli.judge.strict_json import AnswerError

TERMS = Terms("m", "ollama", "p", "s", 0.0, 1)


def item(index: int, question: str, response: str, input: str = "") -> JudgeItem:
    return JudgeItem(index, question, input, "right", response)


def pair(index: int, a: str = "yes", b: str = "no") -> Pair:
    return Pair(index, f"question {index}", "", "right", a, b)


def comparison(of: Pair, a_is_first: bool, better: str, status: Status = "scored") -> Comparison:
    return Comparison(
        index=of.index,
        a_is_first=a_is_first,
        status=status,
        better=better,
        reason="r",
        why="",
        attempts=1,
        seconds=0.1,
        prompt_tokens=9,
        asked=of.asked,
        terms=TERMS,
    )


def both(of: Pair, better: str, swapped: str) -> list[Comparison]:
    return [comparison(of, True, better), comparison(of, False, swapped)]


def test_what_both_answered_meets_by_its_question_and_not_by_its_place() -> None:
    a = [
        item(0, "x", "a0"),
        item(3, "y", "a3", "in"),
        item(4, "y", "a4"),
        item(5, "x", "a5"),
        item(9, "x", "a9"),
    ]
    b = [item(0, "y", "b0"), item(1, "x", "b1"), item(2, "x", "b2"), item(7, "z", "b7")]
    assert [(p.index, p.a, p.b) for p in pairs_of(a, b)] == [
        (0, "a0", "b1"),
        (4, "a4", "b0"),
        (5, "a5", "b2"),
    ]


def test_no_question_in_common_is_refused() -> None:
    with pytest.raises(InputError, match=r"one\.json and two\.json have no question in common"):
        others = [item(0, "y", "a"), item(1, "x", "a", "in")]
        pairs_of([item(0, "x", "a")], others, ("one.json", "two.json"))


def test_only_a_preference_that_outlives_the_swap_counts() -> None:
    expected = {("a", "a"): "win", ("b", "b"): "loss"}
    for index, (one, swapped) in enumerate(itertools.product(("a", "b", "tie"), repeat=2)):
        summary = summarize_pairs([pair(index)], both(pair(index), one, swapped))
        assert summary.outcomes == {index: expected.get((one, swapped), "tie")}
        assert (summary.n_for_first, summary.n_for_second) == (
            int((one, swapped) == ("a", "b")),
            int((one, swapped) == ("b", "a")),
        )


def test_everything_is_counted_once() -> None:
    pairs = [pair(i) for i in range(7)] + [
        pair(7, "", "x"),
        pair(8, " \n", ""),
        pair(9, "same", "same"),
        pair(10),
    ]
    comparisons = both(pairs[0], "a", "a") + both(pairs[1], "a", "a") + both(pairs[2], "b", "b")
    comparisons += both(pairs[3], "tie", "a")
    comparisons += [comparison(pairs[4], True, "a"), comparison(pairs[4], False, "", "unscored")]
    comparisons += [comparison(pairs[5], True, "", "truncated"), comparison(pairs[6], False, "b")]
    summary = summarize_pairs(pairs, comparisons)
    assert (summary.n_pairs, summary.n_compared, summary.n_missing) == (11, 5, 2)
    assert (summary.wins, summary.ties, summary.losses, summary.n_same) == (2, 2, 1, 1)
    assert (summary.n_unscored, summary.n_truncated, summary.n_empty) == (1, 1, 2)
    assert summary.win_rate == pytest.approx(0.6) and summary.interval is not None
    assert summary.interval[0] < 0.6 < summary.interval[1]
    assert summary.p_value == 1.0


def test_nothing_compared_is_no_rate() -> None:
    summary = summarize_pairs([pair(0), pair(1, "")], [])
    assert (summary.n_compared, summary.win_rate, summary.interval, summary.p_value) == (0, None, None, None)


def test_the_sign_test_is_what_counting_all_outcomes_gives() -> None:
    for n in range(11):
        outcomes = [sum(signs) for signs in itertools.product((0, 1), repeat=n)]
        for wins in range(n + 1):
            uneven = [abs(2 * other - n) >= abs(2 * wins - n) for other in outcomes]
            assert sign_test(wins, n - wins) == pytest.approx(sum(uneven) / len(uneven))
    assert sign_test(9_000, 11_000) == pytest.approx(math.erfc(1999 / math.sqrt(2 * 20_000)), rel=1e-2)
    assert sign_test(0, 20_000) == 0.0 or sign_test(0, 20_000) < 1e-300


@pytest.mark.parametrize("place", ["first", "second", "tie"])
def test_a_preference_is_read(place: str) -> None:
    assert parse_preference(json.dumps({"reason": "It is right.", "better": place})) == (
        place,
        "It is right.",
    )


@pytest.mark.parametrize("kind", AROUND)
def test_what_stands_around_a_preference_does_not_change_it(kind: str) -> None:
    assert parse_preference(AROUND[kind]('{"reason": "r", "better": "tie"}'))[0] == "tie"


@pytest.mark.parametrize(
    "text",
    [
        "first",
        '{"better": "first"}',
        '{"reason": "r", "better": "First"}',
        '{"reason": "r", "better": "a"}',
        '{"reason": "r", "better": 1}',
        '{"reason": "", "better": "tie"}',
        '{"reason": "r", "better": "first", "better": "second"}',
        '{"reason": "r", "score": 1}',
        'The first.\n{"reason": "r", "better": "first"}',
    ],
)
def test_what_is_no_preference_is_refused(text: str) -> None:
    with pytest.raises(AnswerError):
        parse_preference(text)


def compared(pairs: list[Pair], path: Path) -> list[Comparison]:
    return judgements_of(COMPARING, comparison_questions(pairs), path)


def test_comparisons_of_changed_texts_and_of_other_pairs_do_not_stand(tmp_path: Path) -> None:
    pairs = [pair(0), pair(1)]
    kept = [comparison(pairs[1], False, "b"), comparison(pairs[0], True, "a")]
    stray = [comparison(replace(pairs[0], b="other"), False, "b"), comparison(pair(2), True, "a")]
    path = tmp_path / "comparisons.jsonl"
    path.write_bytes(b"".join(map(line_of, [*stray[:1], *kept, *stray[1:]])) + b'{"index": 1, "a_is')
    assert compared(pairs, path) == [kept[1], kept[0]]
    assert compared(pairs, tmp_path / "absent.jsonl") == []
    path.write_text('{"index": 0, "score": 7}\n')
    with pytest.raises(InputError, match="not a judgement of this kind"):
        compared(pairs, path)


def test_a_long_pair_that_is_not_read_whole_is_noticed_also_after_a_rerun(tmp_path: Path) -> None:
    pairs = [pair(0, "It goes on and on. " * 400), pair(1), pair(2), pair(3)]
    path = tmp_path / "v.jsonl"

    def compare(pairs: list[Pair], path: Path, **options: bool) -> list[Comparison]:
        seen: list[Comparison] = []
        at, given = openai_compatible(server.base_url, MODEL), JudgeOptions(**options)
        judge(COMPARING, comparison_questions(pairs), at, path, given, keep=seen.append)
        return seen

    with judging() as server:
        server.tokens = lambda messages: min(n_tokens(messages), 2200)
        assert len(" ".join(pairs[0].a).split()) > 2200 > len(pairs[0].a.split())
        assert len(compare(pairs[1:], path)) == 6
        (one, two) = compare(pairs, path)
        assert (one.index, one.status, two.status) == (0, "truncated", "truncated")
        server.tokens = n_tokens
        assert [again.status for again in compare(pairs, path, retry=True)] == ["scored", "scored"]
        fresh = compare(pairs, tmp_path / "w.jsonl")
        assert {one.index for one in fresh[:4]} == {1, 2}, "the shortest show how the server counts"
    assert len(compared(pairs, path)) == 8


def talk(index: int, response: str, *contents: str, reference: str = "right", old: bool = False) -> JudgeItem:
    """The last of the contents is the question; with `old` the file holds no more."""
    roles = ["user", "assistant"] * len(contents)
    roles = roles[(len(contents) + 1) % 2 :]
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    before = () if old else tuple(messages[:-1])
    return JudgeItem(index, contents[-1], "", reference, response, before, not old)


def test_the_same_last_question_after_other_words_is_another_question() -> None:
    a = [talk(i, f"a{i}", f"Tell me of {place}.", "Well.", "And then?") for i, place in enumerate("xyz")]
    b = [talk(i, f"b{i}", f"Tell me of {place}.", "Well.", "And then?") for i, place in enumerate("zyw")]
    assert [(p.a, p.b) for p in pairs_of(a, b)] == [("a1", "b1"), ("a2", "b0")]
    system = [replace(one, conversation=({"role": "system", "content": "Be brief."},)) for one in b]
    with pytest.raises(InputError, match="no question in common"):
        pairs_of(a, system)
    questions = comparison_questions(pairs_of(a, b)[:1])
    assert [json.loads(q.messages[1]["content"])["conversation"] for q in questions if q.messages] == [
        [{"role": "user", "content": "Tell me of y."}, {"role": "assistant", "content": "Well."}]
    ] * 2


def test_a_file_that_holds_the_last_question_alone_is_matched_as_far_as_it_goes() -> None:
    new = [talk(0, "a0", "x", "y", "why?", reference="r0"), talk(1, "a1", "x", "z", "why?", reference="r1")]
    old = [
        talk(7, "b1", "why?", reference="r1", old=True),
        talk(8, "b?", "why?", reference="another", old=True),
    ]
    alone = talk(2, "a2", "who?")
    assert [(p.a, p.b, len(p.conversation)) for p in pairs_of(new, old)] == [("a1", "b1", 2)]
    assert [(p.a, p.b, len(p.conversation)) for p in pairs_of(old, new)] == [("b1", "a1", 2)]
    assert [(p.a, p.b) for p in pairs_of(old, old)] == [("b1", "b1"), ("b?", "b?")]
    assert [(p.a, p.b) for p in pairs_of([alone], [talk(3, "b2", "who?", old=True)])] == [("a2", "b2")]
    assert [p.a for p in pairs_of([alone], [talk(3, "b2", "who?", old=True, reference="other")])] == ["a2"]


def test_a_server_that_counts_what_it_has_not_cached_reads_all_the_same(tmp_path: Path) -> None:
    """Its counts sink where prompts begin alike; those of a server that truncates do not."""
    article = "It was a dark and stormy night in the town of Ely. " * 80
    pairs = [
        Pair(i, "Sum it up.", article, "A night.", f"A dark one, {i}.", f"A stormy one, {i}.")
        for i in range(6)
    ]
    options = JudgeOptions(n_parallel=1)
    with judging() as server:
        server.tokens = uncached_tokens()
        at = openai_compatible(server.base_url, MODEL)
        judge(COMPARING, comparison_questions(pairs), at, tmp_path / "a", options)
        assert [one.status for one in compared(pairs, tmp_path / "a")] == ["scored"] * 12
        server.tokens = lambda messages: min(n_tokens(messages), 700)
        judge(COMPARING, comparison_questions(pairs), at, tmp_path / "b", options)
    assert {one.status for one in compared(pairs, tmp_path / "b")} == {"truncated"}
