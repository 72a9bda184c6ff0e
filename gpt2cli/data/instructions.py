"""Instruction records: files of any kind of records, read as conversations and checked.

A record is an instruction with an output and optionally an input, under any field names, or one of the
conversations of `conversations.py`. `templates.py` turns a conversation into a prompt, `sft_batches.py`
into token ids.
"""

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.data.byte_source import ReadOptions, joined_digest
from gpt2cli.data.conversations import BESIDE, LISTS, is_conversation, read_conversation
from gpt2cli.data.file_kinds import reading_command
from gpt2cli.data.input_files import record_sources
from gpt2cli.data.record_files import RecordReader
from gpt2cli.data.text_fields import MISSING, find_field, text_field
from gpt2cli.errors import InputError, counted
from gpt2cli.json_files import kind_of
from gpt2cli.recipe.data_sections import InstructDataConfig
from gpt2cli.templates import Turn

NO_INPUT = "<noinput>"  # self-instruct's and Alpaca's spelling of an empty input
_NO_INPUT = re.compile(r"\W*no[ _-]?input\W*", re.IGNORECASE)  # <noInput>, "No input.", <no input>
UNREAD = ("history", "tools")
OASST = ("message_id", "parent_id", "text", "role")  # OpenAssistant's messages, each naming the one before
# jq's program that makes a conversation of each answer and what led to it.
_PATHS = (
    'INDEX(.message_id) as $all | .[] | select(.role == "assistant")'
    ' | {messages: [recurse($all[.parent_id // ""] // empty)] | reverse | map({role, content: .text})}'
)


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
    """The records of one or several files. Those without answer text are left out and counted in `n_empty`;
    `notes` are what to say of the rest.
    """

    records: tuple[InstructionRecord, ...]
    n_empty: int
    sha256: str  # of the file; of several, of their hashes
    notes: tuple[str, ...] = ()


