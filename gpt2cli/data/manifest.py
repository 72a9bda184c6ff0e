"""Owns the two records of a prepared folder: manifest.json, which makes it valid, and journal.json,
which says how far an interrupted `prepare` came. Both hold facts about the content only, no
times, so that the same text and settings give the same bytes.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2cli import files
from gpt2cli.errors import InputError

FORMAT = "gpt2cli tokens"
VERSION = 1
MANIFEST = "manifest.json"
JOURNAL = "journal.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
SPLITS = ("train", "validation")
DTYPES = {"uint16": 2, "uint32": 4}  # bytes a token; little-endian in the files


class StaleError(InputError):
    """What is in the folder is not the work, or the beginning of it, that is asked for."""

    def __init__(self, what: str, why: str = "the tokens that are there were made from other text") -> None:
        super().__init__(what, why, "give another --out, or replace what is there with --force")


@dataclass(frozen=True)
class Settings:
    """What the person chose. `tokenizer` is "gpt2", "chars" or a folder's "bpe"."""

    tokenizer: str
    text_fields: tuple[str, ...]
    validation: float
    seed: int = 1337
    shard_tokens: int = 100_000_000


@dataclass(frozen=True)
class SourceRecord:
    """A source as it was read: `bytes` and `sha256` are those of the file, unpacked or not."""

    path: str
    kind: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    file: str
    n_tokens: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`n_bytes` is the text's size as UTF-8; `n_tokens` counts the end-of-text after each document."""

    settings: Settings
    fingerprint: str
    n_vocab: int
    dtype: str
    tokenizer_files: tuple[str, ...]
    n_documents: int
    n_validation_documents: int
    n_bytes: int
    n_forced_cuts: int
    split: str
    sources: tuple[SourceRecord, ...]
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]

    @property
    def n_tokens(self) -> int:
        return sum(shard.n_tokens for shard in self.train + self.validation)


@dataclass(frozen=True)
class Mark:
    """Where the reading stood after `n_tasks` tasks, and what it had counted.

    `n_sources` were read to their end; of the next one `n_read` bytes, with this digest.
    """

    n_tasks: int = 0
    n_sources: int = 0
    n_read: int = 0
    digest: str = ""
    n_documents: int = 0
    n_validation_documents: int = 0
    n_bytes: int = 0
    n_forced_cuts: int = 0


@dataclass(frozen=True)
class WriterState:
    """How far the files of one split are written: the finished ones, and the length of the open one."""

    finished: tuple[Shard, ...] = ()
    n_open: int = 0


@dataclass(frozen=True)
class Journal:
    """An unfinished preparation. `tail_moved` is true once the tail of training lies in validation
    as well; then `train` and `validation` say what to keep, and the rest is cut off.
    """

    settings: Settings
    fingerprint: str
    mark: Mark = Mark()
    sources: tuple[SourceRecord, ...] = ()
    train: WriterState = WriterState()
    validation: WriterState = WriterState()
    tail_moved: bool = False


def write_journal(folder: Path, journal: Journal) -> None:
    files.write_json(folder / JOURNAL, {"format": FORMAT, "version": VERSION, **asdict(journal)})


def read_journal(folder: Path) -> Journal | None:
    """None where there is none, or where nothing was done yet. Raises InputError for a damaged one."""
    path = folder / JOURNAL
    if not path.is_file():
        return None
    record = read_record(path)
    _check_version(record, path)
    try:
        journal = Journal(
            settings=settings_of(record["settings"]),
            fingerprint=record["fingerprint"],
            mark=Mark(**record["mark"]),
            sources=tuple(SourceRecord(**source) for source in record["sources"]),
            train=_writer_state(record["train"]),
            validation=_writer_state(record["validation"]),
            tail_moved=record["tail_moved"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from None
    return journal if journal.mark.n_tasks else None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    files.write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, **asdict(manifest)})


def read_manifest(folder: Path) -> Manifest:
    """Raises InputError where the folder is not prepared, or its manifest is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = (folder / JOURNAL).is_file()
        raise InputError(
            f"{folder}: {'its preparation was interrupted' if unfinished else 'is not a prepared folder'}",
            f"there is no {MANIFEST} in it",
            "run the same `gpt2 prepare` again: it continues"
            if unfinished
            else f"gpt2 prepare TEXT.txt --out {folder}",
        )
    record = read_record(path)
    _check_version(record, path)
    try:
        return Manifest(
            **{
                **record,
                "settings": settings_of(record["settings"]),
                "tokenizer_files": tuple(record["tokenizer_files"]),
                "sources": tuple(SourceRecord(**source) for source in record["sources"]),
                **{split: tuple(_shard(shard) for shard in record[split]) for split in SPLITS},
                "dtype": {name: name for name in DTYPES}[record["dtype"]],
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from None


def is_prepared(folder: Path) -> bool:
    """Whether a manifest of ours is there. A model folder has a manifest.json of another format."""
    try:
        return read_record(folder / MANIFEST).get("format") == FORMAT
    except InputError:
        return False


def is_ours(folder: Path) -> bool:
    """Whether `prepare` made what is in the folder, finished or not, damaged or not."""
    for name in (JOURNAL, MANIFEST):
        if (folder / name).is_file():
            try:
                return read_record(folder / name).get("format") == FORMAT
            except InputError:
                return (folder / "train-00000.bin").is_file()
    return False


def discard(folder: Path, keep: str = "") -> None:
    """Delete all that `prepare` ever writes into a folder, but not the file called `keep`.

    The journal goes last: as long as anything of ours is left, the folder is known to be ours.
    """
    for pattern in (MANIFEST, "train-*.bin", "validation-*.bin", *TOKENIZER_FILES, JOURNAL):
        for path in folder.glob(pattern):
            if path.name != keep:
                path.unlink()


def settings_of(record: dict[str, Any]) -> Settings:
    return Settings(**{**record, "text_fields": tuple(record["text_fields"])})


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError for anything else."""
    with files.open_regular(path) as file:
        data = file.read()
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if not isinstance(record, dict):
        raise damaged(path, "it is not a JSON object")
    return record


def damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: damaged", why, "prepare the text again with --force")


def _check_version(record: dict[str, Any], path: Path) -> None:
    found = (record.pop("format", None), record.pop("version", None))
    if found != (FORMAT, VERSION):
        raise InputError(
            f"{path}: {found[0]!r} in version {found[1]}, not {FORMAT!r} in version {VERSION}",
            "another program wrote it, or another version of this one",
            "prepare the text into another folder",
        )


def _writer_state(record: dict[str, Any]) -> WriterState:
    return WriterState(tuple(_shard(shard) for shard in record["finished"]), record["n_open"])


def _shard(record: dict[str, Any]) -> Shard:
    shard = Shard(str(record["file"]), int(record["n_tokens"]), str(record["sha256"]))
    if Path(shard.file).name != shard.file or shard.n_tokens < 1:
        raise ValueError(f"no shard of a prepared folder: {record}")
    return shard
