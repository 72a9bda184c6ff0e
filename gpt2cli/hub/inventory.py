"""The inventory of downloads: a model's files on disk, whether they are intact, and what was made of them.

Nothing here uses the network.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli import paths
from gpt2cli.checkpoints import provenance
from gpt2cli.checkpoints.provenance import PUBLISHED, RECEIPT, RECEIPT_FORMAT, Origin, Provenance
from gpt2cli.errors import InputError, require_format
from gpt2cli.hub.downloads import (
    HUB,
    OPENAI,
    SOURCES,
    command,
    hub_folder,
    listing_path,
    model_name,
    openai_folder,
)
from gpt2cli.hub.hf_hub import CONFIG, read_listing
from gpt2cli.hub.registry import SIZES, Expected, Size, hub_files, openai_files
from gpt2cli.json_files import read_json_object

REFUSED = ".refused"  # the end of the name of a file that turned out to be damaged


@dataclass(frozen=True)
class Verified:
    """A verified file and the source of its hash."""

    path: Path
    sha256: str
    by: str


def is_here(size: Size) -> bool:
    """Whether a size's files are on disk, from either source; they are not read."""
    return any(not stored.missing for stored in _stored(size, size.repository))


def is_begun(size: Size) -> bool:
    """Whether some of a size's files are on disk, but no source is complete."""
    return bool(_stored(size, size.repository)) and not is_here(size)


def origin_of(model: Path) -> Origin | None:
    """Where a model's source files came from; None for a model that was not downloaded."""
    known = _made_from(model).get("made_from")
    record = known.get("hashes") if isinstance(known, dict) else None
    origin = record.get("origin") if isinstance(record, dict) else None
    return provenance.origin_of(origin, model / RECEIPT) if origin is not None else None


def is_made_of(model: Path, files: Mapping[str, str]) -> bool:
    """Whether a model was made of exactly these files: {name: SHA-256}."""
    read = _made_from(model).get("files")
    if not isinstance(read, dict) or not read:
        return False
    return all(isinstance(it, dict) and it.get("sha256") == files.get(name, "") for name, it in read.items())


def discard(folder: Path) -> list[str]:
    """Set aside the files of a folder without a published hash, after they turned out to be damaged.

    Renames them and drops their recorded hashes, so that the next download fetches them.
    Returns their names.
    """
    known = provenance.read(folder)
    names = [name for name, record in known.files.items() if record.by != PUBLISHED] if known else []
    for name in names:
        with suppress(FileNotFoundError):
            os.replace(folder / name, folder / f"{name}{REFUSED}")
    if known and names:
        kept = {name: record for name, record in known.files.items() if name not in names}
        provenance.write(folder, Provenance(known.origin, known.command, known.names, kept))
    return names


def verify(name: str, revision: str | None = None, sources: Collection[str] = SOURCES) -> Iterator[Verified]:
    """Check every file of a model against its hash: the downloaded files and the converted ones.

    Raises InputError for the first that differs, for an incomplete download (unless the model here was made
    from another one), and if there are no files.
    """
    size = SIZES.get(paths.canonical_size(name) or "")
    repository = size.repository if size else name
    model = paths.model_path(model_name(name, revision))
    is_ready = paths.is_model(model)
    made_of = _made_from(model).get("path") if is_ready else None
    n_found = 0
    for stored in _stored(size, repository):
        if stored.source not in sources or (revision and stored.folder.name != _commit(repository, revision)):
            continue
        if stored.missing and made_of in (None, str(stored.folder.absolute())):
            raise InputError(
                f"{stored.folder}: the download is not complete",
                f"missing: {', '.join(stored.missing)}",
                f"{stored.command} --force" if is_ready else stored.command,
            )
        for found in _verify_stored(stored):
            n_found += 1
            yield found
    if is_ready:
        from gpt2cli.checkpoints import folder as model_folder

        model_folder.verify(model)
        for file, sha256 in model_folder.read_manifest(model).items():
            n_found += 1
            yield Verified(model / file, sha256, "manifest")
    if not n_found:
        raise InputError(
            f"{model_name(name, revision)}: nothing of it is here",
            f"looked in {paths.gpt2_home()}",
            command(name, revision=revision),
        )


@dataclass(frozen=True)
class _StoredDownload:
    """A folder of downloaded files; `names` are all that belong to it."""

    folder: Path
    source: str
    names: list[str]
    published: Mapping[str, Expected]
    known: Provenance | None
    command: str

    @property
    def missing(self) -> list[str]:
        return [name for name in self.names if not (self.folder / name).is_file()]


def _stored(size: Size | None, repository: str) -> list[_StoredDownload]:
    """A model's downloads, finished or not, OpenAI's first; an empty folder does not count."""
    places = [(openai_folder(size), OPENAI)] if size else []
    commits = hub_folder(repository)
    if commits.is_dir():
        places += [(path, HUB) for path in sorted(commits.iterdir()) if path.is_dir()]
    found = []
    for folder, source in places:
        if folder.is_dir() and any(folder.iterdir()):
            known = provenance.read(folder)
            published = (
                openai_files(size) if size and source == OPENAI else hub_files(repository, folder.name)
            )
            names = known.names if known else list(published) or [CONFIG, "model.safetensors"]
            again = known.command if known else command(repository, source)
            found.append(_StoredDownload(folder, source, names, published, known, again))
    return found


def _verify_stored(stored: _StoredDownload) -> Iterator[Verified]:
    for name, record in stored.known.files.items() if stored.known else ():
        path = stored.folder / name
        if not path.is_file():
            continue
        sha256 = ""
        published = stored.published.get(name, Expected())
        for by, expected in (PUBLISHED, published), (record.by, Expected(record.size, record.sha256)):
            sha256, problem = expected.check(path)
            if problem:
                raise InputError(
                    f"{path}: is not the file it was", f"{by}: {problem}", f"{stored.command} --force"
                )
        yield Verified(path, sha256, record.by)


def _commit(repository: str, revision: str) -> str:
    """The commit that a revision named when it was downloaded."""
    path = listing_path(repository, revision)
    return read_listing(path, repository).commit if path.exists() else revision


def _made_from(model: Path) -> dict[str, Any]:
    """The source in a model's receipt; empty without a receipt."""
    if not (model / RECEIPT).is_file():
        return {}
    receipt = read_json_object(model / RECEIPT)
    require_format(model / RECEIPT, receipt.get("format", RECEIPT_FORMAT), RECEIPT_FORMAT)
    source = receipt.get("source")
    return source if isinstance(source, dict) else {}