def read_instructions(
    paths: Path | Sequence[Path],
    fields: InstructDataConfig,
    options: ReadOptions | None = None,
    first_index: int = 0,
) -> InstructionRecords:
    """Read files of any kind that `record_files.py` reads; `first_index` is the number of the first record.

    Raises InputError naming the line and the record's number.
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    found, digests, notes = list[InstructionRecord](), list[str](), list[str]()
    n_no_input, unread = 0, Counter[str]()
    for source in record_sources(paths):
        with closing(RecordReader(source, options)) as reader:
            for line, value in reader:
                index = first_index + len(found) + reader.tally.n_bad
                where = f"{reader.where(line)}, record {index}"
                reader.require_once((fields.instruction, fields.input, fields.output))
                try:
                    turns = _turns(value, fields, where, source.name)
                except InputError as error:
                    reader.tally.skip(error)
                    continue
                reader.tally.n_good += 1
                n_no_input += _is_no_input(find_field(value, fields.input))
                unread.update(_unread(value))
                found.append(InstructionRecord(index, where, turns))
            if reader.tally.n_bad or found:
                notes += reader.finish()
            first_index += reader.tally.n_bad
            digests.append(reader.digest)
    kept = tuple(record for record in found if _has_answer(record))
    if not kept:
        raise InputError(
            f"{', '.join(map(str, paths))}: no record has an answer",
            f"it has {len(found)} records" if found else "it is empty",
            f'a record is {{"{fields.instruction}": "...", "{fields.output}": "..."}}',
        )
    if n_no_input:
        notes.append(f"the input of {counted(n_no_input, 'record')} is {NO_INPUT}, and is read as none")
    for field, n in sorted(unread.items()):
        notes.append(f"the field {field!r} of {counted(n, 'record')} is not read")
    n_silent = sum(any(turn.role == "assistant" and not turn.text.strip() for turn in r.turns) for r in kept)
    if n_silent:
        notes.append(f"{_have(n_silent)} an empty answer, which does not count in the loss")
    n_unasked = sum(
        any(turn.role == "user" and not (turn.text + turn.input).strip() for turn in record.turns)
        for record in kept
    )
    if n_unasked:
        notes.append(f"{_have(n_unasked)} an empty question; the answer counts all the same")
    return InstructionRecords(kept, len(found) - len(kept), joined_digest(digests), tuple(notes))


def _has_answer(record: InstructionRecord) -> bool:
    return any(turn.text for turn in record.turns if turn.role == "assistant" and turn.in_loss)


def _have(n: int) -> str:
    return f"{counted(n, 'record')} {'has' if n == 1 else 'have'}"


def _is_no_input(given: Any) -> bool:
    return isinstance(given, str) and bool(_NO_INPUT.fullmatch(given.strip()))


def _unread(record: Any) -> Iterator[str]:
    """The fields that belong to what the model would see in other programs, and are left out here."""
    if isinstance(record, dict):
        unread = UNREAD if any(record.get(name) for name in LISTS) else (BESIDE, *UNREAD)
        yield from (name for name in unread if record.get(name) not in (None, "", "[]", []))


def _turns(value: Any, fields: InstructDataConfig, where: str, name: str) -> tuple[Turn, ...]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {LISTS[0]: value}
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: must be a JSON object, not {kind_of(value)}",
            fix=f'a record is {{"{fields.instruction}": "...", "{fields.output}": "..."}}',
        )
    if all(name in value for name in OASST):
        why = "a record is a conversation"
        raise InputError(f"{where}: is one message of a tree", why, _tree_command(name))
    if is_conversation(value, fields.instruction):
        return read_conversation(value, where)
    # null is no answer, as the empty text is; a record without the field is another kind of record.
    output = _value(value, fields.output, where)
    asked, given = find_field(value, fields.instruction), find_field(value, fields.input)
    if fields.task and (asked is MISSING or _is_null(asked)):
        # One instruction for all records needs an input to apply it to.
        return Turn("user", fields.task, _text(value, fields.input, where)), Turn("assistant", output)
    instruction = _text(value, fields.instruction, where)
    has_input = given is not MISSING and not _is_no_input(given)
    return Turn("user", instruction, _value(value, fields.input, where) if has_input else ""), Turn(
        "assistant", output
    )


def _text(record: dict[str, Any], field: str, where: str) -> str:
    return text_field(record, field, where, _naming(record))


def _tree_command(name: str) -> str:
    """The command that makes conversations of OpenAssistant's messages, which also come as parquet."""
    if not name.endswith(".parquet"):
        return reading_command(name, f"jq -sc {shlex.quote(_PATHS)}", ".jsonl")
    python = "import sys; from pyarrow import parquet; [print(__import__('json').dumps("
    python += "{k: r[k] for k in ('message_id', 'parent_id', 'role', 'text')}))"
    python += " for r in parquet.read_table(sys.argv[1]).to_pylist()]"
    copy = f"{name.removesuffix('.parquet')}.new.jsonl"
    rows = f"python3 -c {shlex.quote(python)} {shlex.quote(name)}"
    return f"{rows} | jq -sc {shlex.quote(_PATHS)} > {shlex.quote(copy)}"


def _value(record: dict[str, Any], field: str, where: str) -> str:
    """The text of an input or an output: none for null, and for a number, or true, the text that JSON has."""
    value = find_field(record, field)
    if _is_null(value):
        return ""
    return json.dumps(value) if isinstance(value, int | float) else _text(record, field, where)


def _is_null(value: Any) -> bool:
    """Whether it is null; pandas writes NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _naming(record: dict[str, Any]) -> str:
    """The fix that names a record's fields, with those of known data sets filled in."""
    for names in _KNOWN:
        if all(name in record for name in names.values()):
            return " ".join(f"data.{ours}={name}" for ours, name in names.items())
    return _FIELDS


_FIELDS = (
    "name the fields in the recipe: data.instruction=NAME data.input=NAME data.output=NAME;"
    " data.task=TEXT for records without an instruction"
)
# Fields of published data sets: Dolly's, and what others are often called.
_KNOWN: tuple[dict[str, str], ...] = (
    {"instruction": "instruction", "input": "context", "output": "response"},
    {"instruction": "instruction", "output": "response"},
    {"instruction": "question", "input": "context", "output": "answer"},
    {"instruction": "question", "output": "answer"},
    {"instruction": "prompt", "output": "response"},
    {"instruction": "prompt", "output": "completion"},
    {"instruction": "input", "output": "output"},
)
