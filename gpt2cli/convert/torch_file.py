"""Files that torch.save wrote: .pt, .pth and .bin, read with torch's weights-only unpickler.

A pickle is a program. torch runs only the few calls that rebuild tensors; every other class in the file
becomes an inert stand-in (build-nanogpt stores its GPTConfig dataclass), and a stand-in that is called
refuses the file. A zip is memory-mapped, so its tensors cost nothing until they are read; the format
before torch 1.6 cannot be mapped. torch compares no checksum of a zip, so zipfile does first.
"""

import io
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from torch import Tensor

from gpt2cli.convert.zip_folder import open_zip, reading_zip
from gpt2cli.errors import InputError, is_out_of_memory
from gpt2cli.files import open_regular

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ZIP = b"PK\x03\x04"
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number, pickled, of torch before 1.6
_N_OLD_PICKLES = 5  # magic number, version, system, content, keys of the storages that follow
_PICKLE = "data.pkl"
_BYTEARRAYS = {"builtins bytearray", "__builtin__ bytearray"}  # torch fills one of any size
_CALLED = re.compile(r"GLOBAL (\S+)")
_ALLOCATED = re.compile(r"tried to allocate (\d+) bytes")


def is_torch_file(path: Path, file: io.BufferedReader) -> bool:
    """Whether torch.save wrote `file`, by its content. Raises InputError for a damaged zip."""
    start = file.peek(len(_OLD))
    if start.startswith(_OLD):
        return True
    if not start.startswith(_ZIP):
        return False
    names = open_zip(path, file).namelist()
    file.seek(0)
    return any(name.endswith(f"/{_PICKLE}") for name in names)


def read_torch_file(path: Path) -> Any:
    """The object that torch.save stored, tensors on the CPU; those of a zip are mapped, not read.

    Raises InputError if the file is damaged, would run code, or claims more than it holds.
    """
    with open_regular(path) as file:
        start = file.peek(len(_OLD))
        n_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        if start.startswith(_ZIP):
            names = _check_zip(path, file)
        elif start.startswith(_OLD):
            names = _check_old(path, file)
        else:
            raise InputError(
                f"{path}: is not a file written by torch.save",
                f"it begins with the bytes {start[:8].hex(' ') or '(none)'}",
            )
    if names & _BYTEARRAYS:
        raise _would_run(path, "bytearray")
    # torch prefers what it knows, so the stand-ins are for all the rest.
    stand_ins: list[Any] = [
        (_stand_in(path, name), name) for name in (global_.replace(" ", ".") for global_ in names)
    ]
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(stand_ins):
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(_ZIP))
    except OSError:
        raise
    except Exception as error:
        claim = _ALLOCATED.search(str(error))
        if is_out_of_memory(error) and not (claim and int(claim[1]) > n_bytes):
            raise
        if called := _CALLED.search(str(error)):
            raise _would_run(path, called[1]) from None
        raise _damaged(path, f"torch.load: {error or type(error).__name__}".partition("\n")[0]) from None
    # A shape beyond its storage makes torch grow the storage, to any size.
    claimed = sum({storage.data_ptr(): storage.nbytes() for storage in _storages(value)}.values())
    if claimed > n_bytes:
        raise _damaged(path, f"its tensors are {claimed:,} bytes, the file has {n_bytes:,}")
    return value


def require_table(path: Path, value: Any) -> dict[str, Any]:
    """The value of a file as a table of named tensors. Raises InputError for another."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{path}: holds a {type(value).__name__}", "a table of named tensors is needed")
    return value


def floating_tensors(path: Path, mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    """The values of `mapping` as dense, contiguous tensors of floating-point numbers.

    Raises InputError, naming the tensor, for what is none or holds fewer numbers than its shape says.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in mapping.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor")
        tensor = tensor.detach()
        _check_kind(path, name, tensor)
        n_stored = tensor.untyped_storage().nbytes()
        if tensor.nbytes > n_stored:
            raise InputError(
                f"{path}: {name!r} repeats itself",
                f"its shape {list(tensor.shape)} is {tensor.nbytes:,} bytes, {n_stored:,} are stored",
            )
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


def _check_zip(path: Path, file: io.BufferedReader) -> set[str]:
    """Every record is whole, and stored as it is. Returns the names that the pickle imports."""
    n_bytes = file.seek(0, io.SEEK_END)
    archive = open_zip(path, file)
    members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise _damaged(path, f"record {member.filename!r} is compressed; torch.save compresses nothing")
    if sum(member.file_size for member in members) > n_bytes:
        raise _damaged(path, "records overlap or lie beyond the end")
    with reading_zip(path):
        if (broken := archive.testzip()) is not None:
            raise _damaged(path, f"Bad CRC-32 for record {broken!r}")
        folder = members[0].filename.partition("/")[0] if members else ""  # where torch looks, too
        try:
            program = archive.read(f"{folder}/{_PICKLE}")
        except KeyError:
            raise _damaged(path, f"there is no {_PICKLE}") from None
    return _imports(path, io.BytesIO(program))


def _check_old(path: Path, file: io.BufferedReader) -> set[str]:
    """The storages are listed once each: torch leaves one that is not listed uninitialised. Returns
    the names that the pickles import.
    """
    names = set().union(*(_imports(path, file) for _ in range(_N_OLD_PICKLES - 1)))
    keys = [argument for opcode, argument in _instructions(path, file) if opcode == "BINUNICODE"]
    if len(keys) != len(set(keys)):
        raise _damaged(path, "a storage is listed twice")
    return names


def _imports(path: Path, program: IO[bytes]) -> set[str]:
    """The names, "module name", that the pickle at the position of `program` imports."""
    return {argument for opcode, argument in _instructions(path, program) if opcode == "GLOBAL"}


def _instructions(path: Path, program: IO[bytes]) -> Iterator[tuple[str, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(program):
            yield opcode.name, argument
    # A text may claim any length, which is then asked of the memory.
    except (ValueError, MemoryError, OverflowError) as error:  # UnicodeDecodeError is a ValueError
        raise _damaged(path, f"the pickle is broken: {error or type(error).__name__}") from None


def _stand_in(path: Path, name: str) -> type:
    """A class whose objects are tables that hold the attributes and entries of an unknown one's, and do
    nothing. An object is restored by its `__new__`; what the pickle calls comes to the class's `__call__`.

    Only into tables and OrderedDicts does torch write entries, and into an OrderedDict attributes too.
    """

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise _would_run(path, name)

    def restore(*_: Any, **__: Any) -> OrderedDict[Any, Any]:
        return OrderedDict()

    callable_by_none = type("StandIn", (type,), {"__call__": refuse})
    made: type = callable_by_none(name.rpartition(".")[2], (), {"__new__": restore})
    return made


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    """The storages of all dense tensors in tables and lists, also in the attributes of stand-ins."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:  # pickles may share parts, and hold themselves
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.layout == torch.strided and not value.is_meta:
                yield value.untyped_storage()
            continue
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
        if hasattr(value, "__dict__"):
            waiting.append(vars(value))


def _would_run(path: Path, name: str) -> InputError:
    return InputError(
        f"{path}: wants to run code: {name[:100]}",
        "weights need none, so that none is run",
        "where the file was made: torch.save(model.state_dict(), 'weights.pt')",
    )


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: the checkpoint is damaged", why[:200], "fetch or save the file again")
