"""Owns reading zip files of other people: what is in them, and unpacking what a model needs.

Every member's name, kind, size and checksum is judged before a byte of it is trusted: nothing is
written outside one temporary folder, which is gone afterwards however the work ends. Zips inside a
zip stay packed. What the files mean is for `recognition.py`; a zip that torch wrote is `pickled.py`'s.
"""

import contextlib
import errno
import io
import os
import re
import shutil
import stat
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gpt2cli.errors import InputError, ResourceError
from gpt2cli.files import CHUNK, open_regular

# What a folder with a GPT-2 consists of, in any format; nothing else is unpacked.
WANTED = (
    "checkpoint",
    "model.ckpt*",
    "vocab.bpe",
    "merges.txt",
    "recipe.yaml",
    "*.json",
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
)
_MAX_DIRECTORY = 4 << 20  # bytes; a model's zip lists a few thousand members at most
_MAX_RATIO, _RATIO_COUNTS_FROM = 100, 64 << 20  # weights shrink by a tenth, zeros a thousandfold
_RESERVE = 64 << 20  # bytes of the disk that are left alone
_ENCRYPTED = 0x1 | 0x40
# How zipfile says that an archive is damaged; a password that it misses is a RuntimeError.
_DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary folder with the files of the zip at `path` that belong to a model.

    Raises InputError for a zip that is damaged, encrypted, or would write outside the folder or far
    more than it is; ResourceError where no disk has the room.
    """
    with open_regular(path) as file:
        archive = open_zip(path, file)
        members = [member for member in _checked(path, archive, file) if not member.is_dir()]
        wanted = [member for member in members if _is_wanted(member.filename)]
        if not wanted:
            raise InputError(
                f"{path}: the zip holds no model",
                f"looked for {', '.join(WANTED)} among {len(members)} file(s)",
            )
        place = _roomy(path, sum(member.file_size for member in wanted))
        with tempfile.TemporaryDirectory(prefix="gpt2-unzip-", dir=place, ignore_cleanup_errors=True) as name:
            for member in wanted:
                target = Path(name, member.filename)
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as out:
                    for block in blocks(path, archive, member):
                        out.write(block)
            yield Path(name)


def open_zip(path: Path, file: io.BufferedReader) -> zipfile.ZipFile:
    """The archive in `file`, its directory read. Raises InputError where that is damaged or huge."""
    with reading_zip(path):
        return zipfile.ZipFile(_Bounded(file))


def blocks(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content of a member, never more than its size. InputError where size or checksum differ."""
    n_bytes = 0
    with reading_zip(path), archive.open(member) as content:
        while block := content.read(CHUNK):
            n_bytes += len(block)
            yield block
        if n_bytes != member.file_size:
            raise zipfile.BadZipFile(f"{member.filename!r} ends at {n_bytes} of {member.file_size} bytes")


@contextlib.contextmanager
def reading_zip(path: Path) -> Iterator[None]:
    """Turns what zipfile raises for a damaged archive into InputError."""
    try:
        yield
    except _DAMAGE as error:
        raise _damaged(path, str(error) or type(error).__name__) from None
    except OSError as error:
        if error.errno not in (errno.EINVAL, None):  # a seek to where no file can be
            raise
        raise _damaged(path, str(error)) from None


class _Bounded:
    """A file that refuses to be read in great pieces: zipfile believes the size a directory claims."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def read(self, n: int = -1) -> bytes:
        data = self._file.read(_MAX_DIRECTORY + 1 if n < 0 else min(n, _MAX_DIRECTORY + 1))
        if len(data) > _MAX_DIRECTORY:
            raise zipfile.BadZipFile("the directory is larger than any model's")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _checked(path: Path, archive: zipfile.ZipFile, file: io.BufferedReader) -> list[zipfile.ZipInfo]:
    """The members, none of which could do harm."""
    members = archive.infolist()
    taken: dict[str, bool] = {}  # a path, as the most lenient file system compares it; is it a file?
    for member in members:
        _check_name(path, member.orig_filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(path, member, "it is a link or a device, not a file")
        if member.flag_bits & _ENCRYPTED:
            raise InputError(
                f"{path}: the zip is encrypted", "a password is needed", f"unzip {path}, then convert that"
            )
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(path, member, f"it is packed by method {member.compress_type}, which is rare")
        if member.file_size > max(_RATIO_COUNTS_FROM, _MAX_RATIO * member.compress_size):
            raise _refused(
                path, member, f"{member.compress_size} bytes would become {member.file_size}: a zip bomb"
            )
        parts = _same(member.filename).rstrip("/").split("/")
        folders = ["/".join(parts[:n]) for n in range(1, len(parts))]
        if "/".join(parts) in taken and not (member.is_dir() and not taken["/".join(parts)]):
            raise _refused(path, member, "the name is there twice")
        if any(taken.get(folder) for folder in folders):
            raise _refused(path, member, "a file stands where its folder should be")
        taken |= {**dict.fromkeys(folders, False), "/".join(parts): not member.is_dir()}
    if sum(member.compress_size for member in members) > os.fstat(file.fileno()).st_size:
        raise _damaged(path, "members overlap or lie beyond the end")
    return members


def _check_name(path: Path, name: str) -> None:
    """Raises InputError for a name that some system would take to another place."""
    parts = name.removesuffix("/").split("/")
    outside = name.startswith("/") or re.match(r"[A-Za-z]:", name) or any(p in ("", ".", "..") for p in parts)
    if outside or "\\" in name or not name.isprintable():
        raise InputError(
            f"{path}: the zip is not safe to unpack",
            f"member {ascii(name)[:100]} would be written outside the folder, or nowhere",
            "get the file again from a source that you trust",
        )


def _is_wanted(name: str) -> bool:
    if name.startswith("__MACOSX/"):
        return False
    last = name.rsplit("/", 1)[-1]
    return not last.startswith(".") and any(fnmatchcase(last, pattern) for pattern in WANTED)


def _roomy(path: Path, n_bytes: int) -> Path:
    """A folder whose disk has room: the system's for temporary files, or the one the zip lies in."""
    places = [Path(tempfile.gettempdir()), path.absolute().parent]
    free = [shutil.disk_usage(place).free - _RESERVE for place in places]
    for place, room in zip(places, free, strict=True):
        if room >= n_bytes and os.access(place, os.W_OK):
            return place
    raise ResourceError(
        f"{path}: no room to unpack {n_bytes:,} bytes",
        f"{max(0, free[0]):,} bytes are free in {places[0]}, {max(0, free[1]):,} in {places[1]}",
        "free some space, or set TMPDIR to a folder on a larger disk",
    )


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _refused(path: Path, member: zipfile.ZipInfo, why: str) -> InputError:
    return InputError(
        f"{path}: the zip is not safe to unpack",
        f"member {ascii(member.filename)[:100]}: {why}",
        "get the file again from a source that you trust",
    )


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: the zip is damaged", why[:200], "fetch the file again")
