"""Owns reading a foreign .pt, .pth or .bin: tensors that torch.save wrote, and nothing that runs.

A pickle is a program, and torch checks neither the checksums of the zip around it nor, in older
versions, the sizes it claims. So the container is proved whole first, the program rehearsed
(`pickle_rehearsal.py`), and only then does torch.load read it, weights only. Nothing is memory-mapped:
a file that is cut short while it is mapped kills the process.
"""

import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2cli.convert.archive import blocks, open_zip
from gpt2cli.convert.pickle_rehearsal import MAX_PROGRAM, Storage, damaged, rehearse
from gpt2cli.errors import InputError, is_out_of_memory
from gpt2cli.files import open_regular

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6: its magic number, pickled
_DATA = "/data.pkl"
_Checksum = tuple[int, int]  # CRC-32 of a record, and its bytes
# What ends a zip: the directory's end, and before it the one with wide numbers, which torch writes too.
_END, _LOCATOR, _END_64 = (struct.Struct(form) for form in ("<4s4H2LH", "<4sLQL", "<4sQ2H2L4Q"))
# What torch.load raises for files that it cannot read. What lacks memory is told apart below.
_FAILURES = (
    pickle.UnpicklingError,
    RuntimeError,  # RecursionError and NotImplementedError among them
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    BufferError,
    MemoryError,
    struct.error,
)


def is_pickled(path: Path, file: io.BufferedReader) -> bool:
    """Whether torch.save wrote the file, by its content. Raises InputError for a damaged zip."""
    start = file.peek(len(_LEGACY))
    if start.startswith(_LEGACY):
        return True
    if not start.startswith(_ZIP):
        return False
    names = open_zip(path, file).namelist()
    file.seek(0)
    return any(name.endswith(_DATA) for name in names)


def read_pickled(path: Path) -> Any:
    """What torch.save put into the file, tensors on the CPU.

    Raises InputError where it is damaged, wants to run code, or holds what is not weights.
    """
    with open_regular(path) as file:
        start = file.peek(len(_LEGACY))
        checksums: set[_Checksum] | None = None
        if start.startswith(_ZIP):
            checksums = _check_zip(path, file)
        elif start.startswith(_LEGACY):
            _check_legacy(path, file)
        else:
            raise InputError(
                f"{path}: is no file of torch.save",
                f"it begins with the bytes {start[:8].hex(' ') or '(none)'}",
            )
        file.seek(0)
        try:
            with warnings.catch_warnings(action="ignore"):
                value = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
        except _FAILURES as error:
            if is_out_of_memory(error):  # sizes were checked: this machine is too small
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise damaged(path, f"torch.load: {reason}") from None
    if checksums is not None:
        _check_content(path, value, checksums)
    return value


