"""Unpacking zips of other people: what a model needs comes out, nothing leaves the folder, nothing stays."""

import os
import shutil
import stat
import struct
import tempfile
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2cli.convert.zip_folder import unpacked
from gpt2cli.errors import InputError, ResourceError


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's place for temporary files, to look at afterwards."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def refused(path: Path) -> InputError:
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(InputError) as caught, unpacked(path):
        pass
    assert sorted(path.parent.rglob("*")) == before, "something was left"
    return caught.value


def test_what_a_model_needs_comes_out_and_is_gone_afterwards(tmp_path: Path, temporary: Path) -> None:
    weights = os.urandom(3 << 20)
    path = zipped(
        tmp_path / "download.zip",
        {
            "gpt2/124M/": b"",
            "gpt2/124M/hparams.json": b"{}",
            "gpt2/124M/model.ckpt.data-00000-of-00001": weights,
            "gpt2/124M/checkpoint": b"model",
            "gpt2/124M/vocab.bpe": b"x",
            "gpt2/readme.md": b"text",
            "gpt2/inner.zip": b"PK",
            "gpt2/run.py": b"import os",
            "__MACOSX/gpt2/._hparams.json": b"junk",
        },
    )
    with unpacked(path) as folder:
        assert folder.parent == temporary
        found = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        assert [name.removeprefix("gpt2/124M/") for name in found] == [
            "checkpoint",
            "hparams.json",
            "model.ckpt.data-00000-of-00001",
            "vocab.bpe",
        ]
        assert (folder / "gpt2/124M/model.ckpt.data-00000-of-00001").read_bytes() == weights
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit(143), ValueError("x")])
def test_nothing_stays_however_it_ends(
    tmp_path: Path, temporary: Path, interruption: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "x.zip", {"a.json": b"{}", "b.json": b"{}"})
    with pytest.raises((KeyboardInterrupt, SystemExit, ValueError)), unpacked(path):
        assert list(temporary.iterdir())
        raise interruption
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    "name", ["../x.json", "a/../../x.json", "/etc/x.json", "a//x.json", "./x.json", ".."]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "x.zip", {"config.json": b"{}", "N" * len(name.encode()): b"{}"})
    content = path.read_bytes().replace(b"N" * len(name.encode()), name.encode())
    path.write_bytes(content)
    error = refused(path)
    assert "not safe to unpack" in error.what and "\x1b" not in str(error)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    member = zipfile.ZipInfo("config.json")
    member.create_system, member.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(member, "/etc/passwd")
    assert "a link or a device" in refused(tmp_path / "x.zip").why


def test_two_members_that_want_one_place_are_refused(tmp_path: Path) -> None:
    zipped(tmp_path / "x.zip", {"a.json": b"{}", "a.json/config.json": b"{}"})
    assert "damaged" in refused(tmp_path / "x.zip").what


def test_bombs_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a.bin": bytes(65 << 20)})
    assert path.stat().st_size < 1 << 20
    assert "a zip bomb" in refused(path).why
    # No single member is too large, all of them are.
    zipped(path, {f"{n}.bin": bytes(5 << 20) for n in range(14)})
    assert "a zip bomb" in refused(path).why


def test_a_member_larger_than_it_says_ends_at_what_it_says(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a.json": b"0123456789" * 100})
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    for said in (999, 10):
        lying = data[:start] + data[start:].replace(struct.pack("<L", 1000), struct.pack("<L", said), 1)
        path.write_bytes(lying)
        assert "damaged" in refused(path).what


def test_encrypted_and_strange_methods_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"config.json": b"{}"})
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    path.write_bytes(data[: start + 8] + b"\x01" + data[start + 9 :])
    assert "encrypted" in refused(path).what
    path.write_bytes(data[: start + 10] + b"\x61\x00" + data[start + 12 :])
    assert "compression method is not supported" in refused(path).why


def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path) -> None:
    members = {"gpt2/config.json": b'{"n_layer": 12}' * 3, "gpt2/vocab.bpe": os.urandom(60)}
    path = zipped(tmp_path / "x.zip", members)
    whole = path.read_bytes()
    n_refused = 0
    places = range(0, len(whole), 2)
    damaged = [whole[:at] for at in places]
    damaged += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in places]
    for content in damaged:
        path.write_bytes(content)
        try:
            with unpacked(path) as folder:
                for name, data in members.items():
                    found = folder / name
                    assert not found.exists() or found.read_bytes() == data
        except InputError:
            n_refused += 1
    assert n_refused > 0.5 * len(damaged)


def test_a_zip_without_a_model_says_what_was_looked_for(tmp_path: Path) -> None:
    error = refused(zipped(tmp_path / "x.zip", {"readme.md": b"", ".hidden.json": b""}))
    assert "holds no model" in error.what and "*.safetensors" in error.why
    assert "holds no model" in refused(zipped(tmp_path / "y.zip", {})).what


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_noticed_before_and_the_other_place_taken(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "x.zip", {"config.json": b"{}" * 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1, 1, 10**9 if place == tmp_path else 100))
    with unpacked(path) as folder:
        assert folder.parent == tmp_path
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tmp", "x.zip"]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1, 1, 100))
    with pytest.raises(ResourceError, match="no room to unpack 2,000 bytes") as caught, unpacked(path):
        pass
    assert "TMPDIR" in caught.value.fix


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: os.mkfifo(path)])
def test_no_hang_on_what_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.zip")
    with pytest.raises(InputError, match=r"x\.zip: is"), unpacked(tmp_path / "x.zip"):
        pass
