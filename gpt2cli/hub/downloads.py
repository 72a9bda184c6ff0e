"""Downloading a model: a size or a repository in, a folder of checked files under GPT2_HOME/downloads out.

A file already on disk, put there by hand or in huggingface_hub's shared cache, is verified, not
downloaded again. Files without a published hash are checked against the hash recorded at their first
download (`provenance.py`).
"""

import shlex
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from gpt2cli import files, paths
from gpt2cli.checkpoints import provenance
from gpt2cli.checkpoints.hf_config import read_gpt2_config
from gpt2cli.checkpoints.provenance import FIRST_SEEN, PUBLISHED, Origin, Provenance, Record
from gpt2cli.disk_space import require_room
from gpt2cli.errors import InputError, ServiceError
from gpt2cli.hub import hf_hub
from gpt2cli.hub.fetch import FREE_SOME, RetryPolicy, UnreachableError, fetch, n_partial_bytes
from gpt2cli.hub.hf_hub import CONFIG, Listing
from gpt2cli.hub.registry import OPENAI_URL, SIZES, Expected, Size, openai_files
from gpt2cli.hub.responses import shown

OPENAI, HUB = SOURCES = ("openai", "hf")
MAIN = "main"
TOKENIZER_BYTES = 4 << 20
FORBIDDEN = "the network is forbidden (--offline or HF_HUB_OFFLINE)"


@dataclass(frozen=True)
class Request:
    """How to download. `fresh` ignores files already on disk; with `convert` a model is made of them."""

    base_url: str | None = None
    offline: bool = False
    fresh: bool = False
    convert: bool = False
    policy: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True)
class Downloaded:
    """A complete folder. `files` is {name: SHA-256}."""

    folder: Path
    origin: Origin
    files: dict[str, str]
    n_bytes: int


@dataclass(frozen=True)
class DownloadProgress:
    """Progress in bytes, of one file and of all; None is unknown. The last item has the result."""

    file: str = ""
    n_done: int = 0
    n_total: int | None = None
    all_done: int = 0
    all_total: int | None = None
    note: str = ""
    result: Downloaded | None = None


def download_openai(size: Size, request: Request) -> Generator[DownloadProgress, None, None]:
    """OpenAI's files into GPT2_HOME/downloads/openai/SIZE.

    Raises what `fetch` raises. When offline, the error says which files to place in which folder.
    """
    address = f"{(request.base_url or OPENAI_URL).rstrip('/')}/{size.name}"
    items = [_Item(name, f"{address}/{name}", expected) for name, expected in openai_files(size).items()]
    job = _Job(
        openai_folder(size),
        items,
        Origin(OPENAI, shown(address), ""),
        command(size.name, OPENAI, request.base_url),
        n_parameters=size.n_parameters,
    )
    yield from _collect(job, request)


def download_hub(
    repository: str, revision: str | None, request: Request
) -> Generator[DownloadProgress, None, None]:
    """The files that a GPT-2 needs from a repository, into GPT2_HOME/downloads/hub/OWNER--NAME/COMMIT.

    Without a revision it is the one whose hashes are published, else the newest. Raises what `fetch`
    raises, and InputError for a repository without a GPT-2, before any weights are fetched.
    """
    hf_hub.require_name(repository)
    if revision is not None:
        hf_hub.require_revision(revision)
    request = replace(request, offline=request.offline or hf_hub.is_offline())
    again = command(repository, HUB, request.base_url, revision)
    listing = yield from _list(
        repository, revision or default_revision(repository, request.base_url), request
    )
    items = [
        _Item(
            name,
            hf_hub.file_url(listing, name, request.base_url),
            expected,
            hf_hub.in_cache(repository, listing.commit, name),
        )
        for name, expected in listing.files.items()
    ]
    address = shown(f"{hf_hub.endpoint(request.base_url)}/{repository}/resolve/{listing.commit}")
    origin = Origin(HUB, address, listing.commit)
    folder = hub_folder(repository) / listing.commit
    yield from _collect(_Job(folder, items, origin, again, hf_hub.headers(request.base_url)), request)


def openai_folder(size: Size) -> Path:
    return paths.downloads() / OPENAI / size.name


def hub_folder(repository: str) -> Path:
    """The folder of a repository: a folder per commit, and the hub's list of files per revision."""
    return paths.downloads() / "hub" / repository.replace("/", "--")


def listing_path(repository: str, revision: str) -> Path:
    """Where the hub's list of files at a revision is kept."""
    return hub_folder(repository) / f"list-{quote(revision, safe='')}.json"


def default_revision(repository: str, base_url: str | None) -> str:
    """The commit whose hashes are known, unless a mirror is used, which may lack it; else the newest."""
    known = next((size.revision for size in SIZES.values() if size.repository == repository), None)
    return (None if base_url else known) or MAIN


def model_name(name: str, revision: str | None) -> str:
    """The name of a model made from a revision: two revisions are two models."""
    return name if revision is None else f"{name}@{revision}"


