"""responses.jsonl: what a kill leaves of it, and whose lines are kept."""

import json
from pathlib import Path

from gpt2cli.evaluation.responses import Response, open_responses, read_responses


def response(index: int, key: str = "k", text: str = "yes") -> Response:
    return Response(index, "ask", "", "yes", text, True, "end_of_text", 1, key)


def test_lines_of_the_key_are_kept_whole_and_torn_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    with open_responses(path, "k") as file:
        for index, text in enumerate(("one", "two\n\u2028three", "\x1b")):
            file.add(response(index, text=text))
            assert len(path.read_text().split("\n")) == index + 2, "written when it is added"
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with open_responses(path, "k") as file:
            n = len(file.responses)
            for index in range(n, 3):
                file.add(response(index, text=("one", "two\n\u2028three", "\x1b")[index]))
        assert path.read_bytes() == whole and n >= whole[:cut].count(b"\n")


def test_lines_of_another_key_and_of_other_programs_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    with open_responses(path, "old") as file:
        file.add(response(0, "old"))
    with open(path, "a") as raw:
        raw.write('[1]\n{"index": 1}\n\n\xff\n' + "[" * 100_000 + "\n")
    assert read_responses(path) == [response(0, "old")]
    with open_responses(path, "new") as file:
        assert not file.responses
        file.add(response(5, "new"))
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [5]
    assert read_responses(tmp_path / "missing") == []
