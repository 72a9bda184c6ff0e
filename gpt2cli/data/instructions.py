"""Owns reading instruction records: a JSON list or JSON lines become conversations, each checked.

Two kinds: an instruction with its output and perhaps an input, whose fields may bear any names;
and {"messages": [{"role", "content"}, ...]}. How a conversation is written down for the model is
in `prompts.py`, what it becomes as tokens in `rows.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gpt2cli.data.json_records import each_line, kind_of, whole_list
from gpt2cli.data.records import kind_by_name, read_text
from gpt2cli.errors import InputError
from gpt2cli.templates import Role, Turn

MESSAGES = "messages"


@dataclass(frozen=True)
class Fields:
    """What a file calls the three parts of a record, and what is to be done where it does not say."""

    instruction: str = "instruction"
    input: str = "input"  # may be missing from a record, or null
    output: str = "output"
    task: str = ""  # the instruction of records that have no such field, or null; "" for none


@dataclass(frozen=True)
class Record:
    """One conversation, which ends with an answer. `index` is its place in the file, from 0."""

    index: int
    where: str  # for messages: FILE, record 3
    turns: tuple[Turn, ...]

    @property
    def question(self) -> tuple[Turn, ...]:
        """All that comes before the last answer."""
        return self.turns[:-1]

    @property
    def answer(self) -> str:
        return self.turns[-1].text


@dataclass(frozen=True)
class Records:
    """What a file holds. Records without any answer text are left out, and counted."""

    records: tuple[Record, ...]
    n_empty: int
    sha256: str  # of the file


def read_records(path: Path, fields: Fields) -> Records:
    """Read a file: .jsonl and .ndjson hold a record a line, everything else one JSON list.

    Raises InputError naming the line or the record's index, counted from 0.
    """
    text, sha256 = read_text(path)
    found = enumerate(_numbered(text, path))
    records = [Record(index, where, _turns(value, fields, where)) for index, (where, value) in found]
    kept = tuple(r for r in records if any(t.text for t in r.turns if t.role == "assistant"))
    if not kept:
        raise InputError(
            f"{path}: no record with an answer in it",
            f"it has {len(records)} records" if records else "it is empty",
            f'a record is {{"{fields.instruction}": "...", "{fields.output}": "..."}}',
        )
    return Records(kept, len(records) - len(kept), sha256)


def _numbered(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Where each record stands, and what it is."""
    if kind_by_name(path) == "jsonl":
        for index, (line, value) in enumerate(each_line(text, str(path))):
            yield f"{path}:{line}, record {index}", value
    else:
        yield from ((f"{path}, record {index}", value) for index, value in enumerate(whole_list(text, path)))


def _turns(value: Any, fields: Fields, where: str) -> tuple[Turn, ...]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object is needed, not {kind_of(value)}")
    if MESSAGES in value:
        return _conversation(value[MESSAGES], where)
    output = _text(value, fields.output, where)
    if fields.task and value.get(fields.instruction) is None:
        # The same task for all is a question only with something to do it to.
        return Turn("user", fields.task, _text(value, fields.input, where)), Turn("assistant", output)
    instruction = _text(value, fields.instruction, where)
    given = "" if value.get(fields.input) is None else _text(value, fields.input, where)
    return Turn("user", instruction, given), Turn("assistant", output)


def _conversation(messages: Any, where: str) -> tuple[Turn, ...]:
    """Perhaps a system's message, then user and assistant in turn, the assistant last."""
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: {MESSAGES!r} is not a list of messages", fix=_MESSAGE)
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        here = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise InputError(f"{here}: a JSON object is needed, not {kind_of(message)}", fix=_MESSAGE)
        role, text = _text(message, "role", here), _text(message, "content", here)
        if role not in ("system", "user", "assistant"):
            raise InputError(f"{here}: the role is {role[:40]!r}", "it is system, user or assistant")
        due = "assistant" if turns and turns[-1].role == "user" else "user"
        if role != due and (role != "system" or turns):
            raise InputError(
                f"{here}: the role is {role}, but {due} is due",
                "a system message may come first; then user and assistant take turns",
            )
        turns.append(Turn(cast(Role, role), text))
    if turns[-1].role != "assistant":
        raise InputError(
            f"{where}: the last message is the {turns[-1].role}'s",
            "without an assistant's answer at the end there is nothing to learn from it",
        )
    return tuple(turns)


_MESSAGE = 'a message is {"role": "user", "content": "..."}'


def _text(record: dict[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        problem = f"is {kind_of(value)}, not text" if field in record else "is missing"
        raise InputError(
            f"{where}: field {field!r} {problem}",
            f"it has: {', '.join(repr(name[:40]) for name in list(record)[:8]) or 'no field'}",
            "name the fields in the recipe: data.instruction=NAME data.input=NAME data.output=NAME;"
            " data.task=TEXT where records do not say what is to be done",
        )
    try:
        value.encode("utf-8")  # escapes in JSON can spell half a surrogate pair
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise InputError(
            f"{where}: field {field!r} holds half a surrogate pair ({half})", "it is not a character"
        ) from None
    return value
