"""The input files of a command: arguments become an ordered list of sources, each with its kind.

Arguments are files, globs (also quoted ones), directories of .txt and .md files, and "-" for
standard input. `text_reader.py` reads the content.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2cli.data.records import kind_by_name
from gpt2cli.errors import InputError, UsageError

Kind = Literal["text", "jsonl", "parquet"]
STDIN = "-"
IN_DIRECTORIES = (".txt", ".md", ".txt.gz", ".md.gz")


@dataclass(frozen=True)
class TextSource:
    """One source of text. `path` is None for standard input."""

    name: str
    path: Path | None
    kind: Kind
    gzipped: bool


def expand_sources(
    arguments: Sequence[str | Path], *, out: Path, stdin_is_jsonl: bool = False
) -> list[TextSource]:
    """The sources that `arguments` name, in the given order; sorted within a glob or directory.

    Skips files under `out`, whose own merges.txt would match.
    Raises InputError if nothing matches, UsageError for a file that is named twice.
    """
    if not arguments:
        raise UsageError("no source given", fix="gpt2 prepare TEXT.txt --out FOLDER")
    sources: list[TextSource] = []
    seen: dict[str, str] = {}
    for argument in map(str, arguments):
        for source in _named_by(argument, out, stdin_is_jsonl):
            key = os.path.realpath(source.path) if source.path else STDIN
            if key in seen:
                raise UsageError(
                    f"{source.name}: named twice, by {seen[key]} and by {argument}",
                    "the same text in training and validation would falsify the validation loss",
                    "name it once",
                )
            seen[key] = argument
            sources.append(source)
    return sources


def total_bytes(sources: Iterable[TextSource]) -> int | None:
    """The size of all sources on disk, or None if standard input is one of them."""
    paths = [source.path for source in sources]
    # A missing file counts as 0 here: opening it raises.
    known = [path.stat().st_size if path.is_file() else 0 for path in paths if path is not None]
    return sum(known) if len(known) == len(paths) else None


def _named_by(argument: str, out: Path, stdin_is_jsonl: bool) -> Iterator[TextSource]:
    if argument == STDIN:
        yield TextSource("standard input", None, "jsonl" if stdin_is_jsonl else "text", False)
        return
    path = Path(argument).expanduser()
    if path.is_dir():
        yield from map(_source, _in_directory(path, out))
    elif os.path.lexists(path) or not glob.has_magic(argument):
        yield _source(path)  # if the file is missing, opening it raises
    else:
        # Not Path.glob, which has no absolute patterns.
        matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
        found = [match for match in matches if not match.is_dir() and not _under(str(match), out)]
        if not found:
            raise InputError(f"{argument}: no file matches", fix="correct the pattern")
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
            f"{folder}: no text files in this directory",
            "only .txt and .md files (also .gz) are read, in subdirectories too",
            f"for other kinds name the files: gpt2 prepare '{folder}/*.jsonl' --out FOLDER",
        )
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _under(path: str, folder: Path) -> bool:
    real, top = os.path.realpath(path), os.path.realpath(folder)
    return real == top or real.startswith(top + os.sep)


def _source(path: Path) -> TextSource:
    gzipped, named = path.suffix.lower() == ".gz", kind_by_name(path)
    kind: Kind = "jsonl" if named == "jsonl" else "parquet" if named == "parquet" else "text"
    if gzipped and kind == "parquet":
        raise InputError(f"{path}: a gzipped parquet file", "parquet needs random access", f"gunzip {path}")
    return TextSource(str(path), path, kind, gzipped)