def command(
    name: str,
    source: str | None = None,
    base_url: str | None = None,
    revision: str | None = None,
) -> str:
    """The command that fetches the missing files of a model; `name` is a size or a repository."""
    size = next((size.name for size in SIZES.values() if size.repository == name), name)
    words = ["gpt2", "download", size]
    # Only a size has two sources, and a revision says which.
    words += ["--source", source] if source and size in SIZES and revision is None else []
    words += ["--revision", revision] if revision is not None else []
    words += ["--base-url", shown(base_url)] if base_url else []
    return shlex.join(words)


def _list(repository: str, revision: str, request: Request) -> Generator[DownloadProgress, None, Listing]:
    """The repository's files at a revision; the hub's answer is kept for offline use."""
    path, trouble = listing_path(repository, revision), FORBIDDEN
    if not request.offline:
        url = hf_hub.listing_url(repository, revision, request.base_url)
        headers, expected = hf_hub.headers(request.base_url), Expected(max_size=hf_hub.MAX_LISTING)
        try:
            for step in fetch(url, path, expected, headers=headers, policy=request.policy):
                yield DownloadProgress("list of files", note=step.note)
            return hf_hub.read_listing(path, repository)
        except UnreachableError as error:
            trouble = error.why
        except ServiceError:
            if (yield from _is_dataset(repository, request)):
                raise InputError(
                    f"{repository}: is a data set, not a model",
                    "a model is trained on its text",
                    f"{hf_hub.fetching(repository)} --repo-type dataset"
                    f" && gpt2 prepare {repository.partition('/')[2]}",
                ) from None
            raise
    if path.exists():
        yield DownloadProgress("list of files", note=f"{trouble}; taking the list of an earlier download")
        return hf_hub.read_listing(path, repository)
    folder = hub_folder(repository) / quote(revision, safe="")
    listing = hf_hub.listing_from_cache(repository, revision) or hf_hub.listing_of_folder(repository, folder)
    if listing is None:
        place = shown(f"{hf_hub.endpoint(request.base_url)}/{repository}")
        raise ServiceError(
            f"{repository}: {place} is out of reach",
            trouble,
            f"on another machine fetch config.json and model.safetensors from {place}/resolve/{revision}/,"
            f" put them into {folder}, then the same command again",
        )
    yield DownloadProgress("list of files", note=f"{trouble}; taking what is here")
    return listing


def _is_dataset(repository: str, request: Request) -> Generator[DownloadProgress, None, bool]:
    """Whether the hub has a data set of this name, after it has refused a model."""
    path = hub_folder(repository) / "dataset.json"
    url, headers = hf_hub.dataset_url(repository, request.base_url), hf_hub.headers(request.base_url)
    expected = Expected(max_size=hf_hub.MAX_LISTING)
    try:
        for step in fetch(url, path, expected, headers=headers, policy=request.policy):
            yield DownloadProgress("list of files", note=step.note)
    except (ServiceError, InputError):
        return False
    path.unlink(missing_ok=True)
    return True


@dataclass(frozen=True)
class _Item:
    """A file to download. `cached` is a copy in huggingface_hub's shared cache."""

    name: str
    url: str
    expected: Expected
    cached: Path | None = None


@dataclass
class _Job:
    """A folder to fill, and the records of its verified files."""

    folder: Path
    items: list[_Item]
    origin: Origin
    command: str  # that fetches what is missing
    headers: dict[str, str] = field(default_factory=dict)
    n_parameters: int = 0  # if that is known before config.json
    records: dict[str, Record] = field(default_factory=dict)

    @property
    def repository(self) -> str:
        return self.folder.parent.name.replace("--", "/")

    def have(self, item: _Item, record: Record) -> None:
        """Raises InputError for the config.json of something else than a GPT-2."""
        if self.origin.source == HUB and item.name == CONFIG:
            try:
                read_gpt2_config(self.folder / CONFIG, self.repository, to_convert=True)
            except InputError as error:
                fix = error.fix.replace(self.repository, self.repository.partition("/")[2])
                if fix != error.fix:  # a command for the folder, which is not here yet
                    fix = f"{hf_hub.fetching(self.repository)} && {fix}"
                raise InputError(error.what, error.why, fix) from None
        self.records[item.name] = record


def _collect(job: _Job, request: Request) -> Generator[DownloadProgress, None, None]:
    """Put every item into the folder: kept if it is right, linked from a cache, or fetched."""
    known = None if request.fresh else provenance.read(job.folder)
    held = known.files if known else {}
    expected = {item.name: _expectation(item, held.get(item.name)) for item in job.items}
    for item in () if request.fresh else job.items:
        yield from _look(job, item, expected[item.name], held.get(item.name), request)
    missing = [item for item in job.items if item.name not in job.records]
    if missing and request.offline:
        raise _out_of_reach(job, FORBIDDEN)
    sizes = {name: it.size or 0 for name, it in expected.items()}
    sizes |= {name: record.size for name, record in job.records.items()}
    origin = job.origin if missing or not known else known.origin
    for n, item in enumerate(missing):
        if job.origin.source == HUB and request.convert and hf_hub.is_weights(item.name):
            _require_readable(job)
        if item.name != CONFIG:  # which may tell that nothing else is of use
            needed = sum(sizes[it.name] - n_partial_bytes(job.folder / it.name) for it in missing[n:])
            require_room(job.folder, max(0, needed) + _room_to_convert(job, request), FREE_SOME)
        yield from _fetch(job, item, expected[item.name], sizes, request)
        provenance.write(job.folder, _provenance(job, origin, {**held, **job.records}))
    provenance.write(job.folder, _provenance(job, origin, job.records))
    n_bytes = sum(record.size for record in job.records.values())
    hashes = {item.name: job.records[item.name].sha256 for item in job.items}
    result = Downloaded(job.folder, origin, hashes, n_bytes)
    yield DownloadProgress(all_done=n_bytes, all_total=n_bytes, result=result)


