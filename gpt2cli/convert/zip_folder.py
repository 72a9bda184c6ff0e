"""Zips that contain a model's folder, such as Kaggle's of OpenAI's files: unpacked while they are read.

Nothing is written outside one temporary folder, which is always deleted afterwards. Zips
inside a zip stay packed. A zip that torch.save wrote is for `torch_file.py`.
"""

import contextlib
import errno
import io
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from gpt2cli.errors import InputError, ResourceError, counted, is_out_of_memory
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
# How the system says that a member cannot be where the archive has it: a seek to where no file can be;
# two members that want one place.
_DAMAGE_NUMBERS = (errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary folder with the files of the zip at `path` that belong to a model.

    Raises InputError for a zip that is damaged, encrypted, or would write outside the folder or far
    more than it is; ResourceError if no disk has the room.
    """
    with open_regular(path) as file:
        archive = open_zip(path, file)
        _check_members(path, archive, os.fstat(file.fileno()).st_size)
        members = [member for member in archive.infolist() if not member.is_dir()]
        wanted = [member for member in members if _is_wanted(member.filename)]
        if not wanted:
            raise InputError(
                f"{path}: the zip holds no model",
                f"looked for {', '.join(WANTED)} among {counted(len(members), 'file')}",
            )
        place = _roomy(path, sum(member.file_size for member in wanted))
        with tempfile.TemporaryDirectory(prefix="gpt2-unzip-", dir=place, ignore_cleanup_errors=True) as name:
            for member in wanted:
                with reading_zip(path):
                    archive.extract(member, name)  # reads to the end, and so compares the checksum
            yield Path(name)


def open_zip(path: Path, file: io.BufferedReader) -> zipfile.ZipFile:
    """The archive in `file`, its directory read. Raises InputError if that is damaged."""
    with reading_zip(path):
        return zipfile.ZipFile(file)


@contextlib.contextmanager
def reading_zip(path: Path) -> Iterator[None]:
    """Turns what zipfile raises for a damaged archive into InputError."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno not in _DAMAGE_NUMBERS):
            raise
        raise _damaged(path, str(error) or type(error).__name__) from None


def _check_members(path: Path, archive: zipfile.ZipFile, n_bytes: int) -> None:
    members = archive.infolist()
    for member in members:
        why = ""
        if any(part in ("", ".", "..") for part in member.filename.removesuffix("/").split("/")):
            why = "it would be written outside the folder"
        elif stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            why = "it is a link or a device, not a file"
        if why:
            raise InputError(
                f"{path}: the zip is not safe to unpack",
                f"member {ascii(member.filename)[:100]}: {why}",
                "get the file again from a source that you trust",
            )
        if member.flag_bits & 1:
            raise InputError(
                f"{path}: the zip is encrypted", "a password is needed", f"unzip {path}, then convert that"
            )
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
    places = [path.absolute().parent]
    with contextlib.suppress(FileNotFoundError):  # none that can be written to
        places.insert(0, Path(tempfile.gettempdir()))
    free = [shutil.disk_usage(place).free - _RESERVE for place in places]
    for place, room in zip(places, free, strict=True):
        if room >= n_bytes and os.access(place, os.W_OK):
            return place
    raise ResourceError(
        f"{path}: no room to unpack {n_bytes:,} bytes",
        ", ".join(f"{max(0, room):,} are free in {place}" for place, room in zip(places, free, strict=True)),
        "free some space, or set TMPDIR to a folder on a larger disk",
    )


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: the zip is damaged", why[:200], "fetch the file again")
