"""Owns responses.jsonl: what a model answered, a line a question, kept however the writing ends.

A line belongs to one model and one way of asking, named by its `key`; lines of another key are
dropped when answering begins again. Who answers, and what the answers are worth, is not known here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli import json_lines


@dataclass(frozen=True)
class Response:
    """`tokens` counts the answer's own; `ended` is false where it was cut off for its length."""

    index: int  # of the record in its file
    instruction: str
    input: str
    output: str  # the answer that the record holds
    response: str
    ended: bool
    finish_reason: str  # "end_of_text", "stop" (a stop text) or "length"
    tokens: int
    key: str


def read_responses(path: Path, key: str | None = None) -> list[Response]:
    """The responses of a file, of one key if it is given; lines that are torn or not ours are left out."""
    found = json_lines.read_ledger(path, _response).values
    return [response for response in found if key in (None, response.key)]


@contextmanager
def appending(path: Path, key: str) -> Iterator["Appending"]:
    """Go on with a file: what is there of this key is kept, everything else in it goes."""
    content = json_lines.read_ledger(path, _response)
    there = {response.index: response for response in content.values if response.key == key}
    if content.strays or len(there) < len(content.values):
        json_lines.rewrite(path, list(there.values()))
    with json_lines.appending(path, _response, allow=lambda content: None) as file:
        yield Appending(file, there)


@dataclass(frozen=True)
class Appending:
    file: json_lines.Ledger[Response]
    responses: dict[int, Response]  # by index, in the order in which they were written

    def add(self, response: Response) -> None:
        self.file.add(response)
        self.responses[response.index] = response


def _response(fields: dict[str, Any]) -> Response:
    return Response(**fields)
