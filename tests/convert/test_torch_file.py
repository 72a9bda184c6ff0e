"""Files of torch.save: what is read equals torch's own reading; what lies, is damaged or runs is refused."""

import io
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from gpt2cli.convert.torch_file import floating_tensors, is_torch_file, read_torch_file
from gpt2cli.errors import InputError

TENSORS = {"a.weight": torch.arange(20.0).view(4, 5), "b": torch.tensor([1.5, -2.0]).bfloat16()}
with warnings.catch_warnings(action="ignore"):  # torch is giving them up
    QUANTIZED = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


def save(path: Path, value: Any, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_torch_file(path)
    assert str(path) in caught.value.what
    return caught.value


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_training_checkpoint_is_read_as_torch_reads_it(tmp_path: Path, legacy: bool) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    every = {str(dtype): torch.ones(3).to(dtype) for dtype in (torch.bool, torch.int64, torch.float16)}
    value = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": model.weight,
        "view": torch.arange(12.0).view(3, 4).T,
        "every": [every, (), (1,), (1, 2), (1, 2, 3), None, True, -(2**40), 2.5, "é"],
    }
    path = save(tmp_path / "x.pt", value, legacy=legacy)
    ours, theirs = read_torch_file(path), torch.load(path, weights_only=True)
    assert repr(ours) == repr(theirs)
    assert torch.equal(ours["view"], value["view"]) and isinstance(ours["model"], OrderedDict)
    with open(path, "rb") as file:
        assert is_torch_file(path, file) and file.tell() == 0


class RunsCode:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_wants_to_run_code_does_not(tmp_path: Path, legacy: bool) -> None:
    canary = tmp_path / "canary"
    path = save(tmp_path / "x.pt", {"model": TENSORS, "x": RunsCode(canary)}, legacy=legacy)
    error = refused(path)
    assert "wants to run code: posix.system" in error.what and "torch.save(" in error.fix
    assert not canary.exists()
    torch.load(path, weights_only=False)  # the test is a test: elsewhere it would have run
    assert canary.exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(2).to_sparse(), "is sparse"),
        (QUANTIZED, "is quantized"),
        (torch.zeros(2, device="meta"), "without content"),
        (torch.zeros(1).expand(2**40), "repeats itself"),
        (torch.zeros(9).as_strided((3, 3, 3), (2, 1, 1)), "repeats itself"),
        ({1, 2}, "is a set"),
        (torch.Size([2]), "is a Size"),
        (bytearray(4), "wants to run code: bytearray"),
        (Path("x"), "wants to run code: pathlib."),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_no_plain_weight_is_refused(tmp_path: Path, value: Any, said: str, legacy: bool) -> None:
    path = save(tmp_path / "x.pt", {"w": value}, legacy=legacy)
    with pytest.raises(InputError, match=re.escape(said)):
        floating_tensors(path, read_torch_file(path))


@dataclass
class GPTConfig:
    """As in build-nanogpt's train_gpt2.py, whose checkpoints hold one."""

    block_size: int
    n_layer: int = 12


@pytest.mark.parametrize("legacy", [False, True])
def test_an_unknown_dataclass_becomes_an_inert_stand_in(tmp_path: Path, legacy: bool) -> None:
    path = save(tmp_path / "x.pt", {"config": GPTConfig(1024), **TENSORS}, legacy=legacy)
    read = read_torch_file(path)
    assert vars(read.pop("config")) == {"block_size": 1024, "n_layer": 12}
    assert repr(read) == repr(TENSORS)
    with pytest.raises(pickle.UnpicklingError):  # nothing is allowed for good
        torch.load(path, weights_only=True)


def repacked(path: Path, change: Callable[[str, bytes], bytes | None], **options: Any) -> Path:
    """The archive written anew, each record changed or, for None, left out."""
    with zipfile.ZipFile(path) as source:
        records = [(name, source.read(name)) for name in source.namelist()]
    with zipfile.ZipFile(path, "w", **options) as target:
        for name, data in records:
            changed = change(name.partition("/")[2], data)
            if changed is not None:
                target.writestr(name, changed)
    return path


