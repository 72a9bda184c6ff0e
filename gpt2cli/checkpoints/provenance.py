"""hashes.json: the source and hash of each downloaded file."""

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli import files
from gpt2cli.errors import InputError, require_format
from gpt2cli.json_files import read_json_object

NAME = "hashes.json"
RECEIPT = "conversion.json"  # next to a converted model: its source, and the verification
FORMAT, RECEIPT_FORMAT = 1, 1  # of the two files
# The source of a hash: it was published, or it was recorded at the first download.
PUBLISHED, FIRST_SEEN = "published", "first seen"


@dataclass(frozen=True)
class Record:
    """The size and hash of a file at its download."""

    size: int  # bytes
    sha256: str
    by: str  # PUBLISHED or FIRST_SEEN
    address: str = ""
    date: str = ""  # ISO 8601


@dataclass(frozen=True)
class Origin:
    """The source of a folder of files; stored in the receipt of a model made from them."""

    source: str  # "openai" or "hf"
    address: str  # of the folder there
    revision: str  # the hub's commit; "" for OpenAI's files


@dataclass(frozen=True)
class Provenance:
    """The record of a folder of downloaded files; `names` are all that belong to it, also missing ones."""

    origin: Origin
    command: str  # that fetches what is missing
    names: list[str]
    files: dict[str, Record]


def read(folder: Path) -> Provenance | None:
    """The folder's record, or None. Raises InputError for a file that this program did not write,
    NewerFormatError for a later version's.
    """
    from pydantic import TypeAdapter, ValidationError

    path = folder / NAME
    if not path.exists():
        return None
    values = read_json_object(path, f"rm {shlex.quote(str(path))}")
    require_format(path, values.pop("format", FORMAT), FORMAT)
    try:
        return TypeAdapter(Provenance).validate_json(json.dumps(values), strict=True)
    except ValidationError:
        raise _unreadable(path) from None


def write(folder: Path, provenance: Provenance) -> None:
    files.write_json(folder / NAME, {"format": FORMAT, **dataclasses.asdict(provenance)})


def origin_of(values: Any, path: Path) -> Origin:
    """An origin as stored in the JSON file `path`. Raises InputError if it is not one."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Origin).validate_python(values)
    except ValidationError:
        raise _unreadable(path) from None


def _unreadable(path: Path) -> InputError:
    fix = f"rm {shlex.quote(str(path))}"
    return InputError(f"{path}: cannot be read", "gpt2 did not write it; the next download does", fix)
