"""Owns which files a model has and where they lie: OpenAI's seven, or those of a hub's repository.

A size or a repository in, a folder of proved files out. How the folder becomes complete is
`collecting.py`'s business; what is made of it is `conversion.py`'s.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from gpt2cli import home
from gpt2cli.errors import InputError, ServiceError
from gpt2cli.weights import hashes, hub
from gpt2cli.weights.collecting import FORBIDDEN, Fetched, Fetching, Item, Request, collect, compare
from gpt2cli.weights.download import UnreachableError, fetch
from gpt2cli.weights.hashes import PUBLISHED
from gpt2cli.weights.hub import Listing
from gpt2cli.weights.published import OPENAI, SIZES, Expected, Size, hub_files, openai_files
from gpt2cli.weights.transport import shown

REFUSED = ".refused"  # the end of the name of a file that turned out to be damaged
MAIN = "main"


@dataclass(frozen=True)
class Verified:
    """A file that is what it was, and who says so."""

    path: Path
    sha256: str
    by: str


def fetch_openai(size: Size, request: Request) -> Generator[Fetching, None, None]:
    """OpenAI's files into GPT2_HOME/downloads/openai/SIZE.

    Raises what `collecting.collect` raises.
    """
    origin = f"{(request.base_url or OPENAI).rstrip('/')}/{size.name}"
    items = [Item(name, f"{origin}/{name}", expected) for name, expected in openai_files(size).items()]
    yield from collect(items, Fetched("openai", openai_folder(size), shown(origin), ""), {}, request)


def fetch_hub(repository: str, revision: str | None, request: Request) -> Generator[Fetching, None, None]:
    """What a GPT-2 needs of a repository into GPT2_HOME/downloads/hub/OWNER--NAME/COMMIT.

    Without a revision it is the one whose hashes are published, else the newest. Raises what
    `collecting.collect` raises, and InputError for a repository without a readable model.
    """
    hub.check_name(repository)
    known = next((size.revision for size in SIZES.values() if size.repository == repository), None)
    revision = revision or (None if request.base_url else known) or MAIN
    request = replace(request, offline=request.offline or hub.is_offline())
    listing = yield from _list(repository, revision, request)
    items = [
        Item(
            name,
            hub.file_address(listing, name, request.base_url),
            expected,
            hub.in_cache(repository, listing.commit, name),
        )
        for name, expected in listing.files.items()
    ]
    origin = shown(f"{hub.endpoint(request.base_url)}/{repository}/resolve/{listing.commit}")
    target = Fetched("hf", hub_folder(repository) / listing.commit, origin, listing.commit)
    yield from collect(items, target, hub.headers(request.base_url), request)


def openai_folder(size: Size) -> Path:
    return home.downloads() / "openai" / size.name


def hub_folder(repository: str) -> Path:
    """The folder of a repository's commits, a folder each."""
    return home.downloads() / "hub" / repository.replace("/", "--")


def is_here(size: Size) -> bool:
    """Whether a size's files are here, from either source; they are not read."""
    if all((openai_folder(size) / name).is_file() for name in openai_files(size)):
        return True
    return any(_weights_of(commit) for commit in _commits(size.repository))


def discard(folder: Path) -> list[str]:
    """Refuse the files that nobody vouches for: they turned out to be damaged. Returns their names.

    Their hashes are forgotten, and they get another name, so that the next download fetches them.
    """
    names = [name for name, record in hashes.read(folder).items() if record.by != PUBLISHED]
    for name in names:
        with suppress(FileNotFoundError):
            os.replace(folder / name, folder / f"{name}{REFUSED}")
    if names:
        hashes.forget(folder, names)
    return names


