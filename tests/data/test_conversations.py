"""Conversations in other programs' spellings: the same turns, the same loss mask, or a refusal by name."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2cli.data.byte_source import STRICT
from gpt2cli.data.instructions import InstructionRecords, read_instructions
from gpt2cli.data.sft_batches import SftExample, encode_record
from gpt2cli.errors import InputError
from gpt2cli.recipe.data_sections import InstructDataConfig
from gpt2cli.templates import TEMPLATES
from gpt2cli.tokenizer.bpe import gpt2

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Bye"},
]
SAME = {
    "Hugging Face's": {"messages": MESSAGES},
    "OpenAI's newer role": {"messages": [{**MESSAGES[0], "role": "developer"}, *MESSAGES[1:]]},
    "ShareGPT's": {
        "id": "x",
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]}
            for m in MESSAGES
        ],
    },
    "conversations of roles": {"conversations": [{**m, "role": m["role"].upper()} for m in MESSAGES]},
    "parts of text": {
        "messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in MESSAGES]
    },
    "trl's": {"prompt": MESSAGES[:4], "completion": MESSAGES[4:]},
    "an answer of weight 1": {"messages": [*MESSAGES[:4], {**MESSAGES[4], "weight": 1}]},
    "weights that are null, as parquet has them": {"messages": [{**m, "weight": None} for m in MESSAGES]},
    "both spellings, one of them null": {
        "conversations": [{**m, "from": None, "value": None} for m in MESSAGES],
        "messages": None,
    },
    "a list without a name": MESSAGES,
    "JSON in a column": {"messages": json.dumps(MESSAGES)},
    "a system message beside the list": {"system": "Be brief.", "messages": MESSAGES[1:]},
    "a system message in both places": {"system": "Be long.", "messages": MESSAGES},
    "a last answer of weight 0 behind it": {
        "messages": [
            *MESSAGES,
            {"role": "user", "content": "More?"},
            {"role": "assistant", "content": "No", "weight": 0},
        ]
    },
}


def read(folder: Path, *records: Any, **names: str) -> InstructionRecords:
    path = folder / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return read_instructions(path, InstructDataConfig(source="x", **names), STRICT)  # type: ignore[arg-type]


def encoded(found: InstructionRecords, template: str = "chat") -> SftExample:
    example = encode_record(found.records[0], TEMPLATES[template], gpt2(), 500, True)
    assert example is not None
    return example


def predicted(example: SftExample) -> str:
    """The text that the loss counts."""
    return gpt2().decode(example.ids[example.loss_mask].tolist())


@pytest.mark.parametrize("spelling", SAME)
def test_other_spellings_are_the_same_conversation(spelling: str, tmp_path: Path) -> None:
    turns = read(tmp_path, SAME[spelling]).records[0].turns
    assert [(turn.role, turn.text) for turn in turns] == [(m["role"], m["content"]) for m in MESSAGES]
    assert predicted(encoded(read(tmp_path, SAME[spelling]))) == "Hi<|endoftext|>Bye<|endoftext|>"


def test_trls_texts_are_a_question_and_its_answer(tmp_path: Path) -> None:
    record = {"prompt": "2+2", "completion": "4"}
    for names in ({}, {"instruction": "prompt", "output": "completion"}):
        turns = read(tmp_path, record, **names).records[0].turns
        assert [(turn.role, turn.text) for turn in turns] == [("user", "2+2"), ("assistant", "4")]


def test_an_answer_of_weight_0_is_read_and_not_predicted(tmp_path: Path) -> None:
    messages = [MESSAGES[0], MESSAGES[1], {**MESSAGES[2], "weight": 0}, *MESSAGES[3:]]
    example = encoded(read(tmp_path, {"messages": messages}))
    assert predicted(example) == "Bye<|endoftext|>"
    assert "Hi<|endoftext|>" in gpt2().decode(example.ids.tolist())


def test_a_record_without_an_answer_that_counts_is_left_out(tmp_path: Path) -> None:
    silent = {"messages": [MESSAGES[1], {**MESSAGES[2], "weight": 0}]}
    found = read(tmp_path, silent, SAME["trl's"])
    assert found.n_empty == 1 and [record.index for record in found.records] == [1]


@pytest.mark.parametrize(("template", "header"), [("chat", "Assistant:"), ("alpaca", "### Response:")])
def test_a_greeting_opens_a_conversation(template: str, header: str, tmp_path: Path) -> None:
    greeting = {"role": "assistant", "content": "Welcome"}
    example = encoded(read(tmp_path, {"messages": [MESSAGES[0], greeting, *MESSAGES[1:3]]}), template)
    assert f"{header}\nWelcome" in gpt2().decode(example.ids.tolist())
    assert predicted(example) == "Welcome<|endoftext|>Hi<|endoftext|>"


def test_alpacas_sign_of_no_input_is_no_input(tmp_path: Path) -> None:
    record = {"instruction": "Say hi.", "input": "<noinput>", "output": "hi"}
    assert read(tmp_path, record).records[0].turns[0].input == ""


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [MESSAGES[1], {"role": role, "content": content, **more}]}


REFUSED = {
    "a tool": (said("tool", "42"), "message 1: calls of tools are not supported"),
    "a call": (
        said("assistant", "", tool_calls=[{"id": "1"}]),
        "message 1: calls of tools are not supported",
    ),
    "ShareGPT's tool": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "b"}]},
        "message 1: calls of tools are not supported",
    ),
    "an image": (
        said("assistant", [{"type": "image_url", "image_url": {"url": "x"}}]),
        "message 1: content of the type 'image_url' is not supported",
    ),
    "half a weight": (said("assistant", "b", weight=0.5), "message 1: the weight is 0.5"),
    "true as a weight": (said("assistant", "b", weight=True), "message 1: the weight is True"),
    "a completion of nothing": ({"prompt": "a", "completion": []}, "'completion' is not a list of messages"),
    "no text": (said("assistant", None), "message 1: field 'content' is null, not text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(case: str, tmp_path: Path) -> None:
    record, what = REFUSED[case]
    with pytest.raises(InputError) as caught:
        read(tmp_path, record)
    assert "record 0" in caught.value.what and what in caught.value.what


@pytest.mark.parametrize("kind", ["jsonl.gz", "parquet"])
def test_openassistants_messages_are_refused_with_what_makes_conversations_of_them(
    kind: str, tmp_path: Path
) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed here")
    said = [("1", None, "prompter", "Hello"), ("2", "1", "assistant", "Hi"), ("3", "1", "assistant", "Yes?")]
    said += [("4", "2", "prompter", "Bye"), ("5", "4", "assistant", "Ciao")]
    rows = [dict(zip(("message_id", "parent_id", "role", "text"), row, strict=True)) for row in said]
    path = tmp_path / f"my oasst.{kind}"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(InputError, match=rf"my oasst\.{kind}(:|, row )1, record 0") as caught:
        read_instructions(path, InstructDataConfig(source="x"))
    fix = caught.value.fix.replace("python3", sys.executable, 1)
    subprocess.run(fix, shell=True, check=True, timeout=20)
    found = read_instructions(tmp_path / "my oasst.new.jsonl", InstructDataConfig(source="x"), STRICT)
    texts = [[turn.text for turn in record.turns] for record in found.records]
    assert texts == [["Hello", "Hi"], ["Hello", "Yes?"], ["Hello", "Hi", "Bye", "Ciao"]]
