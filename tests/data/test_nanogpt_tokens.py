"""nanoGPT's token files: the same text as nanoGPT's own tokenizers give back, and nothing is run."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2cli.data.prepare_settings import prepare_command
from gpt2cli.data.token_dataset import open_dataset
from gpt2cli.errors import InputError, UsageError
from gpt2cli.tokenizer.bpe import gpt2

Run = Callable[..., list[Any]]
TEXT = "the sea is grey, and the boat\nis out. " * 20


def write(folder: Path, train: list[int], validation: list[int], meta: Any = None) -> Path:
    folder.mkdir()
    np.array(train, np.uint16).tofile(folder / "train.bin")
    np.array(validation, np.uint16).tofile(folder / "val.bin")
    if meta is not None:
        (folder / "meta.pkl").write_bytes(meta if isinstance(meta, bytes) else pickle.dumps(meta))
    return folder


def decoded(folder: Path) -> tuple[str, str]:
    with open_dataset(folder) as data:
        parts = [split.read(0, split.n_tokens).tolist() for split in (data.train, data.validation)]
        return data.tokenizer.decode(parts[0]), data.tokenizer.decode(parts[1])


def test_ids_of_gpt2(run: Run, tmp_path: Path) -> None:
    ids = [*gpt2().encode(TEXT), 50256]
    nano = write(tmp_path / "nano", ids, ids[:9])
    last = run([nano], tmp_path / "out")[-1]
    assert (last.phase, last.n_tokens, last.n_validation_tokens) == ("done", len(ids) + 9, 9)
    assert (last.n_documents, last.n_bytes) == (2, len(TEXT) + len(gpt2().decode(ids[:9])))
    assert decoded(tmp_path / "out") == (TEXT + "<|endoftext|>", gpt2().decode(ids[:9]))
    assert run([nano], tmp_path / "out")[-1].phase == "nothing to do"
    with open_dataset(tmp_path / "out") as data:
        assert f"prepare {nano} --shard-tokens 100000 --block" in prepare_command(
            data.manifest, tmp_path / "out"
        )
    write(tmp_path / "other", ids[5:], ids[:9])
    for name in ("train.bin", "val.bin"):
        (tmp_path / "other" / name).replace(nano / name)
    with pytest.raises(InputError, match=r"train.bin: changed"):
        run([nano], tmp_path / "out")


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_characters_by_meta(run: Run, tmp_path: Path, is_sorted: bool, protocol: int) -> None:
    characters = sorted(set(TEXT), reverse=not is_sorted)
    numbers = {c: i for i, c in enumerate(characters)}
    table = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": numbers}
    ids = [numbers[c] for c in TEXT]
    nano = write(tmp_path / "nano", ids[:-50], ids[-50:], pickle.dumps(table, protocol))
    run([nano], tmp_path / "out", tokenizer="chars")
    assert decoded(tmp_path / "out") == (TEXT[:-50], TEXT[-50:])


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("canary",)


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"itos": Evil()}, "wants to run code"),
        (b"cos\nmkdir\n(S'canary'\ntR.", "wants to run code"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "damaged"),  # a memo of two billion
        (b"\x80\x02X\xff\xff\xff\x7fa.", "damaged"),  # a text of two gigabytes
        (b"", "damaged"),
        ([1, 2], "no table"),
        ({"itos": {0: "ab", 1: "c"}}, "no table of characters"),
        ({"itos": {0: "a", 1: "a"}}, "no table of characters"),
        ({"stoi": {"a": 0}}, "no table of characters"),
        ({"itos": {0: "a", 1: "b"}}, "token 2 is 7"),
    ],
)
def test_another_meta_is_refused_and_never_run(run: Run, tmp_path: Path, meta: Any, said: str) -> None:
    nano = write(tmp_path / "nano", [0, 1, 7], [0], meta)
    with pytest.raises(InputError, match=said):
        run([nano], tmp_path / "out")
    assert not Path("canary").exists()


def test_what_tokens_cannot_have(run: Run, tmp_path: Path) -> None:
    nano = write(tmp_path / "nano", [1, 2, 3], [4])
    for settings in ({"split_on": "x"}, {"encoding": "cp1252"}, {"tokenizer": "chars"}):
        with pytest.raises(UsageError, match="nano: "):
            run([nano], tmp_path / "out", **settings)
    (nano / "val.bin").write_bytes(b"\1\0\2")
    with pytest.raises(InputError, match=r"val.bin: ends within a token"):
        run([nano], tmp_path / "out")
    (nano / "val.bin").write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match=r"val.bin: token 0 is 65535") as caught:
        run([nano], tmp_path / "out")
    assert "meta.pkl" in caught.value.fix


def test_half_a_folder_and_tokens_of_four_bytes_are_named(run: Run, tmp_path: Path) -> None:
    ids = gpt2().encode(TEXT)
    nano = write(tmp_path / "nano", ids, ids[:9])
    (nano / "val.bin").unlink()
    for source in (nano, nano / "train.bin"):
        with pytest.raises(InputError) as caught:
            run([source], tmp_path / "out")
        assert str(source) in caught.value.what and caught.value.fix == "put val.bin there, too"
    wide = write(tmp_path / "wide", ids, ids[:9])
    for name in ("train.bin", "val.bin"):
        np.fromfile(wide / name, np.uint16).astype(np.uint32).tofile(wide / name)
    with pytest.raises(InputError, match=r"train\.bin: has four bytes") as caught:
        run([wide], tmp_path / "out")
    assert "uint16" in caught.value.fix
