"""Owns reading JSON records out of a text: one a line, or one list. What a record is, its readers know.

Files that do not fit into memory are read by pieces.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2cli.errors import InputError

ONE_A_LINE = "one object a line"


def each_line(text: str, name: str, fix: str = ONE_A_LINE) -> Iterator[tuple[int, Any]]:
    """(number of the line, from 1; its value) of each line that is not blank.

    Raises InputError naming NAME:LINE, with `fix`.
    """
    # Not splitlines: U+2028 and its like may stand inside of a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name}:{number}: not a JSON record", str(error), fix) from None


def whole_list(text: str, path: Path) -> list[Any]:
    """The values of one JSON list. Raises InputError for anything else."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not JSON, column {error.colno}",
            error.msg,
            "a record a line is read from a file that is called .jsonl",
        ) from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, lists 10,000 deep
        raise InputError(f"{path}: not readable JSON", str(error)) from None
    if not isinstance(values, list):
        raise InputError(
            f"{path}: a list of records is needed, not {kind_of(values)}",
            "the file is one JSON value",
            "put the records into [ ], or one a line into a file that is called .jsonl",
        )
    return values


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
