"""Files with responses: those of our runs, the book's, and all that is none."""

import json
from pathlib import Path

import pytest

from gpt2cli.errors import InputError
from gpt2cli.evaluation.responses import Response, open_responses
from gpt2cli.judge.items import JudgeItem, read_items

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


def test_every_change_of_a_text_changes_what_was_asked() -> None:
    texts = [("a", "b", "c", "d"), ("ab", "", "c", "d"), ("a", "b", "cd", ""), ("a", "b", "c", "\ud800")]
    items = [JudgeItem(0, *text) for text in texts]
    assert len({item.asked for item in items}) == len(items)
    assert items[0].asked == JudgeItem(5, *texts[0]).asked


BAD = {
    "a.json": [
        ("", ":1: not JSON"),
        ("{}", "a list of records is needed"),
        ("[]", "no record to judge"),
        ("[1]", "record 0: not a JSON object"),
        ('[{"instruction": "a"', ":1: not JSON"),
        ("[" * 100_000, "not readable JSON"),
        ("[" + "9" * 5000 + "]", "not readable JSON"),
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
