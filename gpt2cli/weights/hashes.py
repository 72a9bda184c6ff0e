"""Owns hashes.json: what downloaded files were when they came, held against them ever after.

It lies beside the files. `by` says who vouches for a hash: "published", where somebody else's word
was compared, or "first seen", where there is none.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt2cli import disk
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


def read(folder: Path) -> dict[str, Record]:
    """{file name: what it was}. Raises InputError for a file that this program did not write."""
    path = folder / NAME
    if not path.exists():
        return {}
    with disk.open_regular(path) as file:
        try:
            records = {
                name: Record(**values) for name, values in json.loads(file.read(1 << 24))["files"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(
                f"{path}: cannot be read", "it is not what gpt2cli wrote", f"rm {path}, and download again"
            ) from None
    for name, record in records.items():
        if not isinstance(record.n_bytes, int) or not isinstance(record.sha256, str):
            raise InputError(f"{path}: the entry of {name} is broken", fix=f"rm {path}, and download again")
    return records


def keep(folder: Path, records: Mapping[str, Record]) -> None:
    """Add these to what is known, or put them in the place of what was."""
    known = {**read(folder), **records}
    disk.write_json(
        folder / NAME, {"files": {name: asdict(record) for name, record in sorted(known.items())}}
    )


def forget(folder: Path, names: Collection[str]) -> None:
    left = {name: asdict(record) for name, record in read(folder).items() if name not in names}
    disk.write_json(folder / NAME, {"files": left})
