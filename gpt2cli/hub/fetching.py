"""Owns which files a model has and where they come from: OpenAI's seven, or those of a hub's repository.

A size or a repository in, a folder of proved files out. How the folder becomes complete is
`collecting.py`'s business, where it lies `downloaded.py`'s; what is made of it is `conversion.py`'s.
"""

from collections.abc import Generator
from dataclasses import replace
from functools import partial
from urllib.parse import quote

from gpt2cli.convert.hf_config import read_gpt2_config
from gpt2cli.errors import ServiceError, UsageError
from gpt2cli.hub import hf_hub
from gpt2cli.hub.collecting import FORBIDDEN, Fetched, Fetching, Item, Request, collect
from gpt2cli.hub.downloads import command, default_revision, hub_folder, listing_path, openai_folder
from gpt2cli.hub.fetch import UnreachableError, fetch
from gpt2cli.hub.hf_hub import Listing
from gpt2cli.hub.registry import OPENAI, Expected, Size, hub_files, openai_files
from gpt2cli.hub.transport import shown


def fetch_openai(size: Size, request: Request) -> Generator[Fetching, None, None]:
    """OpenAI's files into GPT2_HOME/downloads/openai/SIZE.

    Raises what `collecting.collect` raises.
    """
    origin = f"{(request.base_url or OPENAI).rstrip('/')}/{size.name}"
    request = replace(request, anew=command(size.name, "openai", request.base_url))
    items = [Item(name, f"{origin}/{name}", expected) for name, expected in openai_files(size).items()]
    yield from collect(items, Fetched("openai", openai_folder(size), shown(origin), ""), {}, request)


def fetch_hub(repository: str, revision: str | None, request: Request) -> Generator[Fetching, None, None]:
    """What a GPT-2 needs of a repository into GPT2_HOME/downloads/hub/OWNER--NAME/COMMIT.

    Without a revision it is the one whose hashes are published, else the newest. Raises what
    `collecting.collect` raises, and InputError for a repository without a readable model; its
    config.json is looked at before any weights are fetched.
    """
    hf_hub.check_name(repository)
    if revision is not None:
        check_revision(revision)
    anew = command(repository, "hf", request.base_url, revision)
    revision = revision or default_revision(repository, request.base_url)
    request = replace(request, offline=request.offline or hf_hub.is_offline(), anew=anew)
    listing = yield from _list(repository, revision, request)
    items = [
        Item(
            name,
            hf_hub.file_address(listing, name, request.base_url),
            expected,
            hf_hub.in_cache(repository, listing.commit, name),
            partial(read_gpt2_config, model=repository) if name == hf_hub.CONFIG else None,
        )
        for name, expected in listing.files.items()
    ]
    origin = shown(f"{hf_hub.endpoint(request.base_url)}/{repository}/resolve/{listing.commit}")
    target = Fetched("hf", hub_folder(repository) / listing.commit, origin, listing.commit)
    yield from collect(items, target, hf_hub.headers(request.base_url), request)


def check_revision(revision: str) -> None:
    """Raises UsageError for what cannot be the name of a branch, a tag or a commit."""
    if not revision or not revision.isprintable() or set(revision) & set(" ~^:?*[\\"):
        raise UsageError(
            f"--revision {revision!r} is not a name of git",
            "it would be a branch, a tag or a commit",
            "leave out --revision",
        )


def _list(repository: str, revision: str, request: Request) -> Generator[Fetching, None, Listing]:
    """The repository's files at a revision; the hub's answer is kept for times without a network."""
    path = listing_path(repository, revision)
    address = hf_hub.listing_address(repository, revision, request.base_url)
    headers, known = hf_hub.headers(request.base_url), Expected(at_most=hf_hub.MAX_LISTING)
    trouble = FORBIDDEN
    if not request.offline:
        try:
            for step in fetch(address, path, expected=known, headers=headers, patience=request.patience):
                if step.note:
                    yield Fetching("list of files", note=step.note)
            return hf_hub.read_listing(path, repository)
        except UnreachableError as error:
            trouble = error.why
    if path.exists():
        yield Fetching("list of files", note=f"{trouble}; taking the list of an earlier download")
        return hf_hub.read_listing(path, repository)
    listing = hf_hub.listing_from_cache(repository, revision) or _put_by_hand(repository, revision)
    if listing is None:
        place = shown(f"{hf_hub.endpoint(request.base_url)}/{repository}")
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
    if not (folder / hf_hub.CONFIG).is_file():
        return None
    names = {path.name for path in folder.iterdir() if path.is_file()}
    published = hub_files(repository, revision)
    files = {name: published.get(name, Expected()) for name in hf_hub.needed(repository, names)}
    return Listing(repository, folder.name, files)