def floating_tensors(path: Path, mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    """The values of `mapping` as dense, contiguous tensors of floating-point numbers.

    Raises InputError, naming the tensor, for what is none or holds fewer numbers than its shape says.
    """
    found: dict[str, Tensor] = {}
    storages: dict[int, int] = {}  # bytes of each, by its address
    copied = 0
    for name, tensor in mapping.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor")
        tensor = tensor.detach()
        _check_kind(path, name, tensor)
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.nbytes > storage.nbytes():
            raise InputError(
                f"{path}: {name!r} repeats itself",
                f"its shape {list(tensor.shape)} is {tensor.nbytes:,} bytes, {storage.nbytes():,} are stored",
            )
        # Views of one storage, each turned another way, would each become a copy of it.
        copied += 0 if tensor.is_contiguous() else tensor.nbytes
        if copied > sum(storages.values()):
            raise InputError(f"{path}: {name!r} is one of too many views of the same numbers")
        found[name] = tensor.contiguous()
    return found


def _check_kind(path: Path, name: str, tensor: Tensor) -> None:
    kinds = {
        "sparse": tensor.layout != torch.strided,
        "quantized": tensor.is_quantized,
        "without content": tensor.is_meta,
        str(tensor.dtype).removeprefix("torch."): tensor.dtype not in FLOATING,
    }
    wrong = [kind for kind, is_so in kinds.items() if is_so]
    if wrong:
        raise InputError(
            f"{path}: {name!r} is {wrong[0]}", "dense float16, bfloat16, float32 or float64 is needed"
        )
    if tensor.numel() == 0:
        raise InputError(f"{path}: {name!r} is empty", f"its shape is {list(tensor.shape)}")


def _check_zip(path: Path, file: io.BufferedReader) -> set[_Checksum]:
    """No record is packed, and the pickle claims just what is there. Returns the tensors' checksums."""
    archive = open_zip(path, file)
    members = archive.infolist()
    _check_one_directory(path, file, archive)
    if not members or "/" not in members[0].filename:
        raise damaged(path, "the zip has no records of torch")
    folder = members[0].filename.partition("/")[0] + "/"  # where torch looks, too
    records: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise damaged(path, f"record {member.filename!r} is packed; torch.save packs nothing")
        name = member.orig_filename.removeprefix(folder).lower()  # torch ignores case
        if name in records:
            raise damaged(path, f"record {member.filename!r} is there twice")
        records[name] = member
    if sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
        raise damaged(path, "records overlap or lie beyond the end")
    if "data.pkl" not in records:
        raise damaged(path, "there is no data.pkl")
    if records["data.pkl"].file_size > MAX_PROGRAM:
        raise damaged(path, f"data.pkl has {records['data.pkl'].file_size:,} bytes; weights need far fewer")
    program = io.BytesIO(b"".join(blocks(path, archive, records.pop("data.pkl"))))
    checksums = set()
    for key, storage in rehearse(path, program).storages.items():
        record = records.pop(f"data/{key}".lower(), None)
        _check_size(path, storage, record.file_size if record else 0)
        if record:
            checksums.add((record.CRC, record.file_size))
    for name, record in records.items():  # what is not a tensor's is read to its end, and so to its checksum
        content = b"".join(block[:9] for block in blocks(path, archive, record))
        if name == "byteorder" and content != b"little":
            raise damaged(path, f"its numbers are in the byte order {content!r}; little-endian ones are read")
    return checksums


def _check_one_directory(path: Path, file: io.BufferedReader, archive: zipfile.ZipFile) -> None:
    """zipfile and torch find the same directory: just before its end marks, and these end the file."""
    n_bytes = file.seek(0, io.SEEK_END)
    marks = _END_64.size + _LOCATOR.size + _END.size
    file.seek(max(0, n_bytes - marks))
    tail = file.read(marks).rjust(marks, b"\0")
    name, *_, size, start, comment = _END.unpack(tail[-_END.size :])
    found = name == b"PK\5\6" and not comment
    ends = n_bytes - _END.size
    name, _, wide_mark, _ = _LOCATOR.unpack(tail[_END_64.size : -_END.size])
    if name == b"PK\6\7":
        *_, size, start = _END_64.unpack(tail[: _END_64.size])
        ends = n_bytes - marks
        found = found and wide_mark == ends
    if not found or start != archive.start_dir or start + size != ends:
        raise damaged(path, "the zip's directory is not where torch would look for it")


def _check_content(path: Path, value: Any, checksums: set[_Checksum]) -> None:
    """What torch has read is what the archive's checksums say: it compares none, and takes a record
    that is marked as a folder for read, whatever lay in the memory.
    """
    storages = {storage.data_ptr(): storage for storage in _storages(value)}
    for storage in storages.values():
        content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data
        if content.nbytes and (zlib.crc32(content), content.nbytes) not in checksums:
            raise damaged(path, f"Bad CRC-32: a tensor of {content.nbytes:,} bytes is not what was saved")


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:  # pickles may share parts, and hold themselves
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value.untyped_storage()
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value


def _check_legacy(path: Path, file: io.BufferedReader) -> None:
    """Four pickles, the storages' keys in a fifth, then each storage after its number of items."""
    head = io.BytesIO(file.read(MAX_PROGRAM))
    file_size = os.fstat(file.fileno()).st_size
    for _ in range(3):  # magic number, version, system
        rehearse(path, head)
    storages = rehearse(path, head).storages
    keys = rehearse(path, head).value
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise damaged(path, "the storages are not listed")
    if sorted(keys) != sorted(storages):
        raise damaged(path, "the storages listed are not those of the tensors")
    at = head.tell()
    for key in keys:
        file.seek(at)
        n_items = int.from_bytes(file.read(8), "little")
        if n_items != storages[key].n_items:
            raise damaged(path, f"storage {key!r} has {n_items} items instead of {storages[key].n_items}")
        at += 8 + storages[key].n_bytes
        if at > file_size:
            raise damaged(path, f"storage {key!r} ends at byte {at} of {file_size}")
    if at != file_size:
        raise damaged(path, f"{file_size - at} bytes follow the last storage")


def _check_size(path: Path, storage: Storage, n_bytes: int) -> None:
    if storage.n_bytes != n_bytes:
        raise damaged(
            path, f"storage {storage.key!r} has {n_bytes:,} bytes where {storage.n_bytes:,} are claimed"
        )
