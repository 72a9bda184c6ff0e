"""Files with responses: those of our runs, the book's, and all that is none."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2cli.errors import InputError
from gpt2cli.evaluation.responses import Response, messages_digest, messages_of, open_responses
from gpt2cli.judge.items import JudgeItem, read_items
from gpt2cli.templates import Turn

PLAIN = ["instruction", "input", "reference", "response"]
RECORD = {"instruction": "ask", "input": "it", "output": "right", "response": "said"}


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_runs_responses_keep_their_index(tmp_path: Path) -> None:
    with open_responses(tmp_path / "responses.jsonl", "k") as file:
        for index, said in ((7, "said"), (2, ""), (30, "two\u2028lines\n\x1b")):
            file.add(Response(index, "ask", "", "right", said, True, "stop", 1, "k"))
    assert read_items(tmp_path / "responses.jsonl") == [
        JudgeItem(7, "ask", "", "right", "said"),
        JudgeItem(2, "ask", "", "right", ""),
        JudgeItem(30, "ask", "", "right", "two\u2028lines\n\x1b"),
    ]


def test_lists_and_lines_with_the_books_names(tmp_path: Path) -> None:
    records = [
        RECORD,
        {"instruction": "ask", "input": None, "output": "right", "model_response": "said"},
        {"instruction": "ask", "output": "", "response": None, "model_response": "said"},
        {"instruction": "ask", "output": "right", "response": None},
        {"instruction": "ask", "output": "right", "response": "\ud800"},
    ]
    whole = [
        JudgeItem(0, "ask", "it", "right", "said"),
        JudgeItem(1, "ask", "", "right", "said"),
        JudgeItem(2, "ask", "", "", "said"),
        JudgeItem(3, "ask", "", "right", ""),
        JudgeItem(4, "ask", "", "right", "\ud800"),
    ]
    assert read_items(written(tmp_path / "a.json", records)) == whole
    lines = "\ufeff" + "\r\n\n".join(map(json.dumps, records))
    assert read_items(written(tmp_path / "a.jsonl", lines)) == whole


def test_a_conversation_is_read_whole_and_known_by_its_digest(tmp_path: Path) -> None:
    turns = (
        Turn("system", "Be kind."),
        Turn("user", "Hi"),
        Turn("assistant", "Ho"),
        Turn("user", "ask", "it"),
    )
    messages = messages_of(turns)
    digest = messages_digest(messages)
    with open_responses(tmp_path / "responses.jsonl", "k") as file:
        file.add(Response(3, "ask", "it", "right", "said", True, "stop", 1, "k", messages, digest))
    (item,) = read_items(tmp_path / "responses.jsonl")
    assert item == JudgeItem(3, "ask", "it", "right", "said", tuple(messages[:-1]), True)
    assert item.digest == digest != replace(item, conversation=()).digest
    assert item.asked != replace(item, conversation=()).asked
    (system, user) = item.prompt
    assert (
        list(json.loads(user["content"])) == ["conversation", *PLAIN] and "conversation" in system["content"]
    )
    assert json.loads(user["content"])["conversation"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]
    assert "conversation" not in replace(item, conversation=()).prompt[0]["content"]


def test_messages_alone_are_a_question_and_others_are_left_alone(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "ask"}
    read = read_items(
        written(
            tmp_path / "a.json",
            [
                {"messages": [asked], "response": "said"},
                {**RECORD, "messages": [asked, {"role": "assistant", "content": "said"}]},
                {**RECORD, "messages": "none"},
                {**RECORD, "messages": [{"role": "user", "content": ["parts"]}]},
            ],
        )
    )
    assert read[0] == JudgeItem(0, "ask", "", None, "said", (), True)
    assert [item.is_whole for item in read[1:]] == [False] * 3 and read[0].digest != read[1].digest


def test_without_a_reference_the_judge_is_not_told_of_one(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", [{"instruction": "ask", "response": "said"}, RECORD])
    bare, whole = read_items(path)
    assert bare.reference is None and whole.reference == "right"
    system, user = bare.prompt
    assert (
        "reference" not in system["content"] + user["content"] and "reference" in whole.prompt[0]["content"]
    )
    assert bare.asked != replace(bare, reference="").asked


def test_every_change_of_a_text_changes_what_was_asked() -> None:
    texts = [("a", "b", "c", "d"), ("ab", "", "c", "d"), ("a", "b", "cd", ""), ("a", "b", "c", "\ud800")]
    items = [JudgeItem(0, *text) for text in texts]
    assert len({item.asked for item in items}) == len(items)
    assert items[0].asked == JudgeItem(5, *texts[0]).asked
    # As in the results files of earlier versions, which stand.
    assert items[0].asked == hashlib.sha256(b'["a", "b", "c", "d"]').hexdigest()[:16]


def test_other_names_of_fields_are_read(tmp_path: Path) -> None:
    names = {"instruction": "question", "output": "gold", "response": "prediction"}
    own = {names.get(name, name): text for name, text in RECORD.items()}
    path = written(tmp_path / "a.json", [own, {**own, "prediction": None}, {**RECORD, "gold": "other"}])
    assert read_items(path, names) == [
        JudgeItem(0, "ask", "it", "right", "said"),
        JudgeItem(1, "ask", "it", "right", ""),
        JudgeItem(2, "ask", "it", "other", "said"),
    ]
    with pytest.raises(InputError, match="no record has a field 'golden'") as caught:
        read_items(written(tmp_path / "b.json", [own]), {**names, "output": "golden"})
    assert "'gold'" in caught.value.why and caught.value.fix == "--field output=NAME"


BAD = {
    "a.json": [
        ("", ":1: not JSON"),
        ("{}", "a list of records is needed"),
        ("[]", "no record to judge"),
        ("[1]", "record 0: not a JSON object"),
        ('[{"instruction": "a"', ":1: not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[" + "9" * 5000 + "]", "not JSON"),
        ([RECORD, {**RECORD, "instruction": 5}], "record 1: field 'instruction' is not text"),
        ([{"output": "x"}], "record 0: field 'instruction' is missing"),
        ([{"instruction": "x"}], "record 0: field 'output' is missing"),
        ([{**RECORD, "response": ["x"]}], "record 0: field 'response' is not text"),
        ([{**RECORD, "index": -1}], "field 'index' is not a number from 0 on"),
        ([{**RECORD, "index": True}], "field 'index' is not a number from 0 on"),
        ([{**RECORD, "index": 1}, RECORD], "record 1: index 1 occurs twice"),
        ("\x00", "a NUL byte at byte 0"),
    ],
    "a.jsonl": [
        ("", "no record to judge"),
        ("\n \n", "no record to judge"),
        (json.dumps(RECORD) + "\n\n" + json.dumps(RECORD)[:-9], ":3: not a JSON record"),
        (json.dumps(RECORD) + "\n[]", ":2, record 1: not a JSON object"),
    ],
}


@pytest.mark.parametrize(
    ("name", "content", "said"), [(n, c, s) for n, cases in BAD.items() for c, s in cases]
)
def test_what_is_no_such_file_is_named_with_its_place(
    tmp_path: Path, name: str, content: object, said: str
) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(InputError) as caught:
        read_items(path)
    assert str(path) in caught.value.what and said in caught.value.what


def test_no_file_and_no_regular_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.jsonl", Path("/dev/zero")):
        with pytest.raises(InputError):
            read_items(path)
