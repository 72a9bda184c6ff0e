"""Owns responses.jsonl: what a model answered, a line a question, kept however the writing ends.

A line belongs to one model and one way of asking, named by its `key`; lines of another key are
dropped when answering begins again. Who answers, and what the answers are worth, is not known here.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from gpt2cli import disk


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
    if not path.exists():
        return []
    found = [_response(line) for line in path.read_text(encoding="utf-8", errors="replace").split("\n")]
    return [response for response in found if response and key in (None, response.key)]


@contextmanager
def appending(path: Path, key: str) -> Iterator["Appending"]:
    """Go on with a file: what is there of this key is kept, everything else in it goes."""
    there = {response.index: response for response in read_responses(path, key)}
    disk.write_file(path, "".join(_line(response) for response in there.values()))
    with open(path, "a", encoding="utf-8") as file:
        yield Appending(file, there)


@dataclass(frozen=True)
class Appending:
    file: TextIO
    responses: dict[int, Response]  # by index, in the order in which they were written

    def add(self, response: Response) -> None:
        """Write a line, through Python's buffers to the system's: a killed process loses none."""
        self.responses[response.index] = response
        self.file.write(_line(response))
        self.file.flush()


def _line(response: Response) -> str:
    return json.dumps(asdict(response), ensure_ascii=False) + "\n"


def _response(line: str) -> Response | None:
    try:
        return Response(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
