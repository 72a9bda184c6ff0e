"""The cache under GPT2_HOME: what can be fetched or made again, by kind and name, and its removal."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2cli import locks, paths
from gpt2cli.errors import UsageError
from gpt2cli.files import discard


@dataclass(frozen=True)
class CacheEntry:
    """A file or a folder of the cache. `name` is "prepared/dab778f9...", its path below GPT2_HOME."""

    name: str
    path: Path
    n_bytes: int
    changed: float  # seconds since 1970
    note: str  # what it was made of


# Each kind's folder, and how many folders deep an entry of it lies.
KINDS: dict[str, tuple[Callable[[], Path], int]] = {
    "downloads": (paths.downloads, 2),
    "corpora": (paths.corpora, 1),
    "prepared": (paths.prepared, 1),
    "compiled": (paths.compiled, 1),
    "logs": (paths.logs, 1),
}


def is_cache_name(name: str) -> bool:
    return name.partition("/")[0] in KINDS and "/" in name


def find_cached() -> list[CacheEntry]:
    """All entries, kind by kind. Raises ResourceError without a home."""
    return [entry for kind in KINDS for entry in _entries_of(kind)]


def find_in_cache(name: str) -> CacheEntry:
    """The entry of this name. Raises UsageError if there is none."""
    for entry in find_cached():
        if entry.name == name:
            return entry
    raise UsageError(f"{name}: there is no such thing in the cache", "", "gpt2 runs --cache")


def remove_cached(entry: CacheEntry) -> None:
    """Raises ResourceError while another process makes it."""
    if not entry.path.is_dir() or entry.path.is_symlink():
        entry.path.unlink()
        return
    with locks.lock(entry.path):
        discard(entry.path)


def _entries_of(kind: str) -> Iterator[CacheEntry]:
    folder, depth = KINDS[kind][0](), KINDS[kind][1]
    for path in sorted(folder.glob("/".join("*" * depth))) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        name = "/".join(path.parts[-depth:])
        yield CacheEntry(f"{kind}/{name}", path, _bytes_of(path), path.lstat().st_mtime, _note(kind, path))


def _bytes_of(path: Path) -> int:
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(_bytes_of(Path(one.path)) for one in os.scandir(path))


def _note(kind: str, path: Path) -> str:
    """The text that a prepared folder was made of."""
    if kind != "prepared":
        return ""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        names = [os.path.basename(str(source["path"])) for source in manifest["sources"]]
    except (OSError, ValueError, LookupError, TypeError):
        return "unfinished"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more" if names else ""
