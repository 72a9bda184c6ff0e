"""The responses to judge: responses.jsonl of a run, or any file with such records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpt2cli.data.byte_source import ReadOptions
from gpt2cli.data.record_files import ONE_PER_LINE, read_records
from gpt2cli.errors import InputError
from gpt2cli.evaluation.responses import Message, join_input, messages_digest
from gpt2cli.json_lines import digest_of
from gpt2cli.judge.prompt import Messages, grade_messages

FIELDS = ("instruction", "input", "output", "response")
RESPONSE = "response"
RESPONSES = (RESPONSE, "model_response")  # the names that files use for the model's answer
_RECORD = '{"instruction": "...", "input": "...", "output": "...", "response": "..."}'
_TORN = f"{ONE_PER_LINE}; if the run was stopped while it answered, go on with it: --resume"


@dataclass(frozen=True)
class JudgeItem:
    """One response and its record. An empty `response` is not sent to the judge."""

    index: int  # of the record, from 0
    instruction: str
    input: str
    reference: str | None  # the record's own answer, where it has one
    response: str
    conversation: tuple[Message, ...] = ()  # before the question: system text and history
    is_whole: bool = False  # the file says all that was asked; others may leave out a conversation

    @property
    def asked(self) -> str:
        """A digest of everything the judge sees: a changed response has another one."""
        texts = [self.instruction, self.input, self.reference, self.response]
        return digest_asked(texts, self.prompt, self.conversation)

    @property
    def prompt(self) -> Messages:
        """What the judge is asked."""
        return grade_messages(self.instruction, self.input, self.reference, self.response, self.conversation)

    @property
    def digest(self) -> str:
        """Of the question with its conversation: the same for every model that was asked it."""
        question = {"role": "user", "content": join_input(self.instruction, self.input)}
        return messages_digest([*self.conversation, question])


def digest_asked(texts: list[str | None], prompt: Messages, conversation: Sequence[Message]) -> str:
    """A question's digest. A conversation, or no reference, has rules of its own in the prompt.

    The wording of the others is in the results' terms; their digest has been of the texts alone from the
    first version on.
    """
    return digest_of(prompt if conversation or None in texts else texts)


def read_items(
    path: Path, fields: Mapping[str, str] = MappingProxyType({}), options: ReadOptions | None = None
) -> list[JudgeItem]:
    """Read a file of records of any kind; without `options`, not one of them may be bad.

    `fields` renames: {"response": "prediction"} reads responses from that field, where a record has it.
    Items are numbered by the records' own "index" where they have one, else by their place. An
    empty or missing response is an item too. Raises InputError naming the line or the place.
    """
    items: dict[int, JudgeItem] = {}
    records, _ = read_records(path, options, _TORN)
    for own, name in fields.items():
        _require_field(path, [record for _, record in records], own, name)
    for place, (line, record) in enumerate(records):
        where = f"{path}:{line}, record {place}"
        item = _item(_renamed(record, fields), place, where)
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


def _require_field(path: Path, records: Sequence[Any], own: str, name: str) -> None:
    """Raise InputError where no record has the field, or what it stands for: it was mistyped."""
    known = {key for record in records if isinstance(record, dict) for key in record}
    if records and not {own, name} & known:
        has = ", ".join(sorted(repr(key[:40]) for key in known)[:8]) or "no field"
        raise InputError(
            f"{path}: no record has a field {name[:40]!r}", f"they have {has}", f"--field {own}=NAME"
        )


def _renamed(record: Any, fields: Mapping[str, str]) -> Any:
    if not isinstance(record, dict):
        return record
    found = {own: record[name] for own, name in fields.items() if name in record}
    return {**record, **found}


def _item(record: Any, place: int, where: str) -> JudgeItem:
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object", fix=f"a record is {_RECORD}")
    index = record.get("index", place)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 1 << 53:
        raise InputError(f"{where}: field 'index' is not a number from 0 on", fix="leave the field out")
    name = next((name for name in RESPONSES if record.get(name) is not None), RESPONSE)
    messages = _messages(record.get("messages"))
    if messages and "instruction" not in record:
        record = {**record, "instruction": messages[-1]["content"], "input": ""}
    has_reference = record.get("output") is not None or not any(name in record for name in RESPONSES)
    return JudgeItem(
        index=index,
        instruction=_text(record, "instruction", where),
        input=_text(record, "input", where, may_miss=True),
        reference=_text(record, "output", where) if has_reference else None,
        response=_text(record, name, where, may_miss=True),
        conversation=tuple(messages[:-1]),
        is_whole=bool(messages),
    )


def _messages(value: Any) -> list[Message]:
    """The messages of a conversation that ends with a question; none where it is anything else."""
    names = ("role", "content")
    is_list = isinstance(value, list) and all(
        isinstance(one, dict) and all(isinstance(one.get(name), str) for name in names) for one in value
    )
    if not is_list or not value or value[-1]["role"] != "user":
        return []
    return [{name: one[name] for name in names} for one in value]


def _text(record: dict[str, Any], name: str, where: str, *, may_miss: bool = False) -> str:
    value = record.get(name)
    if value is None and may_miss:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{where}: field {name!r} is {'not text' if name in record else 'missing'}",
            f"it has: {', '.join(repr(key[:40]) for key in list(record)[:8]) or 'no field'}",
            f"a record is {_RECORD}; --field {name}=NAME reads another field",
        )
    return value
