"""Owns what is known of downloads that are here: where they lie, whether all came, whether they are right.

And which of them a model was made of, as its receipt says. Nothing here uses the network;
`fetching.py` does.
"""

import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from gpt2cli import paths
from gpt2cli.checkpoints import provenance
from gpt2cli.checkpoints.provenance import PUBLISHED, Origin
from gpt2cli.convert.hf_config import read_table
from gpt2cli.errors import InputError
from gpt2cli.hub import hf_hub
from gpt2cli.hub.collecting import compare
from gpt2cli.hub.hf_hub import Listing
from gpt2cli.hub.registry import SIZES, Expected, Size, hub_files, openai_files

OPENAI, HUB = SOURCES = ("openai", "hf")
REFUSED = ".refused"  # the end of the name of a file that turned out to be damaged
MAIN = "main"
RECEIPT = "conversion.json"  # as in folder.py, which costs an import of torch; a test compares


@dataclass(frozen=True)
class Verified:
    """A file that is what it was, and who says so."""

    path: Path
    sha256: str
    by: str


@dataclass(frozen=True)
class _Download:
    """A folder of files as they came. `revision` is what fetches it; None is the usual one. `asked` has
    every revision that it is known to be."""

    folder: Path
    source: str
    published: Mapping[str, Expected]
    missing: tuple[str, ...]
    revision: str | None = None
    asked: tuple[str, ...] = ()


def openai_folder(size: Size) -> Path:
    return paths.downloads() / OPENAI / size.name


def hub_folder(repository: str) -> Path:
    """The folder of a repository's commits, a folder each."""
    return paths.downloads() / "hub" / repository.replace("/", "--")


def listing_path(repository: str, revision: str) -> Path:
    """Where the hub's list of files at a revision is kept."""
    return hub_folder(repository) / f"list-{quote(revision, safe='')}.json"


def default_revision(repository: str, base_url: str | None) -> str:
    """The commit whose hashes are published, which a mirror need not have; else the newest."""
    known = next((size.revision for size in SIZES.values() if size.repository == repository), None)
    return (None if base_url else known) or MAIN


def model_name(name: str, revision: str | None) -> str:
    """What a model is called that was made of a revision: two revisions are two models."""
    return name if revision is None else f"{name}@{revision}"


def command(
    name: str,
    source: str | None = None,
    base_url: str | None = None,
    revision: str | None = None,
    *,
    force: bool = True,
) -> str:
    """What to type to fetch a model, anew or as far as it is missing; `name` is a size or a repository."""
    size = next((size.name for size in SIZES.values() if size.repository == name), name)
    words = ["gpt2", "download", size]
    # Only a size has two sources, and a revision says which.
    words += ["--source", source] if source and size in SIZES and revision is None else []
    words += ["--revision", revision] if revision is not None else []
    words += ["--base-url", base_url] if base_url else []
    return shlex.join([*words, *(["--force"] if force else [])])


def is_here(size: Size) -> bool:
    """Whether a size's files are here, from either source; they are not read."""
    return any(not download.missing for download in _downloads(size, size.repository))


def is_begun(size: Size) -> bool:
    """Whether some of a size's files are here, and from no source all."""
    return bool(_downloads(size, size.repository)) and not is_here(size)


def origin_of(model: Path) -> Origin | None:
    """Where the files came from of which a model was made; None for one that was not downloaded."""
    known = _made_from(model).get("made_from")
    values = known.get("hashes") if isinstance(known, dict) else None
    origin = values.get("origin") if isinstance(values, dict) else None
    return provenance.origin_of(origin, model / RECEIPT) if origin is not None else None


def is_made_of(model: Path, files: Mapping[str, str]) -> bool:
    """Whether a model was made of just these files: {name: SHA-256}."""
    read = _made_from(model).get("files")
    if not isinstance(read, dict) or not read:
        return False
    return all(isinstance(it, dict) and it.get("sha256") == files.get(name, "") for name, it in read.items())


def _made_from(model: Path) -> dict[str, Any]:
    """What a model's receipt says about its source; empty where there is no receipt."""
    if not (model / RECEIPT).is_file():
        return {}
    source = read_table(model / RECEIPT).get("source")
    return source if isinstance(source, dict) else {}


