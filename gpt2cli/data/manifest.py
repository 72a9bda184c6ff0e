"""The two records of a prepared folder: manifest.json, which makes it valid, and journal.json, which
says how far an interrupted `prepare` came.

Both describe the content only, without times, so that the same text and settings give the same bytes.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2cli import files
from gpt2cli.errors import InputError
from gpt2cli.json_files import read_json_object

FORMAT = "gpt2cli tokens"
VERSION = 1
MANIFEST = "manifest.json"
JOURNAL = "journal.json"
AGAIN = "prepare the text again with --force"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
SPLITS = ("train", "validation")
DTYPES = {"uint16": 2, "uint32": 4}  # bytes per token; little-endian in the shards


class StaleError(InputError):
    """The folder holds tokens, finished or not, of other text or other settings."""

    def __init__(self, what: str, why: str = "the tokens in the folder were made from other text") -> None:
        super().__init__(what, why, "give another --out, or replace the tokens with --force")


@dataclass(frozen=True)
class PrepareSettings:
    """What the user chose. `tokenizer` is "gpt2", "chars" or a folder's "bpe"."""

    tokenizer: str
    text_fields: tuple[str, ...]
    validation: float
    seed: int = 1337
    shard_tokens: int = 100_000_000


@dataclass(frozen=True)
class SourceRecord:
    """A source as it was read; `bytes` and `sha256` are those of the file, compressed or not."""

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
class TokenManifest:
    """`n_bytes` is the text's size as UTF-8; `n_tokens` counts the end-of-text after each document."""

    settings: PrepareSettings
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
class ReadPosition:
    """How far reading had come after `n_chunks` chunks, and the counts so far.

    `n_sources` sources are finished; of the next one, `n_read` bytes are read, with this digest.
    """

    n_chunks: int = 0
    n_sources: int = 0
    n_read: int = 0
    digest: str = ""
    n_documents: int = 0
    n_validation_documents: int = 0
    n_bytes: int = 0
    n_forced_cuts: int = 0


@dataclass(frozen=True)
class WriterState:
    """How far the shards of one split are written: the finished ones, and the tokens in the open one."""

    finished: tuple[Shard, ...] = ()
    n_open: int = 0


@dataclass(frozen=True)
class Journal:
    """An unfinished preparation. Once `tail_moved`, validation holds a copy of the tail of training;
    `train` and `validation` then say what to keep, and the rest is truncated.
    """

    settings: PrepareSettings
    fingerprint: str
    position: ReadPosition = ReadPosition()
    sources: tuple[SourceRecord, ...] = ()
    train: WriterState = WriterState()
    validation: WriterState = WriterState()
    tail_moved: bool = False


def write_journal(folder: Path, journal: Journal) -> None:
    files.write_json(folder / JOURNAL, {"format": FORMAT, "version": VERSION, **asdict(journal)})


def read_journal(folder: Path) -> Journal | None:
    """The journal, or None without one or before its first chunk. Raises InputError for a damaged one."""
    path = folder / JOURNAL
    if not path.is_file():
        return None
    record = read_json_object(path, AGAIN)
    _check_version(record, path)
    try:
        journal = Journal(
            settings=settings_from_json(record["settings"]),
            fingerprint=record["fingerprint"],
            position=ReadPosition(**record["position"]),
            sources=tuple(SourceRecord(**source) for source in record["sources"]),
            train=_writer_state(record["train"]),
            validation=_writer_state(record["validation"]),
            tail_moved=record["tail_moved"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_error(path, f"{type(error).__name__}: {error}") from None
    return journal if journal.position.n_chunks else None


def write_manifest(folder: Path, manifest: TokenManifest) -> None:
    files.write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, **asdict(manifest)})


def read_manifest(folder: Path) -> TokenManifest:
    """Raises InputError if the folder is not prepared, or its manifest is damaged."""
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
    record = read_json_object(path, AGAIN)
    _check_version(record, path)
    try:
        return TokenManifest(
            **{
                **record,
                "settings": settings_from_json(record["settings"]),
                "tokenizer_files": tuple(record["tokenizer_files"]),
                "sources": tuple(SourceRecord(**source) for source in record["sources"]),
                **{split: tuple(_shard(shard) for shard in record[split]) for split in SPLITS},
                "dtype": {name: name for name in DTYPES}[record["dtype"]],
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_error(path, f"{type(error).__name__}: {error}") from None


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


def settings_from_json(record: dict[str, Any]) -> PrepareSettings:
    return PrepareSettings(**{**record, "text_fields": tuple(record["text_fields"])})


def damaged_error(path: Path, why: str) -> InputError:
    return InputError(f"{path}: damaged", why, AGAIN)


def _check_version(record: dict[str, Any], path: Path) -> None:
    found = (record.pop("format", None), record.pop("version", None))
    if found != (FORMAT, VERSION):
        raise InputError(
            f"{path}: {found[0]!r} in version {found[1]}, not {FORMAT!r} in version {VERSION}",
            "another program or another version of gpt2cli wrote it",
            "prepare the text into another folder: --out FOLDER",
        )


def _writer_state(record: dict[str, Any]) -> WriterState:
    return WriterState(tuple(_shard(shard) for shard in record["finished"]), record["n_open"])


def _shard(record: dict[str, Any]) -> Shard:
    shard = Shard(str(record["file"]), int(record["n_tokens"]), str(record["sha256"]))
    if Path(shard.file).name != shard.file or shard.n_tokens < 1:
        raise ValueError(f"not a shard of a prepared folder: {record}")
    return shard