def test_an_archive_packed_anew_is_read(tmp_path: Path) -> None:
    path = repacked(save(tmp_path / "x.pt", TENSORS), lambda name, data: data)
    assert repr(read_torch_file(path)) == repr(TENSORS)


def test_records_that_lie_are_refused(tmp_path: Path) -> None:
    def check(said: str, change: Callable[[str, bytes], bytes | None], **options: Any) -> None:
        path = repacked(save(tmp_path / "x.pt", {"w": torch.zeros(4)}), change, **options)
        assert said in str(refused(path))

    def program(old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
        def change(name: str, data: bytes) -> bytes:
            assert name != "data.pkl" or old in data
            return data.replace(old, new) if name == "data.pkl" else data

        return change

    check("is compressed", lambda name, data: data, compression=zipfile.ZIP_DEFLATED)
    check("not resizable", program(b"K\x04\x85", b"K\xf4\x85"))
    check("not resizable", program(b"QK\x00K\x04", b"QK\x04K\x04"))
    check("torch.load: ", lambda name, data: None if name == "data/0" else data)
    check("overflowed", program(b"K\x01\x85", b"J\xff\xff\xff\xff\x85"))
    check("there is no data.pkl", lambda name, data: None if name == "data.pkl" else data)
    check("torch.load: ", lambda name, data: b"\x80\x02]a." if name == "data.pkl" else data)
    check("torch.load: ", lambda name, data: pickle.dumps(print) if name == "data.pkl" else data)
    check("torch.load: ", lambda name, data: None if name == "version" else data)
    check("the pickle is broken", lambda name, data: data[:-1] if name == "data.pkl" else data)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("claim", ["storage", "shape", "bytearray", "tensor", "unstored", "text"])
def test_a_claim_of_100_gb_costs_no_memory(tmp_path: Path, claim: str, legacy: bool) -> None:
    """25 billion numbers, in a file of a kilobyte."""
    many = b"\x8a\x05" + (25 * 10**9).to_bytes(5, "little")  # LONG1
    n_items = b"K\x04Ntq" if legacy else b"K\x04tq"
    old, new = {
        "storage": (n_items, n_items.replace(b"K\x04", many)),
        "shape": (b"K\x04\x85", many + b"\x85"),
        "bytearray": (b"K\x4d", b"c__builtin__\nbytearray\n" + many + b"\x85R"),
        "unstored": (b"K\x4d", b"ctorch\nFloatTensor\n\x8a\x04" + (10**6).to_bytes(4, "little") + b"\x85R"),
        "text": (b"K\x4d", b"\x8d" + (10**11).to_bytes(8, "little")),
        "tensor": (b"K\x4d", b"ctorch\nFloatTensor\n" + many + b"\x85R"),
    }[claim]
    path = save(tmp_path / "x.pt", {"w": torch.arange(4.0), "n": 77}, legacy=legacy)
    if legacy:
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new))
    else:
        repacked(path, lambda name, data: data.replace(old, new) if name == "data.pkl" else data)
    before = psutil.Process().memory_info().rss
    if claim == "storage" and not legacy:  # the tensor itself is where it says, and mapped
        assert read_torch_file(path)["w"].tolist() == [0, 1, 2, 3]
    else:
        refused(path)
    assert psutil.Process().memory_info().rss - before < 100 << 20


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncation_is_refused(tmp_path: Path, legacy: bool) -> None:
    path = save(tmp_path / "x.pt", TENSORS, legacy=legacy)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 37), len(whole) - 1}:
        path.write_bytes(whole[:length])
        refused(path)


