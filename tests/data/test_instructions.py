"""Reading records: both kinds, every refusal with its place, and 500 damaged files."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from teaching import some_records

from gpt2cli.data.byte_source import STRICT, ReadOptions
from gpt2cli.data.instructions import InstructionRecords, read_instructions
from gpt2cli.errors import Gpt2Error, InputError
from gpt2cli.recipe.data_sections import InstructDataConfig
from gpt2cli.templates import Turn

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
]


def write(folder: Path, content: Any, name: str = "records.json") -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def fields_named(**names: str) -> InstructDataConfig:
    return InstructDataConfig(source="x", **names)  # type: ignore[arg-type]


def read(path: Path, fields: InstructDataConfig | None = None) -> InstructionRecords:
    return read_instructions(path, fields or fields_named(), STRICT)


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def test_a_list_and_lines_give_the_same_records(tmp_path: Path) -> None:
    values = [*some_records(4), {"instruction": "a\u2028b", "output": "c"}, {"messages": TALK}]
    listed = read(write(tmp_path, values))
    lined = read(write(tmp_path, "\ufeff\n" + lines(values).replace("\n", "\r\n"), "records.jsonl"))
    assert [r.turns for r in listed.records] == [r.turns for r in lined.records]
    assert [r.index for r in lined.records] == list(range(6))
    assert listed.records[0].turns == (Turn("user", "Say it 0 times.", "word "), Turn("assistant", "and 0"))
    assert listed.records[4].question == (Turn("user", "a\u2028b"),) and listed.records[4].answer == "c"
    assert listed.records[5].turns[0] == Turn("system", "Be brief.")


def test_fields_may_bear_other_names_and_an_input_may_be_null(tmp_path: Path) -> None:
    path = write(tmp_path, [{"ask": "2+2", "with": None, "say": "4"}, {"ask": "x", "with": "y", "say": "z"}])
    found = read(path, fields_named(instruction="ask", input="with", output="say")).records
    assert found[0].turns == (Turn("user", "2+2"), Turn("assistant", "4")) and found[1].turns[0].input == "y"


def test_records_without_an_answer_are_left_out_and_keep_the_others_numbers(tmp_path: Path) -> None:
    found = read(write(tmp_path, [{"instruction": "a", "output": ""}, {"instruction": "b", "output": "c"}]))
    assert found.n_empty == 1 and [r.index for r in found.records] == [1]


def asked(value: Any) -> list[dict[str, Any]]:
    return [*some_records(3), {"instruction": value, "output": "x"}]


def talk(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [*some_records(3), {"messages": [{"role": role, "content": content} for role, content in turns]}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"instruction": "a"}, "a list of records is needed, not an object"),
        ("3", "a list of records is needed, not a number"),
        ([], "no record has an answer"),
        ([{"instruction": "a", "output": ""}], "no record has an answer"),
        ("", "records.json:1: not JSON"),
        ('[\n{"instruction": "a", "output": "b"},\n{"b" 2}]', "records.json:3: not JSON, column 6"),
        ("[" * 100_000, "records.json:1: not JSON"),
        ([*some_records(2), 5], "record 2: must be a JSON object, not a number"),
        ([*some_records(2), {"output": "x"}], "record 2: field 'instruction' is missing"),
        ([*some_records(2), {"instruction": "x"}], "record 2: field 'output' is missing"),
        (asked(7), "record 3: field 'instruction' is a number, not text"),
        (asked(None), "record 3: field 'instruction' is null, not text"),
        (asked("\ud800"), r"record 3: field 'instruction' holds half a surrogate pair (\ud800)"),
        ([{"instruction": "x", "input": [1], "output": "y"}], "record 0: field 'input' is a list, not text"),
        ([{"messages": []}], "record 0: 'messages' is not a list of messages"),
        ([{"messages": "hi"}], "record 0: 'messages' is not a list of messages"),
        ([{"messages": ["hi"]}], "record 0, message 0: must be a JSON object, not text"),
        (talk(("user", "a"), ("narrator", "b")), "record 3, message 1: the role 'narrator' is not supported"),
        (
            talk(("user", "a"), ("user", "b")),
            "record 3, message 1: the role is user, but it must be assistant",
        ),
        (talk(("assistant", "a")), "record 3: no message is the user's"),
        (
            talk(("user", "a"), ("system", "b")),
            "record 3, message 1: the role is system, but it must be assistant",
        ),
        (talk(("user", "a")), "record 3: the last message is the user's"),
        (talk(("user", 1)), "record 3, message 0: field 'content' is a number"),
        (b"[\n\xff]", "records.json:2: not UTF-8 at byte 2"),
        (b"[\0]", "records.json:1: a NUL byte at byte 1"),
    ],
)
def test_every_mistake_is_named_with_its_place(content: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(write(tmp_path, content))
    assert said in caught.value.what


def test_a_bad_line_five_thousand_is_named(tmp_path: Path) -> None:
    values = lines(some_records(4999)) + '{"instruction": "x", "output": "y"\n'
    with pytest.raises(InputError, match=r"records\.jsonl:5000: not a JSON record"):
        read(write(tmp_path, values, "records.jsonl"))
    with pytest.raises(InputError, match=r"records\.jsonl:5000, record 4999: field 'output' is missing"):
        read(write(tmp_path, lines([*some_records(4999), {"instruction": "x"}]), "records.jsonl"))


@pytest.mark.parametrize("name", ["records.json", "records.jsonl"])
def test_damaged_files_are_refused_with_a_place_or_read(name: str, tmp_path: Path) -> None:
    """250 of each kind: bytes changed, cut, doubled, and values exchanged for those of another type."""
    values = [*some_records(6), {"messages": TALK}]
    refused = 0
    for seed in range(250):
        chance = random.Random(seed)
        data = mutated(values, name, chance)
        path = write(tmp_path, data, name)
        try:
            read(path)
        except Gpt2Error as error:
            refused += 1
            assert error.exit_code == 3 and name in error.what
            has_place = f"{name}:" in error.what or ", record " in error.what
            whole = ("a list of records is needed", "no record has an answer")
            assert has_place or any(words in error.what for words in whole), error.what
    assert refused > 120


def mutated(values: list[Any], name: str, chance: random.Random) -> bytes:
    copy = json.loads(json.dumps(values))
    kind = chance.randrange(4)
    if kind == 0:
        record = chance.choice(copy)
        key = chance.choice(list(record))
        record[key] = chance.choice([None, 1, [], {}, True, "\udc00", [{}], [{"role": "x"}]])
    elif kind == 1:
        copy[chance.randrange(len(copy))] = chance.choice([None, 1.5, "text", [], {}])
    data = bytearray(
        (lines(copy) if name.endswith("l") else json.dumps(copy)).encode("utf-8", "surrogatepass")
    )
    if kind == 2:
        for _ in range(3):
            data[chance.randrange(len(data))] = chance.randrange(256)
    if kind == 3:
        cut = chance.randrange(len(data))
        data = data[:cut] + data[chance.randrange(len(data)) :]
    return bytes(data)


def test_a_task_stands_in_where_a_record_has_no_instruction(tmp_path: Path) -> None:
    values = [
        {"document": "long", "summary": "short"},
        {"instruction": None, "document": "a", "summary": "b"},
        {"instruction": "In French.", "document": "c", "summary": "d"},
    ]
    fields = fields_named(input="document", output="summary", task="Sum it up.")
    found = read(write(tmp_path, values), fields).records
    assert [r.turns[0] for r in found] == [
        Turn("user", "Sum it up.", "long"),
        Turn("user", "Sum it up.", "a"),
        Turn("user", "In French.", "c"),
    ]
    with pytest.raises(InputError, match="record 0: field 'input' is missing"):
        read(write(tmp_path, values), fields_named(output="summary", task="Sum it up."))
    with pytest.raises(InputError, match="record 0: field 'instruction' is missing") as caught:
        read(write(tmp_path, values), fields_named(input="document", output="summary"))
    assert "data.task=" in caught.value.fix


def test_packed_files_are_read_by_the_name_inside(tmp_path: Path) -> None:
    values = some_records(3)
    for name, text in (("records.JSONL.gz", lines(values)), ("records.json.gz", json.dumps(values))):
        assert len(read(write(tmp_path, gzip.compress(text.encode()), name)).records) == 3


def test_values_as_pandas_and_people_write_them(tmp_path: Path) -> None:
    rows = [
        *({"instruction": "2+2", "input": float("nan"), "output": value} for value in (4, 4.5, True)),
        *(
            {"instruction": "x", "input": none, "output": "y"}
            for none in ("<noInput>.", "No input", "<no input>")
        ),
        {"messages": None, "conversations": None, "instruction": "x", "output": "y", "history": [["a", "b"]]},
        {"messages": TALK, "instruction": None, "output": None, "tools": "[]"},
        {"instruction": "x", "output": float("nan")},
    ]
    found = read(write(tmp_path, lines(rows), "records.jsonl"))
    assert [record.answer for record in found.records] == ["4", "4.5", "true", *["y"] * 4, "Hi"]
    assert not any(turn.input for record in found.records for turn in record.turns) and found.n_empty == 1
    assert any("3 records is <noinput>" in note for note in found.notes)
    assert any("'history' of 1 record is not read" in note for note in found.notes)
    assert not any("'tools'" in note for note in found.notes)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    twice = write(tmp_path, "instruction,output,output\na,b,c\n", "records.csv")
    with pytest.raises(InputError, match=r"records\.csv:1.*'output'"):
        read(twice)
    other = write(tmp_path, "instruction,output,id,id\na,b,1,2\n", "records.csv")
    assert read(other).records[0].answer == "b"


@pytest.mark.parametrize(
    ("n_bad", "n", "share", "is_read"),
    [
        (7, 100, 0.07, True),
        (8, 100, 0.07, False),
        (30, 100, 0.3, True),
        (31, 100, 0.3, False),
        (1, 3, 0, False),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_the_share_of_bad_records_is_the_one_that_is_given(
    n_bad: int, n: int, share: float, is_read: bool, is_first: bool, tmp_path: Path
) -> None:
    bad, good = "bad\n" * n_bad, '{"instruction": "a", "output": "b"}\n' * (n - n_bad)
    path = write(tmp_path, bad + good if is_first else good + bad, "records.jsonl")
    if is_read:
        assert len(read_instructions(path, fields_named(), ReadOptions(max_bad=share)).records) == n - n_bad
    else:
        with pytest.raises(InputError, match=r"records\.jsonl:\d"):
            read_instructions(path, fields_named(), ReadOptions(max_bad=share))
