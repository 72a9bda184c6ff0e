"""responses.jsonl: a model's answers to the test split, one line per record.

Each line's `key` identifies the model and prompt settings; lines with a different key are dropped on
restart. A kill loses at most the line that is being written.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2cli import json_lines
from gpt2cli.templates import Turn

Message = dict[str, str]  # {"role": "user", "content": "..."}


@dataclass(frozen=True)
class Response:
    """One answer. `ended` is false if it was cut off for its length; `tokens` is its length.

    `instruction` and `input` are the last question, `messages` all that the model was asked: system text,
    history, last question. Lines of earlier versions lack them and their digest.
    """

    index: int  # of the record in its file
    instruction: str
    input: str
    output: str  # the reference answer of the record
    response: str
    ended: bool
    finish_reason: str  # "end_of_text", "stop" (a stop text) or "length"
    tokens: int
    key: str
    messages: list[Message] = field(default_factory=list)
    digest: str = ""  # of `messages`: the same conversation in another file has the same one


def messages_of(turns: Sequence[Turn]) -> list[Message]:
    return [{"role": turn.role, "content": join_input(turn.text, turn.input)} for turn in turns]


def join_input(instruction: str, input: str) -> str:
    """The content of a user's message."""
    return f"{instruction}\n\n{input}" if input else instruction


def messages_digest(messages: Sequence[Message]) -> str:
    return json_lines.digest_of([[message["role"], message["content"]] for message in messages])


def read_responses(path: Path) -> list[Response]:
    """The responses of a file, without incomplete or foreign lines."""
    return list(json_lines.read_ledger(path, _response).values)


@contextmanager
def open_responses(path: Path, key: str) -> Iterator["ResponseFile"]:
    """Open a file to append to: responses with this key are kept, all other lines are dropped."""
    content = json_lines.read_ledger(path, _response)
    there = {response.index: response for response in content.values if response.key == key}
    if content.strays or len(there) < len(content.values):
        json_lines.rewrite(path, list(there.values()))
    with json_lines.appending(path, _response) as file:
        yield ResponseFile(file, there)


@dataclass(frozen=True)
class ResponseFile:
    file: json_lines.Ledger[Response]
    responses: dict[int, Response]  # by index, in the order of the file

    def add(self, response: Response) -> None:
        self.file.add(response)
        self.responses[response.index] = response


def _response(fields: dict[str, Any]) -> Response:
    return Response(**fields)
