"""The strict reader: what is an answer, and that nothing near one is."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_server import AROUND, TEXTS, grade

from gpt2cli.judge.grade import GRADE_SCHEMA, GRADED, Grade, parse_grade
from gpt2cli.judge.prompt import CRITERIA, grade_messages
from gpt2cli.judge.strict_json import LONGEST_REASON, AnswerError, one_of, strict_object

GOOD = grade({"instruction": "a", "input": "", "reference": "b", "response": "c"})


def test_a_right_answer_is_read_as_it_is() -> None:
    assert parse_grade(json.dumps(GOOD)) == Grade(**GOOD)
    assert parse_grade(f" \n{json.dumps(GOOD, indent=1)}\r\n") == Grade(**GOOD)
    floats = {name: float(value) if isinstance(value, int) else value for name, value in GOOD.items()}
    read = parse_grade(json.dumps(floats))
    assert read == Grade(**GOOD) and type(read.score) is int
    assert parse_grade(json.dumps({**GOOD, "score": 0, "clarity": 100})).score == 0
    assert (
        parse_grade(json.dumps({**GOOD, "reason": "half \ud800, whole \U0001f600"})).reason
        == "half ?, whole 😀"
    )


@pytest.mark.parametrize("kind", AROUND)
def test_what_stands_around_an_answer_does_not_change_it(kind: str) -> None:
    read = parse_grade(AROUND[kind](json.dumps(GOOD)))
    assert replace(read, reason="") == replace(Grade(**GOOD), reason="")
    assert read.reason.removeprefix("</think> ```3``` ") == GOOD["reason"]


@pytest.mark.parametrize("kind", TEXTS)
def test_what_is_nearly_an_answer_is_none(kind: str) -> None:
    with pytest.raises(AnswerError) as caught:
        parse_grade(TEXTS[kind](GOOD))
    assert 0 < len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("score", '"85/100"', "score is '85/100', not a number"),
        ("score", "101", "score is 101, not from 0 to 100"),
        ("clarity", "-1", "clarity is -1, not from 0 to 100"),
        ("score", "1e400", "score is inf, not from 0 to 100"),
        ("score", "-Infinity", "-Infinity is not a number in JSON"),
        ("score", "9" * 4000, "score is a huge number, not from 0 to 100"),
        ("score", "true", "score is True, not a number"),
        ("reason", '""', "the reason is empty"),
        ("reason", "7", "the reason is not text"),
        ("reason", f'"{"x" * (LONGEST_REASON + 1)}"', "the reason has 2001 characters, more than 2000"),
    ],
)
def test_it_says_what_is_wrong(name: str, text: str, why: str) -> None:
    with pytest.raises(AnswerError, match=f"^{why}$"):
        parse_grade(json.dumps({**GOOD, name: "@"}).replace('"@"', text))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_whatever_stands_for_a_number_is_a_score_or_an_error(value: object) -> None:
    text = json.dumps({**GOOD, "score": value})
    is_right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100
    if is_right:
        assert parse_grade(text).score == value
    else:
        with pytest.raises(AnswerError):
            parse_grade(text)


@given(st.text())
def test_any_other_text_is_an_error(text: str) -> None:
    with pytest.raises(AnswerError):
        parse_grade(text)


def test_objects_for_other_parsers() -> None:
    assert strict_object('{"b": [1], "a": null, "c": 1}', ("a", "b")) == {"a": None, "b": [1]}
    with pytest.raises(AnswerError, match=r"^the object lacks 'a' and has 'c'$"):
        strict_object('{"c": 1}', ("a",))
    with pytest.raises(AnswerError, match="a key occurs twice"):
        strict_object('{"a": {"x": 1, "x": 2}}', ("a",))
    assert one_of("tie", "better", ("first", "tie")) == "tie"
    for wrong in ("Tie", " tie", None, ["tie"]):
        with pytest.raises(AnswerError, match="not one of first, tie"):
            one_of(wrong, "better", ("first", "tie"))


def test_the_schema_asks_for_what_the_reader_wants_reason_first() -> None:
    properties, required = GRADE_SCHEMA["properties"], GRADE_SCHEMA["required"]
    assert (
        list(properties) == required == ["reason", *GRADED] and GRADE_SCHEMA["additionalProperties"] is False
    )
    system = grade_messages("a", "b", "c", "d")[0]["content"]
    places = [system.index(f'"{name}": {question}') for name, question in CRITERIA.items()]
    assert places == sorted(places), "each criterion is explained"
    example = json.loads(system.splitlines()[-1].replace("N", "7"))
    assert list(example) == required and parse_grade(json.dumps(example)).score == 7
