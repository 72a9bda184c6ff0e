"""Owns which files a person means: arguments -> an ordered list of sources, each with its kind.

Files, globs (also quoted ones that no shell expanded), directories of .txt and .md, and "-" for
standard input. What is inside the files is read in `pieces.py`.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2cli.errors import InputError, UsageError

Kind = Literal["text", "jsonl", "parquet"]
STDIN = "-"
IN_DIRECTORIES = (".txt", ".md", ".txt.gz", ".md.gz")
KIND_OF_SUFFIX: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class Source:
    """One place text comes from. `path` is None for standard input."""

    name: str
    path: Path | None
    kind: Kind
    gzipped: bool


def expand(arguments: Sequence[str | Path], *, out: Path, stdin_is_jsonl: bool = False) -> list[Source]:
    """The sources that `arguments` name, in the order given; inside a glob or directory, sorted.

    Nothing under `out` is a source: the folder being written holds a merges.txt of its own.
    Raises InputError where nothing is found, UsageError for a file that is named twice.
    """
    if not arguments:
        raise UsageError(
            "no source given", "there is nothing to prepare", "gpt2 prepare TEXT.txt --out FOLDER"
        )
    sources: list[Source] = []
    seen: dict[str, str] = {}
    for argument in map(str, arguments):
        for source in _named_by(argument, out, stdin_is_jsonl):
            key = os.path.realpath(source.path) if source.path else STDIN
            if key in seen:
                raise UsageError(
                    f"{source.name}: named twice, by {seen[key]} and by {argument}",
                    "the same text in training and in validation would make the validation loss a lie",
                    "name it once",
                )
            seen[key] = argument
            sources.append(source)
    return sources


def total_bytes(sources: Iterable[Source]) -> int | None:
    """Size of all sources on disk, or None where standard input is one of them."""
    paths = [source.path for source in sources]
    # A missing file counts as nothing here; whoever opens it says so.
    known = [path.stat().st_size if path.is_file() else 0 for path in paths if path is not None]
    return sum(known) if len(known) == len(paths) else None


def _named_by(argument: str, out: Path, stdin_is_jsonl: bool) -> Iterator[Source]:
    if argument == STDIN:
        yield Source("standard input", None, "jsonl" if stdin_is_jsonl else "text", False)
        return
    path = Path(argument).expanduser()
    if path.is_dir():
        yield from map(_source, _in_directory(path, out))
    elif os.path.lexists(path) or not glob.has_magic(argument):
        yield _source(path)  # a missing file is reported by whoever opens it
    else:
        # Not Path.glob, which has no absolute patterns.
        matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
        found = [match for match in matches if not match.is_dir() and not _under(str(match), out)]
        if not found:
            raise InputError(f"{argument}: no file matches", fix="ls, and correct the pattern")
        yield from map(_source, found)


def _in_directory(folder: Path, out: Path) -> list[Path]:
    # os.walk does not follow links to directories, so a loop of them cannot trap it.
    found = [
        Path(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IN_DIRECTORIES) and not _under(root, out)
    ]
    if not found:
        raise InputError(
            f"{folder}: no text in this directory",
            "of a directory, .txt and .md files (also .gz) are read, and those of its directories",
            f"gpt2 prepare '{folder}/*.jsonl' --out FOLDER, for other kinds",
        )
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _under(path: str, folder: Path) -> bool:
    real, top = os.path.realpath(path), os.path.realpath(folder)
    return real == top or real.startswith(top + os.sep)


def _source(path: Path) -> Source:
    gzipped = path.suffix.lower() == ".gz"
    inner = Path(path.stem) if gzipped else path
    kind = KIND_OF_SUFFIX.get(inner.suffix.lower(), "text")
    if gzipped and kind == "parquet":
        raise InputError(f"{path}: a gzipped parquet file", "parquet is read at random", f"gunzip {path}")
    return Source(str(path), path, kind, gzipped)
