"""Reading a prepared folder: across files, and every kind of damage before and after opening."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2cli.data.prepare_pipeline import PrepareProgress
from gpt2cli.data.token_dataset import open_dataset
from gpt2cli.errors import InputError, NewerFormatError


@pytest.fixture
def folder(tmp_path: Path, run: Callable[..., list[PrepareProgress]], words: Callable[[int], str]) -> Path:
    (tmp_path / "a.txt").write_text(words(400), encoding="utf-8")
    run([tmp_path / "a.txt"], tmp_path / "out", shard_tokens=100)
    return tmp_path / "out"


def test_read_is_a_slice_of_all_files_together(folder: Path) -> None:
    files = sorted(folder.glob("train-*.bin"))
    assert len(files) > 5
    whole = np.concatenate([np.fromfile(path, "<u2") for path in files])
    with open_dataset(folder) as data:
        assert data.train.n_tokens == len(whole)

        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.integers(0, len(whole)), st.integers(0, len(whole)))
        def check(start: int, n: int) -> None:
            n = min(n, len(whole) - start)
            ids = data.train.read(start, n)
            assert ids.dtype == np.int64
            assert ids.tolist() == whole[start : start + n].tolist()

        check()
        for start, n in ((-1, 1), (0, len(whole) + 1), (len(whole), 1), (5, -1)):
            with pytest.raises(IndexError):
                data.train.read(start, n)


def damage(folder: Path, kind: str) -> None:
    path = folder / "train-00002.bin"
    content = bytearray(path.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    match kind:
        case "truncated":
            path.write_bytes(content[:-2])
        case "odd":
            path.write_bytes(content[:-1])
        case "longer":
            path.write_bytes(content + b"\0\0")
        case "flipped":
            content[50] ^= 1
            path.write_bytes(content)
        case "missing":
            path.unlink()
        case "directory":
            path.unlink()
            path.mkdir()
        case "id":
            content[50:52] = (50257).to_bytes(2, "little")
            path.write_bytes(content)
            # Even where the manifest vouches for it.
            manifest["train"][2]["sha256"] = hashlib.sha256(content).hexdigest()
            (folder / "manifest.json").write_text(json.dumps(manifest))
        case "tokenizer":
            manifest["fingerprint"] = "0" * 64
            (folder / "manifest.json").write_text(json.dumps(manifest))
        case "outside":
            manifest["train"][2]["file"] = "../train-00002.bin"
            (folder / "manifest.json").write_text(json.dumps(manifest))
        case "json":
            (folder / "manifest.json").write_text("{")
        case "list":
            (folder / "manifest.json").write_text("[]")
        case "key":
            del manifest["dtype"]
            (folder / "manifest.json").write_text(json.dumps(manifest))
        case "version":
            manifest["version"] = 99
            (folder / "manifest.json").write_text(json.dumps(manifest))
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "unfinished":
            (folder / "manifest.json").rename(folder / "journal.json")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", r"train-00002\.bin: damaged: wrong size"),
        ("odd", r"train-00002\.bin: damaged: wrong size"),
        ("longer", r"train-00002\.bin: damaged: wrong size"),
        ("flipped", r"train-00002\.bin: damaged: its content changed"),
        ("missing", r"train-00002\.bin: no such file"),
        ("directory", r"train-00002\.bin: is a directory"),
        ("id", r"train-00002\.bin: holds the id 50257"),
        ("tokenizer", "its tokenizer is not the one"),
        ("outside", r"manifest\.json: damaged"),
        ("json", r"manifest\.json:1: is not JSON"),
        ("list", r"manifest\.json: is not a JSON object"),
        ("key", r"manifest\.json: damaged"),
        ("no manifest", "is not a prepared folder"),
        ("unfinished", "its preparation was interrupted"),
    ],
)
def test_damage_is_found_when_the_folder_is_opened(kind: str, message: str, folder: Path) -> None:
    open_dataset(folder).close()
    damage(folder, kind)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InputError, match=message):
        open_dataset(folder)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_later_format_is_no_damage(folder: Path) -> None:
    damage(folder, "version")
    with pytest.raises(NewerFormatError, match="newer gpt2cli, in format 99"):
        open_dataset(folder)


def test_an_odd_size_is_said_to_be_odd(folder: Path) -> None:
    damage(folder, "odd")
    with pytest.raises(InputError) as caught:
        open_dataset(folder)
    assert caught.value.why == "199 bytes, not 200"


def test_changes_under_an_open_folder_are_errors_and_not_a_crash(folder: Path) -> None:
    with open_dataset(folder) as data:
        expected = data.train.read(200, 100).tolist()
        replaced = folder / "train-00002.bin"
        other = folder / "other"
        other.write_bytes(b"\0" * 200)
        os.replace(other, replaced)  # the open file is still the old one
        assert data.train.read(200, 100).tolist() == expected
        os.truncate(folder / "train-00001.bin", 100)
        assert len(data.train.read(100, 50)) == 50
        with pytest.raises(InputError, match=r"train-00001\.bin: truncated since it was opened"):
            data.train.read(100, 51)
        with open(folder / "train-00003.bin", "r+b") as file:
            file.write(b"\xff\xff")
        with pytest.raises(InputError, match=r"train-00003\.bin: changed since it was opened: id 65535"):
            data.train.read(290, 20)
