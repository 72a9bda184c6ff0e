"""The two records of a prepared folder: manifest.json, which makes it valid, and journal.json, which
records the progress of an interrupted `prepare`.

Both describe the content only, without times, so that the same text and settings give the same bytes.
"""

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from gpt2cli import files
from gpt2cli.data.bad_records import MAX_BAD
from gpt2cli.encodings import UTF8
from gpt2cli.errors import InputError, require_format
from gpt2cli.json_files import read_json_object
from gpt2cli.recipe.yaml_lines import dotted

FORMAT = "gpt2cli tokens"
VERSION = 2
READABLE = (1, 2)  # version 1 split by documents: its folders still open, but none is continued
MANIFEST = "manifest.json"
JOURNAL = "journal.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
Dtype = Literal["uint16", "uint32"]
DTYPES: dict[Dtype, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
Record = TypeVar("Record", "Journal", "TokenManifest")


class StaleError(InputError):
    """The folder holds tokens, finished or not, of other text or other settings."""

    def __init__(self, what: str, why: str = "the tokens in the folder were made from other text") -> None:
        super().__init__(what, why, "give another --out, or replace the tokens with --force")


@dataclass(frozen=True)
class PrepareSettings:
    """The user's settings. `tokenizer` is "gpt2", "chars" or a folder's "bpe"."""

    tokenizer: str
    text_fields: tuple[str, ...]
    validation: float
    seed: int = 1337
    shard_tokens: int = 100_000_000
    encoding: str = UTF8
    max_bad: float = MAX_BAD
    split_on: str = ""  # a text between documents; "" splits nothing
    per_line: bool = False
    blank_line: bool = False


@dataclass(frozen=True)
class SourceRecord:
    """A source as it was read; `bytes` and `sha256` are those of the file, compressed or not."""

    path: str
    kind: str
    bytes: int
    sha256: str
    held_out: bool = False  # all of it is for validation


@dataclass(frozen=True)
class Shard:
    file: Annotated[str, Field(pattern=r"^(train|validation)-\d{5,}\.bin$")]
    n_tokens: Annotated[int, Field(ge=1)]
    sha256: str


@dataclass(frozen=True)
class TokenManifest:
    """`n_bytes` is the text's size as UTF-8; `n_tokens` counts the end-of-text after each document.

    `arguments` and `validation_arguments` name the sources as they were typed; `notes` are remarks on their
    text.
    """

    settings: PrepareSettings
    fingerprint: str
    n_vocab: int
    dtype: Dtype
    tokenizer_files: tuple[str, ...]
    n_documents: int
    n_bytes: int
    n_forced_cuts: int
    split: str
    sources: tuple[SourceRecord, ...]
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]
    arguments: tuple[str, ...] = ()
    validation_arguments: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def n_tokens(self) -> int:
        return sum(shard.n_tokens for shard in self.train + self.validation)

    @property
    def n_validation_tokens(self) -> int:
        return sum(shard.n_tokens for shard in self.validation)


@dataclass(frozen=True)
class ReadPosition:
    """The read position after `n_chunks` chunks, and the counts so far.

    `n_sources` sources are finished; of the next one, `n_read` bytes are read, with this digest.
    """

    n_chunks: int = 0
    n_sources: int = 0
    n_read: int = 0
    digest: str = ""
    n_documents: int = 0
    n_bytes: int = 0
    n_forced_cuts: int = 0
    n_line_ends: int = 0  # CRLF read as LF


@dataclass(frozen=True)
class WriterState:
    """The shards of one split so far: the finished ones, and the tokens in the open one."""

    finished: tuple[Shard, ...] = ()
    n_open: int = 0


@dataclass(frozen=True)
class Journal:
    """An unfinished preparation: the shards on disk, and the read position at that point."""

    settings: PrepareSettings
    fingerprint: str
    position: ReadPosition = ReadPosition()
    sources: tuple[SourceRecord, ...] = ()
    train: WriterState = WriterState()
    validation: WriterState = WriterState()


def write_journal(folder: Path, journal: Journal) -> None:
    _write(folder / JOURNAL, journal)


def read_journal(folder: Path) -> Journal | None:
    """The journal, or None without one or before its first chunk. Raises InputError for a damaged one."""
    path = folder / JOURNAL
    journal = _read(path, Journal, (VERSION,)) if path.is_file() else None
    return journal if journal and journal.position.n_chunks else None


def write_manifest(folder: Path, manifest: TokenManifest) -> None:
    _write(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> TokenManifest:
    """Raises InputError if the folder is not prepared, or its manifest is damaged, NewerFormatError for
    a later version's.
    """
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = (folder / JOURNAL).is_file()
        raise InputError(
            f"{folder}: {'its preparation was interrupted' if unfinished else 'is not a prepared folder'}",
            f"there is no {MANIFEST} in it",
            "run the same `gpt2 prepare` command again: it continues"
            if unfinished
            else f"gpt2 prepare TEXT.txt --out {folder}",
        )
    return _read(path, TokenManifest, READABLE)


def is_prepared(folder: Path) -> bool:
    """Whether the folder has our manifest. A model folder has a manifest.json of another format."""
    try:
        return read_json_object(folder / MANIFEST).get("format") == FORMAT
    except InputError:
        return False


def was_made_by_prepare(folder: Path) -> bool:
    """Whether `prepare` made the content of the folder, finished or not, damaged or not."""
    for name in (JOURNAL, MANIFEST):
        if (folder / name).is_file():
            try:
                return read_json_object(folder / name).get("format") == FORMAT
            except InputError:
                return (folder / "train-00000.bin").is_file()
    return False


def delete_prepared(folder: Path, keep: str = "") -> None:
    """Delete everything that `prepare` writes into a folder, except the file called `keep`.

    The journal goes last: while anything is left, it shows that the folder is ours.
    """
    for pattern in (MANIFEST, "train-*.bin", "validation-*.bin", *TOKENIZER_FILES, JOURNAL):
        for path in folder.glob(pattern):
            if path.name != keep:
                path.unlink()


def require_replaceable(folder: Path) -> None:
    """Raise NewerFormatError if a later version prepared the folder, finished or not: not even --force
    deletes that.
    """
    for name in (MANIFEST, JOURNAL):
        with contextlib.suppress(InputError):  # missing or damaged
            values = read_json_object(folder / name)
            if values.get("format") == FORMAT:
                require_format(folder / name, values.get("version"), VERSION)


def _again(folder: Path) -> str:
    return f"gpt2 prepare TEXT.txt --out {shlex.quote(str(folder))} --force"


def _write(path: Path, record: Journal | TokenManifest) -> None:
    files.write_json(path, {"format": FORMAT, "version": VERSION, **asdict(record)})


def _read(path: Path, kind: type[Record], versions: Sequence[int]) -> Record:
    values = read_json_object(path, _again(path.parent))
    found, version = values.pop("format", None), values.pop("version", None)
    if found != FORMAT:
        raise InputError(
            f"{path}: its format is {str(found)[:40]!r}, not {FORMAT!r}",
            "another program wrote it",
            "prepare the text into another folder: --out FOLDER",
        )
    require_format(path, version, max(versions), _again(path.parent))
    if version not in versions:
        raise InputError(
            f"{path}: version {version} cannot be continued", "an older gpt2cli wrote it", _again(path.parent)
        )
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(
            f"{path}: damaged", f"{dotted(problem['loc'])}: {problem['msg']}", _again(path.parent)
        ) from None
