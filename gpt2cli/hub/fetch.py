"""One file over HTTP: resumed where it stopped, checked, and renamed into place; or not at all.

Bytes go to `.partial-NAME` next to the file, under a lock: if two processes fetch it, the second waits
and reuses the first one's result. `.partial-NAME.version` records the address and version of the bytes.
"""

import contextlib
import fcntl
import itertools
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from gpt2cli import __version__, files, paths
from gpt2cli.disk_space import FULL, full_disk, require_room
from gpt2cli.errors import InputError, ServiceError, UsageError
from gpt2cli.hub import responses
from gpt2cli.hub.registry import Expected
from gpt2cli.hub.responses import OTHER_SERVER, TransientError, shown

if TYPE_CHECKING:
    import httpx2

FREE_SOME = "free some space, or set GPT2_HOME to another place; then the same command goes on"


class UnreachableError(ServiceError):
    """The network or the server failed repeatedly; the received bytes are kept for the next attempt."""


@dataclass(frozen=True)
class RetryPolicy:
    """Timeouts and pauses in seconds, and the number of attempts."""

    connect: float = 10.0
    stall: float = 30.0  # without a byte
    attempts: int = 6  # in a row that bring nothing new
    first_pause: float = 0.5  # doubles from attempt to attempt
    longest_pause: float = 30.0
    longest_wait: float = 120.0  # that a server may ask for with Retry-After


@dataclass(frozen=True)
class Transfer:
    """How far a file is, in bytes. The last one has `sha256`."""

    n_done: int
    n_total: int | None
    note: str = ""
    sha256: str = ""


def fetch(
    url: str,
    path: Path,
    expected: Expected = Expected(),
    *,
    headers: Mapping[str, str] | None = None,
    policy: RetryPolicy = RetryPolicy(),
) -> Iterator[Transfer]:
    """Fetch `url` into `path`, continuing where an earlier attempt stopped.

    `path` is replaced in one step once all bytes have arrived and are checked.
    Raises InputError for a body that is not the expected file, ResourceError if the disk is full,
    ServiceError if the server refuses or the network keeps failing; the received bytes are then kept.
    """
    paths.require_writable_home(path.parent)
    before, partial = _stamp(path), _open_partial(path, wait=False)
    if partial is None:
        yield Transfer(0, expected.size, "another process fetches it: waiting")
        partial = _open_partial(path, wait=True)
    assert partial is not None
    try:
        if _stamp(path) != before:  # another process has brought it
            sha256, problem = expected.check(path)
            if not problem:
                size = path.stat().st_size
                yield Transfer(size, size, "", sha256)
                return
        job = _FetchJob(url, path, expected, dict(headers or {}), partial)
        with _client(policy) as client:
            yield from _persist(job, client, policy)
    finally:
        _close(partial)


def n_partial_bytes(path: Path) -> int:
    """Bytes of `path` that an earlier attempt left."""
    partial = _partial_path(path)
    return partial.stat().st_size if partial.exists() else 0


@dataclass
class _FetchJob:
    """The transfer of one file: the request, and the state that one attempt passes to the next."""

    url: str
    path: Path
    expected: Expected
    headers: dict[str, str]
    partial: IO[bytes]  # unbuffered, opened to append, and locked
    n_done: int = 0
    n_total: int | None = None
    is_pieced: bool = False  # made of several bodies
    ends: set[int] = field(default_factory=set)  # where bodies without a marked end have ended

    def restart(self) -> None:
        self.partial.truncate(0)
        self.n_done, self.is_pieced = 0, False

    def wrong(self, why: str) -> InputError:
        return InputError(f"{shown(self.url)}: is not {self.path.name}", why, OTHER_SERVER)


def _client(policy: RetryPolicy) -> "httpx2.Client":
    import httpx2

    timeout = httpx2.Timeout(policy.stall, connect=policy.connect)
    hooks = {"response": [responses.require_web]}
    try:
        return httpx2.Client(timeout=timeout, follow_redirects=True, event_hooks=hooks)
    except (ImportError, ValueError, httpx2.InvalidURL):  # whose text may tell the proxy's password
        why = "it is not the address of a proxy, or a SOCKS proxy, which needs pip install socksio"
        fix = "look at HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
        raise UsageError("the proxy that this machine is set up for cannot be used", why, fix) from None


