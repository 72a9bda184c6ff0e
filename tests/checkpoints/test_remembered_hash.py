"""The remembered hash: when it is trusted, when not, and by which commands never."""

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt2cli import paths
from gpt2cli.checkpoints.folder import WEIGHTS, load_model, read_manifest, verify, write_manifest, write_model
from gpt2cli.checkpoints.safetensors_bytes import MOST, SETTLED_NS, Status, is_verified, look, remember
from gpt2cli.checkpoints.safetensors_file import read_tensors, write_tensors
from gpt2cli.convert.hf_folder import open_hugging_face
from gpt2cli.errors import InputError
from gpt2cli.files import open_regular
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.tokenizer.chars import Chars

TOKENIZER = Chars.from_text(["abcdefg\n"])
CONFIG = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=12, vocab_size=TOKENIZER.n_vocab)


class Hashes:
    """Counts how often a tensor file is hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        whole = hashlib.sha256

        def sha256(*data: bytes) -> object:
            self.n += 1
            return whole(*data)

        monkeypatch.setattr(hashlib, "sha256", sha256)

    def of(self, path: Path, sha256: str) -> int:
        before = self.n
        read_tensors(path, sha256, remembered=True)
        return self.n - before


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are old enough at once: the clock is a minute ahead of the disk's."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 60 * 10**9)


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "x.safetensors"
    return path, write_tensors(path, {"a": torch.arange(1000.0)}, {})


@pytest.fixture
def hashes(file: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Hashes:
    return Hashes(monkeypatch)


def status_of(path: Path) -> Status:
    with open_regular(path) as file:
        return look(file)


def flip_a_bit(path: Path) -> None:
    """Damage the data, and put everything back that a program can put back."""
    before = path.stat()
    whole = bytearray(path.read_bytes())
    whole[-7] ^= 4
    with open(path, "r+b") as file:  # not a new file: the same inode
        file.write(whole)
    while True:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if path.stat().st_ctime_ns != before.st_ctime_ns:  # the kernel's clock ticks every few ms
            break
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )


@pytest.mark.usefixtures("settled")
def test_an_untouched_file_is_hashed_once(file: tuple[Path, str], hashes: Hashes) -> None:
    assert [hashes.of(*file) for _ in range(3)] == [1, 0, 0]
    assert torch.equal(read_tensors(*file, remembered=True)["a"], torch.arange(1000.0))


@pytest.mark.usefixtures("settled")
def test_without_remembered_it_is_hashed_and_nothing_written(file: tuple[Path, str], hashes: Hashes) -> None:
    read_tensors(*file)
    assert hashes.n == 1 and not (paths.gpt2_home() / "verified").exists()
    assert [hashes.of(*file) for _ in range(2)] == [1, 0]
    read_tensors(*file)
    assert hashes.n == 3


@pytest.mark.usefixtures("settled")
def test_a_flipped_bit_is_found_though_its_mtime_was_put_back(file: tuple[Path, str], hashes: Hashes) -> None:
    path, sha256 = file
    assert hashes.of(path, sha256) == 1
    flip_a_bit(path)
    for _ in range(2):
        with pytest.raises(InputError, match="changed since it was written"):
            read_tensors(path, sha256, remembered=True)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", ["copied", "renamed over", "linked", "touched"])
def test_another_file_under_the_same_name_is_hashed(
    change: str, file: tuple[Path, str], hashes: Hashes, tmp_path: Path
) -> None:
    path, sha256 = file
    assert hashes.of(path, sha256) == 1
    before, other = path.stat(), tmp_path / "other"
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    match change:
        case "copied":
            path.unlink()
            path.write_bytes(other.read_bytes())
        case "renamed over":
            os.replace(other, path)
        case "linked":
            path.unlink()
            path.symlink_to(other)
        case "touched":
            while path.stat().st_mtime_ns == before.st_mtime_ns:
                os.utime(path)
    assert [hashes.of(path, sha256) for _ in range(2)] == [1, 0]


@pytest.mark.usefixtures("settled")
def test_another_hash_is_not_believed(file: tuple[Path, str], hashes: Hashes) -> None:
    path, sha256 = file
    assert hashes.of(path, sha256) == 1
    with pytest.raises(InputError, match="changed since it was written"):
        read_tensors(path, "0" * 64, remembered=True)
    assert not is_verified(status_of(path), f"{sha256}\n")
    assert hashes.of(path, sha256) == 0


def test_a_young_file_is_hashed_each_time(
    file: tuple[Path, str], hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() - 60 * 10**9)  # however slow this machine is
    assert [hashes.of(*file) for _ in range(3)] == [1, 1, 1]


def test_a_file_is_young_for_two_seconds_before_it_is_hashed() -> None:
    status = Status(1, 2, 3, mtime_ns=0, ctime_ns=10**18, seen_ns=10**18 + SETTLED_NS - 1)
    remember(status, "a" * 64)
    assert not is_verified(status, "a" * 64)
    # mtime plays no part: any program can set it.
    remember(replace(status, mtime_ns=2 * 10**18, seen_ns=status.seen_ns + 1), "a" * 64)
    assert is_verified(replace(status, mtime_ns=2 * 10**18), "a" * 64)
    for name in ("device", "inode", "size", "mtime_ns", "ctime_ns"):
        assert not is_verified(replace(status, **{"mtime_ns": 2 * 10**18, name: 7}), "a" * 64)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("is_known", [True, False])
def test_a_change_while_it_is_read_is_noticed(
    is_known: bool, file: tuple[Path, str], hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sha256 = file
    if is_known:
        assert hashes.of(path, sha256) == 1
    read, flips = os.preadv, ["before"]

    def preadv(descriptor: int, parts: list[memoryview], offset: int) -> int:
        if "before" in flips:
            flips.clear()
            flip_a_bit(path)
        n_read = read(descriptor, parts, offset)
        if "after" in flips:
            flips.clear()
            flip_a_bit(path)
        return n_read

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(InputError, match="changed since it was written"):
        read_tensors(path, sha256, remembered=True)
    flip_a_bit(path)  # as it was
    flips.append("after")
    assert hashes.of(path, sha256) == 1  # what was read was right, but it is not remembered
    assert not flips and not is_verified(status_of(path), sha256)


@pytest.mark.usefixtures("settled")
def test_a_home_that_cannot_be_written_means_hashing_each_time(
    file: tuple[Path, str], hashes: Hashes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "not-a-folder").write_text("")
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "not-a-folder" / "home"))
    assert [hashes.of(*file) for _ in range(2)] == [1, 1]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("kind", ["noise", "folder", "fifo", "link to itself"])
def test_a_damaged_table_means_hashing(kind: str, file: tuple[Path, str], hashes: Hashes) -> None:
    assert [hashes.of(*file) for _ in range(2)] == [1, 0]
    table = paths.gpt2_home() / "verified" / "files.txt"
    line = table.read_bytes()
    table.unlink()
    match kind:
        case "noise":
            table.write_bytes(b"\xff\0\n\n" + line[:-9] + b"\r" + line[-8:])
        case "folder":
            table.mkdir()
        case "fifo":
            os.mkfifo(table)
        case "link to itself":
            table.symlink_to(table)
    mended = 0 if kind in ("noise", "fifo") else 1  # a folder or a broken link stays what it is
    assert [hashes.of(*file) for _ in range(2)] == [1, mended]


@pytest.mark.usefixtures("settled")
def test_the_table_keeps_the_newest() -> None:
    every = [Status(1, number, 3, 4, 5, seen_ns=5 + SETTLED_NS) for number in range(MOST + 2)]
    for status in every:
        remember(status, "a" * 64)
    assert [is_verified(status, "a" * 64) for status in every] == [False] * 2 + [True] * MOST
    remember(replace(every[4], ctime_ns=8, seen_ns=8 + SETTLED_NS), "b" * 64)  # one line per file
    assert not is_verified(every[4], "a" * 64) and is_verified(every[2], "a" * 64)


@pytest.mark.usefixtures("settled")
def test_what_proves_something_hashes(tmp_path: Path) -> None:
    """The table is made to lie, as nothing but a disk's fault could: only `remembered` believes it."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_manifest(folder, write_model(folder, new_model(CONFIG, 1), TOKENIZER, ""))
    flip_a_bit(folder / WEIGHTS)
    remember(status_of(folder / WEIGHTS), read_manifest(folder)[WEIGHTS])
    load_model(folder, remembered=True)
    for prove in (load_model, verify):
        with pytest.raises(InputError, match="changed since it was written"):
            prove(folder)
    with pytest.raises(InputError, match="changed since it was written"), open_hugging_face(folder):
        pass
