"""hashes.json, the record beside downloaded files: where they come from, and what they were then."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli import files
from gpt2cli.errors import InputError

NAME = "hashes.json"
RECEIPT = "conversion.json"  # beside a converted model: what it was made from, and the proof
# Who vouches for a hash: somebody else's word was compared, or there is none and it is held from now on.
PUBLISHED, FIRST_SEEN = "published", "first seen"
_MAX_SIZE = 1 << 24  # bytes


@dataclass(frozen=True)
class Record:
    """What a file was when it came."""

    size: int  # bytes
    sha256: str
    by: str  # PUBLISHED or FIRST_SEEN
    address: str = ""
    date: str = ""  # ISO 8601


@dataclass(frozen=True)
class Origin:
    """Where a folder of files comes from; goes into the receipt of what is made of them."""

    source: str  # "openai" or "hf"
    address: str  # of the folder there
    revision: str  # the hub's commit; "" for OpenAI's files


@dataclass(frozen=True)
class Provenance:
    """What is known of a folder of downloaded files; `names` are all that belong to it, missing ones too."""

    origin: Origin
    command: str  # that fetches what is missing
    names: list[str]
    files: dict[str, Record]


def read(folder: Path) -> Provenance | None:
    """The folder's record, or None. Raises InputError for a file that this program did not write."""
    from pydantic import TypeAdapter, ValidationError

    path = folder / NAME
    if not path.exists():
        return None
    with files.open_regular(path) as file:
        try:
            return TypeAdapter(Provenance).validate_json(file.read(_MAX_SIZE), strict=True)
        except ValidationError:
            raise _unreadable(path) from None


def write(folder: Path, provenance: Provenance) -> None:
    files.write_json(folder / NAME, dataclasses.asdict(provenance))


def origin_of(values: Any, path: Path) -> Origin:
    """An origin as the JSON file `path` holds it. Raises InputError where it is none."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Origin).validate_python(values)
    except ValidationError:
        raise _unreadable(path) from None


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"{path}: cannot be read", "gpt2 did not write it; the next download does", f"rm {path}"
    )
