"""Zips with a model's folder in them, as Kaggle offers OpenAI's files: unpacked while they are read.

Nothing is written outside one temporary folder, which is gone afterwards however the work ends. Zips
inside a zip stay packed. A zip that torch.save wrote is for `torch_file.py`.
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
import zipfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from gpt2cli.errors import InputError, ResourceError
from gpt2cli.files import open_regular

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
_MAX_RATIO, _RATIO_COUNTS_FROM = 100, 64 << 20  # weights shrink by a tenth, zeros a thousandfold
_RESERVE = 64 << 20  # bytes of the disk that are left alone
_ENCRYPTED = 0x1 | 0x40
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# How zipfile says that an archive is damaged; a missing password is a RuntimeError.
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
# A seek to where no file can be; two members that want one place.
_DAMAGE_NUMBERS = (None, errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary folder with the files of the zip at `path` that belong to a model.

    Raises InputError for a zip that is damaged, encrypted, or would write outside the folder or far
    more than it is; ResourceError where no disk has the room.
    """
    with open_regular(path) as file:
        archive = open_zip(path, file)
        _check_members(path, archive, os.fstat(file.fileno()).st_size)
        members = [member for member in archive.infolist() if not member.is_dir()]
        wanted = [member for member in members if _is_wanted(member.filename)]
        if not wanted:
            raise InputError(
                f"{path}: the zip holds no model",
                f"looked for {', '.join(WANTED)} among {len(members)} file(s)",
            )
        place = _roomy(path, sum(member.file_size for member in wanted))
        with tempfile.TemporaryDirectory(prefix="gpt2-unzip-", dir=place, ignore_cleanup_errors=True) as name:
            for member in wanted:
                with reading_zip(path):
                    archive.extract(member, name)  # reads to the end, and so compares the checksum
            yield Path(name)


def open_zip(path: Path, file: io.BufferedReader) -> zipfile.ZipFile:
    """The archive in `file`, its directory read. Raises InputError where that is damaged."""
    with reading_zip(path):
        return zipfile.ZipFile(file)


@contextlib.contextmanager
def reading_zip(path: Path) -> Iterator[None]:
    """Turns what zipfile raises for a damaged archive into InputError."""
    try:
        yield
    except _DAMAGE as error:
        raise _damaged(path, str(error) or type(error).__name__) from None
    except OSError as error:
        if error.errno not in _DAMAGE_NUMBERS:
            raise
        raise _damaged(path, str(error)) from None


def _check_members(path: Path, archive: zipfile.ZipFile, n_bytes: int) -> None:
    members = archive.infolist()
    for member in members:
        parts = member.orig_filename.removesuffix("/").split("/")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if any(part in ("", ".", "..") for part in parts) or re.match("[A-Za-z]:", parts[0]):
            raise _refused(path, member, "it would be written outside the folder")
        if "\\" in member.orig_filename or not member.orig_filename.isprintable():
            raise _refused(path, member, "the name means another place on other systems")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(path, member, "it is a link or a device, not a file")
        if member.flag_bits & _ENCRYPTED:
            raise InputError(
                f"{path}: the zip is encrypted", "a password is needed", f"unzip {path}, then convert that"
            )
        if member.compress_type not in _METHODS:
            raise _refused(path, member, f"it is compressed by method {member.compress_type}, which is rare")
    if len({member.filename for member in members}) < len(members):
        raise _damaged(path, "a name is there twice")
    if sum(member.compress_size for member in members) > n_bytes:
        raise _damaged(path, "members overlap or lie beyond the end")
    size = sum(member.file_size for member in members)
    if size > max(_RATIO_COUNTS_FROM, _MAX_RATIO * n_bytes):
        raise InputError(
            f"{path}: the zip is not safe to unpack", f"{n_bytes:,} bytes would become {size:,}: a zip bomb"
        )


def _is_wanted(name: str) -> bool:
    last = name.rpartition("/")[2]
    if name.startswith("__MACOSX/") or last.startswith("."):
        return False
    return any(fnmatchcase(last, pattern) for pattern in WANTED)


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


def _refused(path: Path, member: zipfile.ZipInfo, why: str) -> InputError:
    return InputError(
        f"{path}: the zip is not safe to unpack",
        f"member {ascii(member.orig_filename)[:100]}: {why}",
        "get the file again from a source that you trust",
    )


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: the zip is damaged", why[:200], "fetch the file again")
