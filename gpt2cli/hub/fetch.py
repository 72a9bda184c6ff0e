"""Owns the way of one file from an address to the disk: whole, proved and resumable, or not at all.

Bytes are collected in a partial beside the file (`partials.py`), over as many exchanges
(`transport.py`) as it takes. What lies on the disk is then hashed, flushed and renamed. Which files
make a model is `fetching.py`'s business.
"""

import errno
import hashlib
import itertools
import os
import random
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gpt2cli import files
from gpt2cli.errors import InputError, ResourceError, ServiceError
from gpt2cli.hub import partials
from gpt2cli.hub.partials import Partial
from gpt2cli.hub.registry import Expected
from gpt2cli.hub.transport import Reply, TransientError, ask, shown
from gpt2cli.patience import Patience

_FULL = {errno.ENOSPC, errno.EDQUOT}
# What a server sends with status 200 in the place of a file. None of the files here begins like this.
_IMPOSTORS = {
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML document, which is how storage servers report errors",
    b"<error": "an XML error message",
    b"version https://git-lfs": "a Git LFS pointer; the file itself was never fetched to that mirror",
}
_CHANCE = random.SystemRandom()


class UnreachableError(ServiceError):
    """The network or the server failed again and again; what came is kept for the next time."""


@dataclass(frozen=True)
class Transferred:
    """How far a file is. The last one has `sha256`, and `validator`: what the server calls this version."""

    n_done: int
    n_total: int | None
    note: str = ""
    sha256: str = ""
    validator: str = ""


def fetch(
    address: str,
    out: Path,
    *,
    expected: Expected = Expected(),
    headers: Mapping[str, str] | None = None,
    patience: Patience = Patience(),
) -> Iterator[Transferred]:
    """Fetch `address` into the file `out`, going on where a former attempt ended.

    `out` is replaced in one step when every byte is there and proved; until then it stays as it is.
    Raises InputError for a body that is not the expected file, ResourceError where there is no
    space, ServiceError where the server or the network fails for good; then what came is kept.
    """
    files.require_writable(out.parent)
    until = time.monotonic() + patience.total if patience.total is not None else None
    transfer = _Transfer(address, out, expected, dict(headers or {}), patience, until)
    n_failures, best = 0, 0
    while True:
        try:
            yield from transfer.attempt()
            return
        except TransientError as trouble:
            # Only bytes beyond all attempts before count, else a server could keep us here for ever.
            n_failures = 0 if transfer.n_done >= best + patience.progress else n_failures + 1
            best = max(best, transfer.n_done)
            if n_failures >= patience.attempts or (until and time.monotonic() > until):
                raise UnreachableError(
                    f"{shown(address)}: the transfer failed at byte {transfer.n_done:,}",
                    trouble.why,
                    "try again: it goes on where it stopped",
                ) from None
            pause = _pause(n_failures, trouble, patience)
            why = f"{trouble.why}; " + (f"again in {pause:.0f} s" if pause >= 1 else "again")
            yield Transferred(transfer.n_done, transfer.n_total, why)
            time.sleep(pause)


