"""Owns how a folder of files becomes complete: kept where they are right, linked from a cache, or fetched.

A file that is here already, wherever it came from, is compared and not fetched again. What nobody
vouches for is held against what it was when it was first seen (`hashes.py`). Which files these are
is `fetching.py`'s business, and how one comes is `download.py`'s.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from gpt2cli import files as disk
from gpt2cli.checkpoints import provenance
from gpt2cli.checkpoints.provenance import FIRST_SEEN, PUBLISHED, Origin, Record
from gpt2cli.errors import InputError, ServiceError
from gpt2cli.hub import partials
from gpt2cli.hub.fetch import UnreachableError, fetch, hashes_of, known_hashes, require_space
from gpt2cli.hub.registry import Expected
from gpt2cli.hub.transport import shown
from gpt2cli.patience import Patience

FORBIDDEN = "the network is forbidden (--offline or HF_HUB_OFFLINE)"


@dataclass(frozen=True)
class Fetched:
    """A complete folder. `files` is {name: SHA-256}."""

    source: str  # "openai" or "hf"
    folder: Path
    origin: str  # the address of the folder from which the files came
    revision: str  # the hub's commit; "" for OpenAI's files
    files: dict[str, str] = field(default_factory=dict)
    n_bytes: int = 0


@dataclass(frozen=True)
class Fetching:
    """How far it is, in bytes, with one file and in all; None is unknown. The last has `fetched`."""

    file: str = ""
    n_done: int = 0
    n_total: int | None = None
    all_done: int = 0
    all_total: int | None = None
    note: str = ""
    fetched: Fetched | None = None


@dataclass(frozen=True)
class Request:
    """How to fetch. `fresh` takes nothing that is here for granted, `room` bytes are needed afterwards;
    `anew` is the command that fetches everything again, for errors that advise it."""

    base_url: str | None = None
    offline: bool = False
    fresh: bool = False
    room: int = 0
    patience: Patience = field(default_factory=Patience)
    anew: str = ""


@dataclass(frozen=True)
class Item:
    """A file to have. `cached` is a copy in the cache that huggingface_hub's users share; `check` raises
    InputError where the file says that the others are of no use, and they are not fetched then."""

    name: str
    address: str
    expected: Expected
    cached: Path | None = None
    check: Callable[[Path], object] | None = None


def collect(
    items: list[Item], target: Fetched, headers: dict[str, str], request: Request
) -> Generator[Fetching, None, None]:
    """Bring every item into the target's folder; the last step has the target with its files.

    Raises what `download.fetch` raises; without a network the error says what to put where.
    """
    yield from _Collection(items, target, headers, request).run()


class _Collection:
    def __init__(self, items: list[Item], target: Fetched, headers: dict[str, str], request: Request) -> None:
        self.items, self.target, self.headers, self.request = items, target, headers, request
        self.folder = target.folder
        self.held = {} if request.fresh else provenance.read(self.folder)
        self.sizes = {item.name: self._expected(item).n_bytes or 0 for item in items}  # as far as known
        self.records: dict[str, Record] = {}  # of the files that are here and right
        self.origin = Origin(target.source, target.origin, target.revision)
        self.known_origin = None if request.fresh else provenance.origin(self.folder)

    def run(self) -> Iterator[Fetching]:
        for item in self.items:
            if not self.request.fresh:
                yield from self._look(item)
        missing = [item for item in self.items if item.name not in self.records]
        if missing and self.request.offline:
            raise self._out_of_reach(FORBIDDEN)
        for item in missing:
            if item.check:
                yield from self._fetch(item)
        missing = [item for item in missing if not item.check]
        begun = sum(partials.n_begun(self.folder / item.name) for item in missing)
        n_missing = sum(self.sizes[item.name] for item in missing)
        require_space(self.folder, max(0, n_missing - begun) + self.request.room)
        for item in missing:
            yield from self._fetch(item)
        origin = self.known_origin or self.origin
        provenance.keep(self.folder, self.records, origin)
        files = {name: record.sha256 for name, record in self.records.items()}
        n_bytes = sum(record.n_bytes for record in self.records.values())
        target = replace(self.target, origin=origin.address, files=files, n_bytes=n_bytes)
        yield Fetching(all_done=n_bytes, all_total=n_bytes, fetched=target)

    def _expected(self, item: Item) -> Expected:
        """What is published, else what the file was when it was first seen."""
        record = self.held.get(item.name)
        if record is None or item.expected.has_hash:
            return item.expected
        return replace(item.expected, n_bytes=record.n_bytes, sha256=record.sha256)

    def _look(self, item: Item) -> Iterator[Fetching]:
        """Whether the file is here and right, in the folder or in the cache."""
        path, expected = self.folder / item.name, self._expected(item)
        if path.is_file():
            yield Fetching(item.name, note="here already: checking")
            sha256, problem = compare(path, expected)
            if not problem:
                record = self.held.get(item.name)
                self._have(item, record or _record(path, sha256, item, "was put there"))
                return
            if self.request.offline:
                raise InputError(f"{path}: is not the file it should be", problem, f"rm {path}")
            yield Fetching(item.name, note=f"the file here is another: {problem}")
        if item.cached and item.expected.has_hash:
            sha256, problem = compare(item.cached, expected)
            if not problem:
                yield Fetching(item.name, note="taken from the Hugging Face cache")
                disk.require_writable(self.folder)
                disk.point(path, item.cached)
                self._have(item, _record(path, sha256, item, str(item.cached)))

    def _fetch(self, item: Item) -> Iterator[Fetching]:
        path, expected = self.folder / item.name, self._expected(item)
        before = sum(record.n_bytes for record in self.records.values())
        steps = fetch(
            item.address, path, expected=expected, headers=self.headers, patience=self.request.patience
        )
        try:
            for step in steps:
                self.sizes[item.name] = step.n_total or step.n_done
                total = sum(self.sizes.values())
                all_done = before + step.n_done
                yield Fetching(item.name, step.n_done, step.n_total, all_done, total, step.note)
        except UnreachableError as error:
            raise self._out_of_reach(error.why) from None
        except InputError as error:
            if expected == item.expected:
                raise
            why = f"{error.why}, as it was when it was first seen; the fix takes what is there now"
            raise InputError(error.what, why, self.request.anew) from None
        record = _record(path, step.sha256, item, shown(item.address))
        self._have(item, replace(record, validator=step.validator))
        self.known_origin = self.origin
        provenance.keep(self.folder, {item.name: self.records[item.name]}, self.origin)  # held from now on

    def _have(self, item: Item, record: Record) -> None:
        if item.check:
            item.check(self.folder / item.name)
        self.records[item.name] = record
        self.sizes[item.name] = record.n_bytes

    def _out_of_reach(self, why: str) -> ServiceError:
        names = [item.name for item in self.items if item.name not in self.records]
        return ServiceError(
            f"{self.target.origin}: {len(names)} of {len(self.items)} files are not to be had",
            why,
            f"on another machine fetch {', '.join(names)} from {self.target.origin}/, put them into"
            f" {self.folder}, then the same command again",
        )


def compare(path: Path, expected: Expected) -> tuple[str, str]:
    """SHA-256 of the file, and in words how it differs from what is expected; "" where it does not."""
    n_bytes = path.stat().st_size
    if expected.n_bytes not in (None, n_bytes):
        return "", f"it has {n_bytes:,} bytes, not {expected.n_bytes:,}"
    wanted = known_hashes(expected)
    found, _ = hashes_of(path, {"SHA-256", *wanted})
    for kind, digits in wanted.items():
        if found[kind] != digits:
            return found["SHA-256"], f"{kind} is {found[kind]}, not {digits}"
    return found["SHA-256"], ""


def _record(path: Path, sha256: str, item: Item, origin: str) -> Record:
    return Record(
        n_bytes=path.stat().st_size,
        sha256=sha256,
        by=PUBLISHED if item.expected.has_hash else FIRST_SEEN,
        address=origin,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
