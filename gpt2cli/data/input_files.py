"""The input files of a command: arguments become an ordered list of sources, each with its kind.

Arguments are files, globs (also quoted ones), directories of .txt and .md files, and "-" for
standard input. `text_reader.py` and `record_files.py` read the content.
"""

import glob
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gpt2cli import files
from gpt2cli.data.file_kinds import HEAD, PACKINGS, Kind, Packing, is_text, kind_by_name, packing_of
from gpt2cli.data.manifest import is_prepared, read_manifest, was_made_by_prepare
from gpt2cli.encodings import UNPACK
from gpt2cli.errors import InputError, UsageError
from gpt2cli.paths import expand

SourceKind = Kind | Literal["text", "records", "nanogpt"]  # records: the content tells of which kind
STDIN, STDIN_NAME = "-", "standard input"
IN_DIRECTORIES = tuple(f"{text}{packed}" for text in (".txt", ".md") for packed in ("", *PACKINGS))
NANOGPT = ("train.bin", "val.bin")


@dataclass(frozen=True)
class TextSource:
    """One source of text, `held_out` for validation or not. `path` is None for standard input."""

    name: str
    path: Path | None
    kind: SourceKind
    packing: Packing = ""
    held_out: bool = False


def expand_sources(
    arguments: Sequence[str | Path],
    *,
    out: Path,
    held_out: Sequence[str | Path] = (),
    stdin_is_records: bool = False,
) -> list[TextSource]:
    """The sources that `arguments` and then `held_out` name, in the given order; sorted within a glob
    or directory.

    Skips files under `out`, whose own merges.txt would match.
    Raises InputError if nothing matches, UsageError for a file that is named twice.
    """
    if not arguments:
        raise UsageError("no source given", fix="gpt2 prepare TEXT.txt --out FOLDER")
    sources: list[TextSource] = []
    seen: dict[str, str] = {}
    for argument, is_held_out in [(str(a), False) for a in arguments] + [(str(a), True) for a in held_out]:
        for source in _named_by(argument, out, stdin_is_records):
            key = os.path.realpath(source.path) if source.path else STDIN
            if key in seen:
                raise UsageError(
                    f"{source.name}: named twice, by {seen[key]} and by {argument}",
                    "the same text in training and validation would falsify the validation loss",
                    f"move it out of {seen[key]}" if Path(seen[key]).is_dir() else "name it once",
                )
            seen[key] = argument
            sources.append(replace(source, held_out=is_held_out))
    return sources


def total_bytes(sources: Iterable[TextSource]) -> int | None:
    """The size of all sources on disk, or None if standard input is one of them."""
    paths = [source.path for source in sources]
    # A missing file counts as 0 here: opening it raises.
    known = [path.stat().st_size if path.is_file() else 0 for path in paths if path is not None]
    return sum(known) if len(known) == len(paths) else None


def record_sources(arguments: Sequence[str | Path]) -> list[TextSource]:
    """The files of records that arguments name: files, globs, and folders of files with records.

    Raises InputError if nothing matches, UsageError for a file that is named twice.
    """
    sources: dict[str, TextSource] = {}
    for argument in map(str, arguments):
        path = expand(argument)
        paths = _globbed(argument, path)
        if path.is_dir():
            paths = sorted(file for file in path.rglob("*") if kind_by_name(file) and file.is_file())
        if not paths:
            what = "no files of records in this directory" if path.is_dir() else "no file matches"
            fix = (
                "name a .csv, .tsv, .jsonl, .json or .parquet file"
                if path.is_dir()
                else "correct the pattern"
            )
            raise InputError(f"{argument}: {what}", fix=fix)
        for file in paths:
            if (key := os.path.realpath(file)) in sources:
                raise UsageError(f"{file}: named twice", "its records would count twice", "name it once")
            sources[key] = record_source(file)
    return list(sources.values())


def record_source(path: Path) -> TextSource:
    """A file of records."""
    return TextSource(str(path), path, _kind(path) or "records", packing_of(path))


def _globbed(argument: str, path: Path) -> list[Path]:
    """A file as it is, or what a pattern matches."""
    if os.path.lexists(path) or not glob.has_magic(argument):
        return [path]  # if the file is missing, opening it raises
    # Not Path.glob, which has no absolute patterns.
    return [match for match in map(Path, sorted(glob.glob(str(path), recursive=True))) if not match.is_dir()]


