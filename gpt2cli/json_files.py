"""JSON files of any origin: read whole, within bounds, each key once; an error names file and line."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from gpt2cli.errors import InputError, require_format
from gpt2cli.files import open_regular

LARGEST_JSON = 64 << 20  # bytes


def read_json(path: Path, fix: str = "") -> Any:
    """The value in a JSON file. Raises InputError naming the line, where there is one, with `fix`."""
    with open_regular(path) as file:
        data = file.read(LARGEST_JSON + 1)
    if len(data) > LARGEST_JSON:
        raise InputError(f"{path}: is larger than {LARGEST_JSON >> 20} MiB", "no such file is near that", fix)
    try:
        return parse_json(data)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: is not JSON", error.msg, fix) from None
    except ValueError as error:
        raise InputError(f"{path}: is not JSON", str(error), fix) from None


def read_json_object(path: Path, fix: str = "") -> dict[str, Any]:
    """As `read_json`, but raises InputError also for a value that is not an object."""
    value = read_json(path, fix)
    if not isinstance(value, dict):
        raise InputError(f"{path}: is not a JSON object", fix=fix)
    return value


def read_own_json(path: Path, newest: int, fix: str = "", *, is_numbered: bool = True) -> dict[str, Any]:
    """An object that gpt2cli wrote, in a `format` up to `newest`; unless `is_numbered`, a file without a
    number is of format 1.

    Raises as `read_json_object`, and NewerFormatError for a later version's.
    """
    value = read_json_object(path, fix)
    require_format(path, value.get("format", None if is_numbered else 1), newest, fix)
    return value


def parse_json(text: str | bytes) -> Any:
    """A JSON value. Raises ValueError for what is none, is nested too deeply or has a key twice."""
    try:
        return DECODER.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def finite_json(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON lacks, at any depth."""
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def kind_of(value: Any) -> str:
    """The type of a JSON value, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    names[bytes] = "bytes"  # of parquet
    return names.get(type(value), "a number")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Programs do not agree about which of two values counts."""
    table = dict(pairs)
    if len(table) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!a} occurs twice"[:80])
    return table


DECODER = json.JSONDecoder(object_pairs_hook=_each_once)