def _require_readable(job: _Job) -> None:
    """Check that the downloaded config and tokenizer are those of a model that can be converted.

    Raises InputError that names the repository, before any weights are fetched.
    """
    from gpt2cli.convert.hf_folder import read_texts
    from gpt2cli.tokenizer.files import COPY

    try:
        read_texts(job.folder)
    except InputError as error:
        what, why = (text.replace(str(job.folder), job.repository) for text in (error.what, error.why))
        fix, name = error.fix, job.repository.partition("/")[2]
        if fix.startswith(COPY):
            fix = f"put a tokenizer that fits into the folder, then: gpt2 convert {name}"
            fix = f"{hf_hub.fetching(job.repository)}; {fix}"
        elif fix.startswith("fetch "):
            fix = f"use another model: the files are as {job.repository} has them"
        raise InputError(what, why, fix) from None


def _room_to_convert(job: _Job, request: Request) -> int:
    """Bytes of the converted model, in fp32 regardless of the files' dtype; 0 if unknown."""
    if not request.convert:
        return 0
    n_parameters = job.n_parameters
    if CONFIG in job.records:
        config = read_gpt2_config(job.folder / CONFIG, job.repository, to_convert=True)
        n_parameters = config.n_parameters
    return 4 * n_parameters + TOKENIZER_BYTES if n_parameters else 0


def _look(
    job: _Job, item: _Item, expected: Expected, held: Record | None, request: Request
) -> Generator[DownloadProgress, None, None]:
    """Whether the file exists and is right, in the folder or in the cache."""
    path = job.folder / item.name
    if path.is_file():
        yield DownloadProgress(item.name, note="here already: checking")
        sha256, problem = expected.check(path)
        if not problem:
            job.have(item, held or _record(path, sha256, item, "was put there"))
            return
        if request.offline:
            raise InputError(f"{path}: is not the file it should be", problem, f"rm {path}")
        yield DownloadProgress(item.name, note=f"the file here is another: {problem}")
    if item.cached and item.expected.has_hash:
        sha256, problem = expected.check(item.cached)
        if not problem:
            yield DownloadProgress(item.name, note="taken from the Hugging Face cache")
            paths.require_writable_home(job.folder)
            files.point(path, item.cached)
            job.have(item, _record(path, sha256, item, str(item.cached)))


def _fetch(
    job: _Job, item: _Item, expected: Expected, sizes: dict[str, int], request: Request
) -> Generator[DownloadProgress, None, None]:
    path, before = job.folder / item.name, sum(record.size for record in job.records.values())
    sha256 = ""
    try:
        for step in fetch(item.url, path, expected, headers=job.headers, policy=request.policy):
            sizes[item.name], sha256 = step.n_total or step.n_done, step.sha256
            done, total = before + step.n_done, sum(sizes.values())
            yield DownloadProgress(item.name, step.n_done, step.n_total, done, total, step.note)
    except UnreachableError as error:
        raise _out_of_reach(job, error.why) from None
    except InputError as error:
        if expected == item.expected:
            raise
        why = f"{error.why}, as it was when it was first seen; the fix takes what is there now"
        raise InputError(error.what, why, f"{job.command} --force") from None
    job.have(item, _record(path, sha256, item, shown(item.url)))


def _expectation(item: _Item, held: Record | None) -> Expected:
    """The published hash and size, else those recorded at the first download."""
    if held is None or item.expected.has_hash:
        return item.expected
    return replace(item.expected, size=held.size, sha256=held.sha256)


def _record(path: Path, sha256: str, item: _Item, address: str) -> Record:
    by = PUBLISHED if item.expected.has_hash else FIRST_SEEN
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(path.stat().st_size, sha256, by, address, now)


def _provenance(job: _Job, origin: Origin, records: dict[str, Record]) -> Provenance:
    return Provenance(origin, job.command, [item.name for item in job.items], dict(sorted(records.items())))


def _out_of_reach(job: _Job, why: str) -> ServiceError:
    names = [item.name for item in job.items if item.name not in job.records]
    return ServiceError(
        f"{job.origin.address}: {len(names)} of {len(job.items)} files are out of reach",
        why,
        f"on another machine fetch {', '.join(names)} from {job.origin.address}/, put them into"
        f" {job.folder}, then the same command again",
    )