def _named_by(argument: str, out: Path, stdin_is_records: bool) -> Iterator[TextSource]:
    if argument == STDIN:
        if sys.stdin is None:
            raise UsageError("-: standard input is closed", fix="name a file instead of -")
        yield TextSource(STDIN_NAME, None, "records" if stdin_is_records else "text")
        return
    path = expand(argument)
    if path.is_dir():
        yield from map(_source, _in_directory(path, out))
    else:
        found = _globbed(argument, path)
        if found != [path]:
            found = [match for match in found if not _under(str(match), out)]
        if not found:
            raise InputError(f"{argument}: no file matches", fix="correct the pattern")
        yield from map(_source, found)


def _in_directory(folder: Path, out: Path) -> list[Path]:
    if is_prepared(folder):
        text = shlex.join(read_manifest(folder).arguments) or "TEXT.txt"
        fix = f"give the text that it was made from: {text}"
        raise InputError(f"{folder}: is a prepared folder", "it holds tokens, not text", fix)
    if was_made_by_prepare(folder):
        read_manifest(folder)  # interrupted or damaged: raises with what to do
    if is_nanogpt(folder) or any(map(_is_tokens, (folder / name for name in NANOGPT))):
        raise _nanogpt(folder)
    # os.walk does not follow links to directories, so a loop of them cannot trap it.
    found = [
        Path(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IN_DIRECTORIES)
        and not _under(root, out)
        and not (name == "merges.txt" and "vocab.json" in names)  # a tokenizer, not text
    ]
    if not found:
        pattern = _likely_pattern(folder)
        raise InputError(
            f"{folder}: no text files in this directory",
            "only .txt and .md files (also .gz, .bz2 and .zst) are read, in subdirectories too",
            f"name the files: {shlex.quote(pattern)}" if pattern else "name another directory, or files",
        )
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _likely_pattern(folder: Path) -> str:
    """The pattern of the kind of file that is the most frequent in a folder and can be read, or ""."""
    kinds: dict[str, list[Path]] = {}
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # as glob
        for path in (Path(root, name) for name in sorted(names) if not name.startswith(".")):
            packed = bool(packing_of(path))
            kinds.setdefault("".join(path.suffixes[-2:] if packed else path.suffixes[-1:]), []).append(path)
    for suffix, paths in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
        if suffix and _is_readable(paths[0]):
            deep = any(path.parent != folder for path in paths)
            return f"{glob.escape(str(folder))}/{'**/' if deep else ''}*{suffix}"
    return ""


def _is_readable(path: Path) -> bool:
    """Whether a file looks like text, or like records with fields."""
    if _kind(path):
        return True
    try:
        with files.open_regular(path) as file:
            return not packing_of(path) and is_text(file.read(HEAD))
    except InputError:
        return False


def is_nanogpt(folder: Path) -> bool:
    """Whether a folder holds the token files of nanoGPT."""
    return all((folder / name).is_file() for name in NANOGPT)


def _is_tokens(path: Path) -> bool:
    return path.is_file() and not _is_readable(path)


def _nanogpt(path: Path) -> InputError:
    folder = path if path.is_dir() else path.parent
    missing = [name for name in NANOGPT if not (folder / name).is_file()]
    holds = " and ".join(name for name in NANOGPT if name not in missing)
    command = [
        "gpt2",
        "prepare",
        str(folder),
        "--out",
        str(folder.with_name(f"{folder.name or 'nano'}-prepared")),
    ]
    return InputError(
        f"{path}: holds nanoGPT's tokens, {holds}"
        if path.is_dir()
        else f"{path}: is one of nanoGPT's token files, {' and '.join(NANOGPT)}",
        "they are imported together, from their folder",
        shlex.join(command) if is_nanogpt(folder) else f"put {' and '.join(missing)} there, too",
    )


def _under(path: str, folder: Path) -> bool:
    real, top = os.path.realpath(path), os.path.realpath(folder)
    return real == top or real.startswith(top + os.sep)


def _source(path: Path) -> TextSource:
    if path.name in NANOGPT and path.is_file():
        raise _nanogpt(path)
    kind = _kind(path) or "text"
    return TextSource(str(path), path, kind, packing_of(path))


def _kind(path: Path) -> Kind | None:
    """The kind that the name tells. Raises InputError for packed parquet."""
    kind, packing = kind_by_name(path), packing_of(path)
    if packing and kind == "parquet":
        plain = shlex.quote(str(path.with_suffix("")))
        raise InputError(
            f"{path}: a {'gzipped' if packing == 'gz' else 'packed'} parquet file",
            "parquet needs random access",
            " ".join([UNPACK[path.suffix.lower()], shlex.quote(str(path)), ">", plain]),
        )
    return kind