def _persist(job: _FetchJob, client: "httpx2.Client", policy: RetryPolicy) -> Iterator[Transfer]:
    """Repeat attempts until the file is complete or another attempt is pointless."""
    failures, best = 0, 0
    while True:
        try:
            yield from _attempt(job, client, policy.longest_wait)
            yield from _install(job)
            return
        except TransientError as trouble:
            # Only bytes beyond all attempts before count, else a server could keep us here for ever.
            failures = 0 if job.n_done > best else failures + 1
            best = max(best, job.n_done)
            if failures >= policy.attempts:
                what = f"{shown(job.url)}: the transfer failed at byte {job.n_done:,}"
                raise UnreachableError(what, trouble.why, "try again: it goes on where it stopped") from None
            doubled = min(policy.longest_pause, policy.first_pause * 2 ** max(0, failures - 1))
            pause = doubled if trouble.wait is None else trouble.wait
            again = f"trying again in {pause:.0f} s" if pause >= 1 else "trying again"
            yield Transfer(job.n_done, job.n_total, f"{trouble.why}; {again}")
            time.sleep(pause)


def _attempt(job: _FetchJob, client: "httpx2.Client", longest_wait: float) -> Iterator[Transfer]:
    """One exchange, from the end of the partial to the end of the file. Raises TransientError."""
    import httpx2

    kept, validator = os.fstat(job.partial.fileno()).st_size, _stored_validator(job)
    # Without a validator only a hash can tell in the end. The last byte is asked for again: a whole
    # file has an answer too, which is not 416.
    start = max(0, kept - 1) if validator or (validator == "" and job.expected.has_hash) else 0
    asked = {"user-agent": f"gpt2cli/{__version__}", "accept-encoding": "identity", **job.headers}
    if start:
        asked |= {"range": f"bytes={start}-"} | ({"if-range": validator} if validator else {})
    try:
        with client.stream("GET", job.url, headers=asked) as response:
            responses.require_content(response, longest_wait)
            if response.status_code == 200:
                chunks = _begin(job, response)
            elif start and _continues(job, response, start, validator):
                job.partial.truncate(start)
                job.n_done, job.is_pieced, chunks = start, True, response.iter_bytes()
                require_room(job.path, (job.n_total or 0) - start, FREE_SOME)
            else:
                job.restart()
                raise TransientError("the file on the server is another one now: from the beginning", 0.0)
            yield from _receive(job, chunks)
    except httpx2.TooManyRedirects as error:
        raise ServiceError(f"{shown(job.url)}: redirects in circles", str(error), OTHER_SERVER) from None
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise UsageError(f"{job.url}: is not an address of the web", str(error)) from None
    except (UnicodeEncodeError, httpx2.LocalProtocolError):
        why = "the access token or the address has characters that HTTP does not allow"
        raise UsageError(why, fix="look at HF_TOKEN and --base-url") from None
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        raise TransientError(str(error) or type(error).__name__) from None
    _check_end(job, response)


def _begin(job: _FetchJob, response: "httpx2.Response") -> Iterator[bytes]:
    """Start over at the first byte if the body may be the file. Until then the old partial is kept."""
    size, chunks, expected = responses.size(response), response.iter_bytes(), job.expected
    first = next(chunks, b"")
    if page := responses.page(first):
        raise job.wrong(page)
    if size is not None and expected.size not in (None, size):
        raise job.wrong(f"it has {size:,} bytes, not {expected.size:,}")
    if size is not None and size > expected.max_size:
        raise job.wrong(f"{size:,} bytes are more than the file can have")
    job.restart()
    job.n_total = size if expected.size is None else expected.size
    require_room(job.path, job.n_total or 0, FREE_SOME)
    files.write_file(_version_path(job.partial), f"{job.url}\n{responses.validator(response)}")
    return itertools.chain([first], chunks)


