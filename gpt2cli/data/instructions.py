"""Instruction records: a JSON list or JSON lines, read as conversations and checked.

There are two kinds: an instruction with an output and optionally an input, under any field names; and
{"messages": [{"role", "content"}, ...]}. `templates.py` turns a conversation into a prompt,
`sft_batches.py` into token ids.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gpt2cli.data.records import kind_of, read_records, text_field
from gpt2cli.errors import InputError
from gpt2cli.recipe.sections import InstructDataConfig
from gpt2cli.templates import Role, Turn

MESSAGES = "messages"


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
    kept = tuple(r for r in records if any(t.text for t in r.turns if t.role == "assistant"))
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
    if MESSAGES in value:
        return _conversation(value[MESSAGES], where)
    output = _text(value, fields.output, where)
    if fields.task and value.get(fields.instruction) is None:
        # One instruction for all records needs an input to apply it to.
        return Turn("user", fields.task, _text(value, fields.input, where)), Turn("assistant", output)
    instruction = _text(value, fields.instruction, where)
    given = "" if value.get(fields.input) is None else _text(value, fields.input, where)
    return Turn("user", instruction, given), Turn("assistant", output)


def _conversation(messages: Any, where: str) -> tuple[Turn, ...]:
    """An optional system message, then user and assistant in turn, the assistant last."""
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: {MESSAGES!r} is not a list of messages", fix=_MESSAGE)
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        here = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise InputError(f"{here}: must be a JSON object, not {kind_of(message)}", fix=_MESSAGE)
        role, text = _text(message, "role", here), _text(message, "content", here)
        if role not in ("system", "user", "assistant"):
            raise InputError(f"{here}: the role is {role[:40]!r}", "it must be system, user or assistant")
        due = "assistant" if turns and turns[-1].role == "user" else "user"
        if role != due and (role != "system" or turns):
            raise InputError(
                f"{here}: the role is {role}, but it must be {due}",
                "a system message may come first; then user and assistant take turns",
            )
        turns.append(Turn(cast(Role, role), text))
    if turns[-1].role != "assistant":
        raise InputError(
            f"{where}: the last message is the {turns[-1].role}'s",
            "training needs an assistant's answer at the end",
        )
    return tuple(turns)


_MESSAGE = 'a message is {"role": "user", "content": "..."}'


def _text(record: dict[str, Any], field: str, where: str) -> str:
    return text_field(record, field, where, _FIELDS)


_FIELDS = (
    "name the fields in the recipe: data.instruction=NAME data.input=NAME data.output=NAME;"
    " data.task=TEXT for records without an instruction"
)