def verify(name: str) -> Iterator[Verified]:
    """Compare every file of a model with what it should be: what was downloaded, and what was made of it.

    Raises InputError for the first that differs, or where there is nothing.
    """
    size = SIZES.get(home.canonical(name) or "")
    repository = size.repository if size else name
    n_found = 0
    folders = [*([openai_folder(size)] if size else []), *_commits(repository)]
    for folder in folders:
        for found in _verify_downloaded(folder, _published_of(folder, size, repository)):
            n_found += 1
            yield found
    model = home.model_place(name)
    if home.is_model(model):
        from gpt2cli.weights import folder as folders_of_ours

        folders_of_ours.verify(model)
        for file, sha256 in folders_of_ours.read_manifest(model).items():
            n_found += 1
            yield Verified(model / file, sha256, "manifest")
    if not n_found:
        raise InputError(
            f"{name}: nothing of it is here", f"looked in {home.home()}", f"gpt2 download {name}"
        )


def _verify_downloaded(folder: Path, published: dict[str, Expected]) -> Iterator[Verified]:
    for file, record in hashes.read(folder).items():
        path = folder / file
        held = [(PUBLISHED, published.get(file, Expected())), (record.by, _held(record))]
        if not path.is_file():
            raise InputError(
                f"{path}: is missing", "it was here once", f"gpt2 download {folder.name} --force"
            )
        for by, expected in held:
            sha256, problem = compare(path, expected)
            if problem:
                raise InputError(
                    f"{path}: is not the file it was", f"{by}: {problem}", "gpt2 download ... fetches it anew"
                )
        yield Verified(path, sha256, record.by)


def _held(record: hashes.Record) -> Expected:
    return Expected(record.n_bytes, record.sha256)


def _published_of(folder: Path, size: Size | None, repository: str) -> dict[str, Expected]:
    if size and folder == openai_folder(size):
        return openai_files(size)
    return hub_files(repository, folder.name)


def _commits(repository: str) -> list[Path]:
    place = hub_folder(repository)
    return sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []


def _weights_of(commit: Path) -> bool:
    names = {path.name for path in commit.iterdir() if path.is_file()}
    try:
        return bool(hub.needed(commit.name, names))
    except InputError:
        return False


def _list(repository: str, revision: str, request: Request) -> Generator[Fetching, None, Listing]:
    """The repository's files at a revision; the hub's answer is kept for times without a network."""
    path = hub_folder(repository) / f"list-{quote(revision, safe='')}.json"
    address = hub.listing_address(repository, revision, request.base_url)
    headers, known = hub.headers(request.base_url), Expected(at_most=hub.MAX_LISTING)
    trouble = FORBIDDEN
    if not request.offline:
        try:
            for step in fetch(address, path, expected=known, headers=headers, patience=request.patience):
                if step.note:
                    yield Fetching("list of files", note=step.note)
            return hub.read_listing(path, repository)
        except UnreachableError as error:
            trouble = error.why
    if path.exists():
        yield Fetching("list of files", note=f"{trouble}; taking the list of an earlier download")
        return hub.read_listing(path, repository)
    listing = hub.listing_from_cache(repository, revision) or _put_by_hand(repository, revision)
    if listing is None:
        place = shown(f"{hub.endpoint(request.base_url)}/{repository}")
        raise ServiceError(
            f"{repository}: {place} is out of reach",
            trouble,
            f"on another machine fetch config.json and model.safetensors from {place}/resolve/{revision}/,"
            f" put them into {hub_folder(repository) / quote(revision, safe='')},"
            " then the same command again",
        )
    yield Fetching("list of files", note=f"{trouble}; taking what is here")
    return listing


def _put_by_hand(repository: str, revision: str) -> Listing | None:
    """What somebody put into the folder of this revision."""
    folder = hub_folder(repository) / quote(revision, safe="")
    if not (folder / hub.CONFIG).is_file():
        return None
    names = {path.name for path in folder.iterdir() if path.is_file()}
    published = hub_files(repository, revision)
    files = {name: published.get(name, Expected()) for name in hub.needed(repository, names)}
    return Listing(repository, folder.name, files)
