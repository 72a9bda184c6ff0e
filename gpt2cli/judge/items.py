"""The responses to judge: responses.jsonl of a run, or any file with such records."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.data.records import ONE_PER_LINE, json_records, read_text
from gpt2cli.errors import InputError
from gpt2cli.json_lines import digest_of

RESPONSE = ("response", "model_response")  # the names that files use for the model's answer
_RECORD = '{"instruction": "...", "input": "...", "output": "...", "response": "..."}'
_TORN = f"{ONE_PER_LINE}; if the run was stopped while it answered, go on with it: --resume"


@dataclass(frozen=True)
class JudgeItem:
    """One response and its record. An empty `response` is not sent to the judge."""

    index: int  # of the record, from 0
    instruction: str
    input: str
    reference: str  # the record's own answer
    response: str

    @property
    def asked(self) -> str:
        """A digest of everything the judge sees: a changed response has another one."""
        return digest_of([self.instruction, self.input, self.reference, self.response])


def read_items(path: Path) -> list[JudgeItem]:
    """Read .jsonl or .ndjson, one record per line, or anything else as one JSON list.

    Items are numbered by the records' own "index" where they have one, else by their place. An
    empty or missing response is an item too. Raises InputError naming the line or the place.
    """
    text, _ = read_text(path)
    items: dict[int, JudgeItem] = {}
    for place, (line, record) in enumerate(json_records(text, path, _TORN)):
        where = f"{path}:{line}, record {place}"
        item = _item(record, place, where)
        if item.index in items:
            raise InputError(
                f"{where}: index {item.index} occurs twice",
                "a judgement is known by the index of its record",
                "number the records, or leave the field out of all of them",
            )
        items[item.index] = item
    if not items:
        raise InputError(f"{path}: no record to judge", "it is empty", f"a record is {_RECORD}")
    return list(items.values())


def _item(record: Any, place: int, where: str) -> JudgeItem:
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object", fix=f"a record is {_RECORD}")
    index = record.get("index", place)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 1 << 53:
        raise InputError(f"{where}: field 'index' is not a number from 0 on", fix="leave the field out")
    name = next((name for name in RESPONSE if record.get(name) is not None), RESPONSE[0])
    return JudgeItem(
        index=index,
        instruction=_text(record, "instruction", where),
        input=_text(record, "input", where, may_miss=True),
        reference=_text(record, "output", where),
        response=_text(record, name, where, may_miss=True),
    )


def _text(record: dict[str, Any], name: str, where: str, *, may_miss: bool = False) -> str:
    value = record.get(name)
    if value is None and may_miss:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{where}: field {name!r} is {'not text' if name in record else 'missing'}",
            f"it has: {', '.join(repr(key[:40]) for key in list(record)[:8]) or 'no field'}",
            f"a record is {_RECORD}",
        )
    return value
