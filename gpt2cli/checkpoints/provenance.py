"""Owns hashes.json: what downloaded files were when they came, held against them ever after.

It lies beside the files, and says where they come from too. `by` says who vouches for a hash:
"published", where somebody else's word was compared, or "first seen", where there is none.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2cli import files as disk
from gpt2cli.errors import InputError

NAME = "hashes.json"
PUBLISHED, FIRST_SEEN = "published", "first seen"


@dataclass(frozen=True)
class Record:
    n_bytes: int
    sha256: str
    by: str
    address: str = ""
    validator: str = ""  # ETag or Last-Modified
    date: str = ""  # ISO 8601


@dataclass(frozen=True)
class Origin:
    """Where a folder of files comes from; goes into the receipt of what is made of them."""

    source: str  # "openai" or "hf"
    address: str  # of the folder there
    revision: str  # the hub's commit; "" for OpenAI's files


def read(folder: Path) -> dict[str, Record]:
    """{file name: what it was}. Raises InputError for a file that this program did not write."""
    path = folder / NAME
    try:
        records = {name: Record(**values) for name, values in _table(path).get("files", {}).items()}
    except (TypeError, AttributeError):
        raise _unreadable(path) from None
    for name, record in records.items():
        if not isinstance(record.n_bytes, int) or not isinstance(record.sha256, str):
            raise InputError(f"{path}: the entry of {name} is broken", fix=f"rm {path}")
    return records


def origin(folder: Path) -> Origin | None:
    """Where the files come from, as far as it is known. Raises InputError as `read` does."""
    values = _table(folder / NAME).get("origin")
    return None if values is None else origin_of(values, folder / NAME)


def origin_of(values: Any, path: Path) -> Origin:
    """An origin as `path` holds it. Raises InputError where it is none."""
    names = Origin.__dataclass_fields__
    if isinstance(values, dict) and set(values) == set(names):
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        if len(texts) == len(names):
            return Origin(**texts)
    raise _unreadable(path)


def keep(folder: Path, records: Mapping[str, Record], origin: Origin) -> None:
    """Add these to what is known, or put them in the place of what was."""
    _write(folder, {**read(folder), **records}, asdict(origin))


def forget(folder: Path, names: Collection[str]) -> None:
    left = {name: record for name, record in read(folder).items() if name not in names}
    _write(folder, left, _table(folder / NAME).get("origin"))


def _write(folder: Path, records: Mapping[str, Record], origin: dict[str, str] | None) -> None:
    files = {name: asdict(record) for name, record in sorted(records.items())}
    disk.write_json(folder / NAME, {"origin": origin, "files": files})


def _table(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with disk.open_regular(path) as file:
        try:
            table = json.loads(file.read(1 << 24))
        except (ValueError, RecursionError):
            raise _unreadable(path) from None
    if not isinstance(table, dict):
        raise _unreadable(path)
    return table


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"{path}: cannot be read",
        "it is not what gpt2cli wrote; the next download writes another",
        f"rm {path}",
    )