def discard(folder: Path) -> list[str]:
    """Refuse the files that nobody vouches for: they turned out to be damaged. Returns their names.

    Their hashes are forgotten, and they get another name, so that the next download fetches them.
    """
    names = [name for name, record in provenance.read(folder).items() if record.by != PUBLISHED]
    for name in names:
        with suppress(FileNotFoundError):
            os.replace(folder / name, folder / f"{name}{REFUSED}")
    if names:
        provenance.forget(folder, names)
    return names


def verify(name: str, revision: str | None = None, sources: Collection[str] = SOURCES) -> Iterator[Verified]:
    """Compare every file of a model with what it should be: what was downloaded, and what was made of it.

    Raises InputError for the first that differs, for a download of which something is missing (unless
    a model is here that was made of another), or where there is nothing.
    """
    size = SIZES.get(paths.canonical_size(name) or "")
    model = paths.model_path(model_name(name, revision))
    is_ready = paths.is_model(model)
    made_of = _made_from(model).get("path") if is_ready else None
    n_found = 0
    for download in _downloads(size, size.repository if size else name):
        if download.source not in sources or (revision is not None and revision not in download.asked):
            continue
        if download.missing and made_of in (None, str(download.folder.absolute())):
            raise InputError(
                f"{download.folder}: the download is not complete",
                f"missing: {', '.join(download.missing)}",
                _command(name, download, force=is_ready),
            )
        for found in _verify_downloaded(name, download):
            n_found += 1
            yield found
    if is_ready:
        from gpt2cli.checkpoints import folder as folders_of_ours

        folders_of_ours.verify(model)
        for file, sha256 in folders_of_ours.read_manifest(model).items():
            n_found += 1
            yield Verified(model / file, sha256, "manifest")
    if not n_found:
        raise InputError(
            f"{model_name(name, revision)}: nothing of it is here",
            f"looked in {paths.gpt2_home()}",
            command(name, revision=revision, force=False),
        )


def _verify_downloaded(name: str, download: _Download) -> Iterator[Verified]:
    for file, record in provenance.read(download.folder).items():
        path = download.folder / file
        if not path.is_file():
            raise InputError(f"{path}: is missing", "it was here once", _command(name, download))
        published = download.published.get(file, Expected())
        for by, expected in (PUBLISHED, published), (record.by, Expected(record.n_bytes, record.sha256)):
            sha256, problem = compare(path, expected)
            if problem:
                raise InputError(
                    f"{path}: is not the file it was", f"{by}: {problem}", _command(name, download)
                )
        yield Verified(path, sha256, record.by)


def _command(name: str, download: _Download, *, force: bool = True) -> str:
    return command(name, download.source, revision=download.revision, force=force)


def _downloads(size: Size | None, repository: str) -> list[_Download]:
    """What was begun or finished of a model, OpenAI's files first; a folder without files is nothing."""
    found = []
    if size and _has_files(folder := openai_folder(size)):
        files = openai_files(size)
        missing = tuple(name for name in files if not (folder / name).is_file())
        found.append(_Download(folder, OPENAI, files, missing))
    listings = _listings(repository)
    for folder in filter(_has_files, _folders_in(hub_folder(repository))):
        asked = [revision for revision, listing in listings.items() if listing.commit == folder.name]
        files = listings[asked[0]].files if asked else hub_files(repository, folder.name)
        is_usual = not asked or default_revision(repository, None) in asked or MAIN in asked
        revision = None if is_usual else asked[0]
        known = (*asked, unquote(folder.name))
        found.append(_Download(folder, HUB, files, _missing(folder, files), revision, known))
    return found


def _missing(commit: Path, listed: Collection[str]) -> tuple[str, ...]:
    """What a repository's folder lacks: of the hub's list, or without one of what a model needs at least."""
    missing = tuple(name for name in listed if not (commit / name).is_file())
    if missing:
        return missing
    try:
        hf_hub.needed(commit.name, {path.name for path in commit.iterdir() if path.is_file()})
    except InputError as error:
        return (error.why,)
    return ()


def _listings(repository: str) -> dict[str, Listing]:
    """{revision: the hub's list of its files}, as far as they are here and whole."""
    found = {}
    place = hub_folder(repository)
    for path in sorted(place.glob("list-*.json")) if place.is_dir() else ():
        with suppress(InputError):
            revision = unquote(path.name.removeprefix("list-").removesuffix(".json"))
            found[revision] = hf_hub.read_listing(path, repository)
    return found


def _folders_in(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