def require_space(folder: Path, n_bytes: int) -> None:
    """Raise ResourceError where `folder`, or what will be its parent, has no room for `n_bytes` more."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise _no_space(folder, n_bytes, free)


class _Transfer:
    """One file on its way; what has to be remembered from one attempt to the next."""

    def __init__(
        self,
        address: str,
        out: Path,
        expected: Expected,
        headers: dict[str, str],
        patience: Patience,
        until: float | None,
    ) -> None:
        self.address, self.out, self.expected = address, out, expected
        self.headers, self.patience, self.until = headers, patience, until
        self.n_done = 0
        self.n_total = expected.n_bytes
        self._told: dict[str, str] = {}  # hashes that the server gave
        self._is_pieced = False  # made of the bodies of several exchanges
        self._seen_ends: set[int] = set()  # where bodies without a marked end have ended

    def attempt(self) -> Iterator[Transferred]:
        """Go on where the partial ends, to the end of the file, and install it. Raises TransientError."""
        partial = partials.take(self.out)
        # The last byte is asked for again: a whole file has an answer too, which is not 416.
        start = max(0, partial.n_bytes - 1) if partial else 0
        with ask(self.address, self.headers, start, self.patience, self.until) as reply:
            identity = partials.identity_of(self.address, reply.validator)
            if reply.status == 200:
                first = self._look_at(reply)
                partial, start, self._is_pieced = partials.begin(self.out, identity), 0, False
                self._told = {}
            elif partial is not None and self._continues(reply, partial, identity, start):
                first, self._is_pieced = b"", True
                self.n_total = reply.n_total if reply.n_total is not None else self.n_total
            else:
                if partial is not None:
                    partials.drop(partial)
                raise TransientError("the file on the server is another one now: from the beginning", 0.0)
            self._told |= reply.hashes
            require_space(self.out.parent, (self.n_total or 0) - start)
            yield from self._receive(itertools.chain([first], reply.blocks), partial, start)
        self._check_end(reply, partial)
        yield from self._install(partial, reply.validator)

    def _look_at(self, reply: Reply) -> bytes:
        """The first bytes of a body that has the right size and may be the file. Else InputError.

        Until here nothing of a former attempt is given up.
        """
        self.n_total = self.expected.n_bytes
        first = next(reply.blocks, b"")
        if what := _impostor(first):
            raise self._wrong(what)
        if reply.n_total is not None:
            if self.n_total not in (None, reply.n_total):
                raise self._wrong(f"it has {reply.n_total:,} bytes, not {self.n_total:,}")
            if reply.n_total > self.expected.at_most:
                raise self._wrong(f"{reply.n_total:,} bytes are more than the file can have")
            self.n_total = reply.n_total
        return first

    def _continues(self, reply: Reply, partial: Partial, identity: str, start: int) -> bool:
        """Whether this is the rest of the very file whose beginning is here."""
        if reply.status != 206 or reply.start != start or reply.is_packed:
            return False
        totals = {reply.n_total, self.n_total} - {None}
        # Without a name for the version only a hash can tell in the end.
        is_same = identity == partial.identity and bool(reply.validator or self.expected.has_hash)
        return is_same and len(totals) == 1

    def _receive(self, blocks: Iterable[bytes], partial: Partial, start: int) -> Iterator[Transferred]:
        limit = self.n_total if self.n_total is not None else self.expected.at_most
        self.n_done = flushed = start
        with open(partial.path, "r+b", buffering=0) as file:
            file.truncate(start)  # what lies beyond cannot be relied on
            file.seek(start)
            for block in blocks:
                if self.n_done + len(block) > limit:
                    partials.drop(partial)
                    raise self._wrong(f"it goes on after {limit:,} bytes")
                self._write(file, block)
                self.n_done += len(block)
                if self.n_done - flushed >= partials.UNSURE_BYTES // 2:
                    os.fsync(file.fileno())
                    flushed = self.n_done
                yield Transferred(self.n_done, self.n_total)

    def _write(self, file: BinaryIO, block: bytes) -> None:
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            if error.errno not in _FULL:
                raise
            needed = (self.n_total or self.n_done + len(rest)) - self.n_done
            free = shutil.disk_usage(self.out.parent).free
            raise _no_space(self.out.parent, needed, free) from None

    def _check_end(self, reply: Reply, partial: Partial) -> None:
        """Whether the end of the body is the end of the file."""
        if self.n_total is not None and self.n_done < self.n_total:
            if reply.status == 200 and reply.n_total is None and reply.has_marked_end:
                partials.drop(partial)
                raise self._wrong(f"it has {self.n_done:,} bytes, not {self.n_total:,}")
            raise TransientError(f"the body ended at byte {self.n_done:,} of {self.n_total:,}")
        # A lost connection is all that marks this end, so it has to come twice at the same place.
        unproved = self.n_total is None and not reply.has_marked_end and not self.expected.has_hash
        if unproved and self.n_done not in self._seen_ends:
            self._seen_ends.add(self.n_done)
            raise TransientError("nothing marks the end of the body: asking once more", 0.0)

    def _install(self, partial: Partial, validator: str) -> Iterator[Transferred]:
        """Hash what lies on the disk, and give it its name."""
        yield Transferred(self.n_done, self.n_total, "checking")
        # The server's own word counts for what nobody else vouches for.
        wanted = known_hashes(self.expected) or self._told
        try:
            found, first = hashes_of(partial.path, {"SHA-256", *wanted})
        except FileNotFoundError:
            raise TransientError("another process took over the unfinished file") from None
        for kind, sha in wanted.items():
            if found[kind] != sha:
                partials.drop(partial)
                if self._is_pieced:
                    raise TransientError(f"{kind} of the pieces is wrong: from the beginning", 0.0)
                raise self._wrong(f"{kind} of its {self.n_done:,} bytes: {found[kind]}, not {sha}")
        if what := _impostor(first):  # it may have come in crumbs
            partials.drop(partial)
            raise self._wrong(what)
        try:
            os.replace(partial.path, self.out)
        except FileNotFoundError:
            raise TransientError("another process took over the unfinished file") from None
        files.flush_directory(self.out.parent)
        partials.clean(self.out)
        yield Transferred(self.n_done, self.n_done, "", found["SHA-256"], validator)

    def _wrong(self, why: str) -> InputError:
        return InputError(
            f"{shown(self.address)}: is not {self.out.name}", why, "nothing was kept; try another source"
        )


def known_hashes(expected: Expected) -> dict[str, str]:
    """{kind: digits}, as `hashes_of` calls the kinds."""
    known = {"SHA-256": expected.sha256, "git's SHA-1": expected.git_sha1}
    return {kind: digits for kind, digits in known.items() if digits}


def hashes_of(path: Path, kinds: Collection[str]) -> tuple[dict[str, str], bytes]:
    """Hashes and the first bytes of the file as it lies there, which is then flushed to the device."""
    with open(path, "rb", buffering=0) as file:
        digests = {
            "SHA-256": hashlib.sha256(),
            "git's SHA-1": hashlib.sha1(
                b"blob %d\0" % os.fstat(file.fileno()).st_size, usedforsecurity=False
            ),
            "MD5": hashlib.md5(usedforsecurity=False),
        }
        first = b""
        while block := file.read(files.CHUNK):
            first = first or block[:64]
            for kind in kinds:
                digests[kind].update(block)
        os.fsync(file.fileno())
    return {kind: digests[kind].hexdigest() for kind in kinds}, first


def _impostor(first: bytes) -> str:
    """What a body is that begins like this; "" for nothing known."""
    start = first[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((f"it is {what}" for mark, what in _IMPOSTORS.items() if start.startswith(mark)), "")


def _pause(n_failures: int, trouble: TransientError, patience: Patience) -> float:
    """Seconds until the next attempt: what the server asked for, or doubling, and never in step."""
    if trouble.wait is not None:
        return trouble.wait
    longest = min(patience.longest_pause, patience.first_pause * 2 ** max(0, n_failures - 1))
    return float(longest * _CHANCE.uniform(0.5, 1.0))


def _no_space(folder: Path, needed: int, free: int) -> ResourceError:
    return ResourceError(
        f"{folder}: the disk has too little space",
        f"{needed:,} more bytes are needed, {free:,} are free",
        "free some space, or set GPT2_HOME to another place; then the same command goes on",
    )
