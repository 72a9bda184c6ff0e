"""Instruction records: a JSON list or JSON lines, read as conversations and checked.

A record is an instruction with an output and optionally an input, under any field names, or one of the
conversations of `conversations.py`. `templates.py` turns a conversation into a prompt, `sft_batches.py`
into token ids.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.data.conversations import is_conversation, read_conversation
from gpt2cli.data.records import kind_of, read_records, text_field
from gpt2cli.errors import InputError
from gpt2cli.recipe.sections import InstructDataConfig
from gpt2cli.templates import Turn

NO_INPUT = "<noinput>"  # self-instruct's and Alpaca's spelling of an empty input


@dataclass(frozen=True)
class InstructionRecord:
    """One conversation that ends with an answer. `index` is its number in the file, from 0."""

    index: int
    where: str  # for error messages: FILE, record 3
    turns: tuple[Turn, ...]

    @property
    def question(self) -> tuple[Turn, ...]:
        """Everything before the last answer."""
        return self.turns[:-1]

    @property
    def n_exchanges(self) -> int:
        """Its questions, each of which has an answer."""
        return sum(turn.role == "user" for turn in self.turns)

    @property
    def answer(self) -> str:
        return self.turns[-1].text


@dataclass(frozen=True)
class InstructionRecords:
    """The records of a file. Records without answer text are left out and counted in `n_empty`."""

    records: tuple[InstructionRecord, ...]
    n_empty: int
    sha256: str  # of the file


def read_instructions(path: Path, fields: InstructDataConfig) -> InstructionRecords:
    """Read a file of any kind that `records.py` reads; without a known suffix it is one JSON list.

    Raises InputError naming the line and the record's number, counted from 0.
    """
    found, sha256 = read_records(path)
    records = []
    for index, (line, value) in enumerate(found):
        where = f"{path}:{line}, record {index}"
        records.append(InstructionRecord(index, where, _turns(value, fields, where)))
    kept = tuple(r for r in records if any(t.text for t in r.turns if t.role == "assistant" and t.in_loss))
    if not kept:
        raise InputError(
            f"{path}: no record has an answer",
            f"it has {len(records)} records" if records else "it is empty",
            f'a record is {{"{fields.instruction}": "...", "{fields.output}": "..."}}',
        )
    return InstructionRecords(kept, len(records) - len(kept), sha256)


def _turns(value: Any, fields: InstructDataConfig, where: str) -> tuple[Turn, ...]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: must be a JSON object, not {kind_of(value)}")
    if is_conversation(value, fields.instruction):
        return read_conversation(value, where)
    output = _text(value, fields.output, where)
    if fields.task and value.get(fields.instruction) is None:
        # One instruction for all records needs an input to apply it to.
        return Turn("user", fields.task, _text(value, fields.input, where)), Turn("assistant", output)
    instruction = _text(value, fields.instruction, where)
    given = "" if value.get(fields.input) is None else _text(value, fields.input, where)
    given = "" if given.strip().lower() == NO_INPUT else given
    return Turn("user", instruction, given), Turn("assistant", output)


def _text(record: dict[str, Any], field: str, where: str) -> str:
    return text_field(record, field, where, _FIELDS)


_FIELDS = (
    "name the fields in the recipe: data.instruction=NAME data.input=NAME data.output=NAME;"
    " data.task=TEXT for records without an instruction"
)