def _continues(job: _FetchJob, response: "httpx2.Response", start: int, validator: str | None) -> bool:
    """Whether a partial response continues the same file version as the partial on disk."""
    place = responses.content_range(response)
    if place is None or responses.validator(response) != validator:
        return False
    first, last, total = place
    totals = {total, job.expected.size, job.n_total} - {None}
    if first != start or len(totals) != 1:
        return False
    job.n_total = totals.pop()
    return job.n_total is not None and first <= last < job.n_total


def _receive(job: _FetchJob, chunks: Iterator[bytes]) -> Iterator[Transfer]:
    """Append the body to the partial, never beyond its maximum size."""
    limit = job.expected.max_size if job.n_total is None else job.n_total
    for chunk in chunks:
        if job.n_done + len(chunk) > limit:
            job.restart()
            raise job.wrong(f"it goes on after {limit:,} bytes")
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[job.partial.write(rest) :]
        except OSError as error:
            if error.errno not in FULL:
                raise
            needed = (job.n_total or job.n_done + len(rest)) - job.n_done
            raise full_disk(job.path, FREE_SOME, needed) from None
        job.n_done += len(chunk)
        yield Transfer(job.n_done, job.n_total)


def _check_end(job: _FetchJob, response: "httpx2.Response") -> None:
    """Whether the end of the body is the end of the file."""
    done, total, is_marked = job.n_done, job.n_total, responses.has_marked_end(response)
    if total is not None and done < total:
        if is_marked and response.status_code == 200 and responses.size(response) is None:
            job.restart()
            raise job.wrong(f"it has {done:,} bytes, not {total:,}")
        raise TransientError(f"the body ended at byte {done:,} of {total:,}")
    # A lost connection is all that marks such an end, so it has to come twice at the same place.
    if total is None and not is_marked and not job.expected.has_hash and done not in job.ends:
        job.ends.add(done)
        raise TransientError("nothing marks the end of the body: asking once more", 0.0)


def _install(job: _FetchJob) -> Iterator[Transfer]:
    """Check the partial on disk and rename it to the final name."""
    yield Transfer(job.n_done, job.n_total, "checking")
    os.fsync(job.partial.fileno())
    partial = Path(job.partial.name)
    sha256, problem = job.expected.check(partial)
    if problem:
        is_pieced = job.is_pieced
        job.restart()
        if is_pieced:
            raise TransientError(f"{problem}: from the beginning", 0.0)
        raise job.wrong(problem)
    os.replace(partial, job.path)
    files.flush_directory(job.path.parent)
    _version_path(job.partial).unlink(missing_ok=True)
    job.partial.close()
    yield Transfer(job.n_done, job.n_done, "", sha256)


def _open_partial(path: Path, *, wait: bool) -> IO[bytes] | None:
    """The partial of `path`, locked by this process; None if another process holds it."""
    partial = _partial_path(path)
    while True:
        file = partial.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # a disk without locks: a partial of this process alone
            file.close()
            partial.unlink(missing_ok=True)
            return Path(f"{partial}-{files.machine()}-{os.getpid()}").open("ab", buffering=0)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                return file
        file.close()  # the holder before us has renamed or removed it


def _close(partial: IO[bytes]) -> None:
    """Close a partial and delete it if empty."""
    if not partial.closed:
        if not os.fstat(partial.fileno()).st_size:
            _version_path(partial).unlink(missing_ok=True)
            Path(partial.name).unlink(missing_ok=True)
        partial.close()


def _partial_path(path: Path) -> Path:
    return path.with_name(f"{files.TEMPORARY}{path.name}")


def _version_path(partial: IO[bytes]) -> Path:
    return Path(f"{partial.name}.version")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes when the file is replaced."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def _stored_validator(job: _FetchJob) -> str | None:
    """The server's validator of the version in the partial; None if it is from another address."""
    path = _version_path(job.partial)
    url, _, validator = path.read_text(encoding="utf-8").partition("\n") if path.exists() else ("", "", "")
    return validator if url == job.url else None