def test_a_flipped_bit_anywhere_in_a_record_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", TENSORS)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        (member,) = [m for m in archive.infolist() if m.filename.endswith("data/0")]
    start = whole.index(TENSORS["a.weight"].numpy().tobytes())
    for at in range(start, start + member.file_size, 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        assert "Bad CRC-32" in refused(path).why


def test_a_record_that_torch_skips_is_read(tmp_path: Path) -> None:
    """Marked as a folder by one bit, a record is not read by torch unless it is mapped: it returns what
    happens to lie in memory.
    """
    kept = torch.ones(50_000)  # freed, its memory would be what torch finds
    path = save(tmp_path / "x.pt", {"w": kept})
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = 0x10 if name.endswith("/data/0") else 0
            archive.writestr(member, data)
    assert not torch.equal(torch.load(path, weights_only=True)["w"], kept)
    assert torch.equal(read_torch_file(path)["w"], kept)


def test_overlapping_records_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"w": torch.zeros(100)})
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
        first = archive.getinfo("x/data/0")
        for copy in range(50):  # the directory names the same bytes again and again
            again = zipfile.ZipInfo(f"x/data/{copy + 1}")
            again.header_offset, again.CRC = first.header_offset, first.CRC
            again.file_size = again.compress_size = first.file_size
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    path.write_bytes(out.getvalue())
    assert "overlap" in refused(path).why


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("folder", "directory"),
        ("fifo", "not a regular file"),
        ("loop", "symbolic links"),
        ("none", "no such file"),
    ],
)
def test_no_hang_on_what_is_no_file(tmp_path: Path, what: str, said: str) -> None:
    path = tmp_path / "x.pt"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "loop":
        path.symlink_to(path)
    assert said in refused(path).what
    with pytest.raises(InputError):
        read_torch_file(Path("/dev/zero"))


def test_another_file_is_no_file_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for content in (b"", b"\x80\x04N.", b"GGUF" + bytes(50)):
        path.write_bytes(content)
        assert "is not a file written by torch.save" in refused(path).what
        with open(path, "rb") as file:
            assert not is_torch_file(path, file)


def test_old_files_whose_storages_lie_are_refused(tmp_path: Path) -> None:
    value = {"w": torch.arange(4.0), "v": torch.ones(4)}
    path = save(tmp_path / "x.pt", value, legacy=True)
    whole = path.read_bytes()
    length = struct.pack("<q", 4)
    path.write_bytes(whole.replace(length, struct.pack("<q", 2**40), 1))
    refused(path)
    # A storage's key is its address, of 14 digits or 15; a text in a pickle has its length before it.
    keys = [str(t.untyped_storage()._cdata).encode() for t in value.values()]
    first, second = sorted((struct.pack("<I", len(key)) + key for key in keys), key=whole.rindex)
    at = whole.rindex(second)
    path.write_bytes(whole[:at] + first + whole[at + len(second) :])
    assert not torch.load(path, weights_only=True)["w"].isnan().all()  # torch reads it, and one is noise
    assert "listed twice" in refused(path).why


def test_lack_of_memory_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.pt", TENSORS)

    def load(*args: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(MemoryError):
        read_torch_file(path)


@pytest.mark.parametrize(
    "error", [pickle.UnpicklingError("x"), EOFError(), KeyError("x"), struct.error("x"), OverflowError("x")]
)
def test_whatever_torch_raises_becomes_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = save(tmp_path / "x.pt", TENSORS)

    def load(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(torch, "load", load)
    assert "torch.load: " in refused(path).why


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "is a int, not a tensor"),
        (torch.ones(2, dtype=torch.int32), "is int32"),
        (torch.ones(2, dtype=torch.complex64), "is complex64"),
        (torch.ones(2).to_sparse(), "is sparse"),
        (torch.ones(2, device="meta"), "without content"),
        (QUANTIZED, "quantized"),
        (torch.ones(0, 3), "is empty"),
        (torch.ones(1).expand(2**30), "repeats itself"),
    ],
)
def test_tensors_that_are_no_floating_numbers_are_named(value: Any, said: str) -> None:
    with pytest.raises(InputError, match="'w'") as caught:
        floating_tensors(Path("x.pt"), {"w": value})
    assert said in caught.value.what


def test_views_become_dense() -> None:
    whole = torch.arange(12.0, requires_grad=True).view(3, 4)
    found = floating_tensors(Path("x.pt"), {"turned": whole.T, "tied": whole, "again": whole})
    assert all(t.is_contiguous() and not t.requires_grad for t in found.values())
    assert torch.equal(found["turned"], whole.detach().T)
    assert found["tied"].data_ptr() == found["again"].data_ptr() == whole.data_ptr()
