"""What is recognised, by content, and what an unknown thing is told."""

import contextlib
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import NANO_ARGS, BookGPT, NanoGPT, fill, nano_checkpoint
from loud import loud
from openai_checkpoint import TINY, imitate_checkpoint, weights

from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.checkpoints.safetensors_file import read_tensors
from gpt2cli.convert import detect_format
from gpt2cli.convert.detect_format import open_foreign
from gpt2cli.convert.foreign_model import ForeignModel
from gpt2cli.errors import InputError
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.tokenizer.bpe import gpt2

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32)
W = "transformer.h.1.attn.c_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in each format: ours/, hf/, ckpt.pt, book.pth, legacy.pt."""
    place = tmp_path_factory.mktemp("models")
    (place / "ours").mkdir()
    model = loud(new_model(CONFIG, 1))
    write_manifest(place / "ours", write_model(place / "ours", model, gpt2(), "task: pretrain\n"))
    shutil.copytree(place / "ours", place / "hf")
    (place / "hf/manifest.json").unlink()
    nano = fill(NanoGPT(**NANO_ARGS))
    assert isinstance(nano, NanoGPT)
    torch.save(nano_checkpoint(nano), place / "ckpt.pt")
    torch.save(nano_checkpoint(nano), place / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(nano.state_dict(), place / "bare.pt")
    torch.save(fill(BookGPT()).state_dict(), place / "book.pth")
    return place


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that were taken for OpenAI's, which another test reads in earnest."""
    folders: list[Path] = []

    @contextlib.contextmanager
    def open_openai(folder: Path) -> Iterator[ForeignModel]:
        folders.append(folder)
        raise InputError(f"{folder}: was opened")
        yield

    monkeypatch.setattr(detect_format, "open_openai", open_openai)
    return folders


def refused(path: Path, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught, open_foreign(path, **options):
        pass
    return caught.value


def zip_of(path: Path, folder: Path, *names: str, below: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names or sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()):
            file.write(folder / name, f"{below}{name}")
    return path


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("ours", "huggingface"),  # a copy elsewhere; a run's is below
        ("hf", "huggingface"),
        ("hf/model.safetensors", "huggingface"),
        ("ckpt.pt", "nanogpt"),
        ("legacy.pt", "nanogpt"),
        ("bare.pt", "nanogpt"),
        ("book.pth", "llms-from-scratch"),
    ],
)
def test_each_format_is_recognised(models: Path, name: str, format: str) -> None:
    with open_foreign(models / name, n_head=2) as source:
        assert source.format == format and source.config.n_head == 2
        assert source.tensors[W].load().shape == (16, 16)


@pytest.mark.parametrize("name", ["ckpt.pt", "legacy.pt", "book.pth"])
def test_the_name_of_a_checkpoint_says_nothing(models: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(models / name, tmp_path / "model.zip")
    with (
        open_foreign(models / name, n_head=2) as source,
        open_foreign(tmp_path / "model.zip", n_head=2) as other,
    ):
        assert source.format == other.format
        assert torch.equal(source.tensors[W].load(), other.tensors[W].load())


def test_a_pickle_is_read_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: calls.append(a) or load(*a, **k))
    with open_foreign(models / "ckpt.pt"):
        pass
    assert len(calls) == 1


def test_a_folder_with_one_checkpoint_is_that_checkpoint(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out-shakespeare"
    folder.mkdir()
    shutil.copy(models / "ckpt.pt", folder)
    for path in (folder, tmp_path):
        with open_foreign(path) as source:
            assert source.format == "nanogpt" and source.path == folder / "ckpt.pt"
    shutil.copy(models / "book.pth", folder)
    error = refused(folder)
    assert "several models" in error.what and error.why == "book.pth, ckpt.pt"
    assert error.fix == f"gpt2 convert {folder}/book.pth"


def test_a_run_is_its_best_checkpoint(models: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        shutil.copytree(models / "ours", tmp_path / f"runs/x/checkpoints/step-{step:06}")
    (tmp_path / "runs/x/best").symlink_to("checkpoints/step-000001")
    with open_foreign(tmp_path / "runs/x") as source:
        assert source.path.name == "step-000001" and source.format == "gpt2cli"


def openai_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("hparams.json", "model.ckpt.index", "vocab.bpe", "encoder.json", "checkpoint"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("place", ["", "124M", "gpt2/124M", "data/openai/124M"])
def test_openais_files_are_found_some_folders_down(tmp_path: Path, opened: list[Path], place: str) -> None:
    folder = openai_folder(tmp_path / "download" / place)
    refused(tmp_path / "download")
    assert opened == [folder]
    opened.clear()
    path = zip_of(tmp_path / "x.zip", tmp_path / "download")
    error = refused(path)
    assert str(opened[0]).endswith(place) and not opened[0].exists()
    assert error.what == f"{path}{'/' * bool(place)}{place}: was opened"  # no word of the temporary folder


def test_further_down_nothing_is_looked_for(tmp_path: Path, opened: list[Path]) -> None:
    openai_folder(tmp_path / "x/1/2/3/4")
    assert "holds no known model" in refused(tmp_path / "x").what and not opened


def test_hparams_alone_are_openais_with_something_missing(tmp_path: Path, opened: list[Path]) -> None:
    (openai_folder(tmp_path / "x") / "model.ckpt.index").unlink()
    refused(tmp_path / "x")
    assert opened == [tmp_path / "x"]


def test_several_models_are_listed(tmp_path: Path, opened: list[Path]) -> None:
    for size in ("355M", "124M"):
        openai_folder(tmp_path / "download" / size)
    error = refused(tmp_path / "download")
    assert "several models" in error.what and error.why == "124M, 355M"
    assert error.fix == f"gpt2 convert {tmp_path / 'download'}/124M"
    path = zip_of(tmp_path / "x.zip", tmp_path / "download")
    error = refused(path)
    assert error.what == f"{path}: holds several models"
    assert error.fix == f"unzip {path} -d FOLDER, then gpt2 convert FOLDER/124M"


def test_a_zip_as_kaggle_gives_it(tmp_path: Path, temporary: Path) -> None:
    folder = imitate_checkpoint(tmp_path / "124M")
    path = zip_of(tmp_path / "archive.zip", folder, below="gpt2/124M/")
    with open_foreign(path) as source:
        assert source.format == "openai-tf" and source.path == path and source.files[0] == path
        truth = dict(weights(TINY))
        for name, tensor in source.tensors.items():
            wanted = torch.from_numpy(truth[tensor.source].reshape(tensor.shape))
            assert torch.equal(tensor.load(), wanted), name
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("name", ["ours", "hf", "ckpt.pt", "book.pth"])
def test_a_zip_of_each_format(models: Path, tmp_path: Path, temporary: Path, name: str) -> None:
    if (models / name).is_dir():
        path = zip_of(tmp_path / "x.zip", models / name, below="model/")
    else:
        path = zip_of(tmp_path / "x.zip", models, name)
    with open_foreign(path, n_head=2) as source, open_foreign(models / name, n_head=2) as plain:
        assert source.format == plain.format and source.path == path
        for tensor in plain.tensors:
            assert torch.equal(source.tensors[tensor].load(), plain.tensors[tensor].load())
    assert not list(temporary.iterdir())


def test_weights_without_their_folder(models: Path, tmp_path: Path) -> None:
    """Without a config.json the number of heads must be told."""
    shutil.copy(models / "hf/model.safetensors", tmp_path)
    state = read_tensors(models / "hf/model.safetensors")
    for path in (tmp_path / "model.safetensors", tmp_path):  # a folder of weights alone is the same
        assert "--n-head" in refused(path).fix
        with open_foreign(path, n_head=2) as source:
            assert source.format == "huggingface" and torch.equal(source.tensors[W].load(), state[W])
            assert any("no config.json" in note for note in source.notes)
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    shutil.copy(models / "hf/config.json", tmp_path)
    for path in (tmp_path / "pytorch_model.bin", tmp_path):
        with open_foreign(path) as source:
            assert source.format == "huggingface" and torch.equal(source.tensors[W].load(), state[W])
            assert source.config.n_head == 2 and not any("no config.json" in note for note in source.notes)


def test_what_is_no_source_says_what_it_is(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "thing"

    def said(content: bytes) -> str:
        path.write_bytes(content)
        error = refused(path)
        return f"{error.what} | {error.why} | {error.fix}"

    assert "GGUF is an export only" in said(b"GGUF\x03\0\0\0" + bytes(50))
    assert "a pickle that torch.save did not write" in said(pickle.dumps({"stoi": {}}))
    assert "begins with 68 65 6c 6c 6f" in said(b"hello")
    assert "begins with nothing; known are OpenAI's" in said(b"")
    assert "holds no model" in said(b"PK\x05\x06" + bytes(18))
    assert "the zip is damaged" in said(b"PK\x03\x04" + bytes(50))
    torch.save({"net.0.weight": torch.ones(2)}, path)
    assert "it holds net.0.weight" in refused(path).why
    torch.save([1, 2], path)
    assert "it holds a list" in refused(path).why
    assert "one part of a model" in refused(models / "hf/config.json").what
    assert refused(models / "hf/vocab.json").fix == f"gpt2 convert {models / 'hf'}"
    assert "no such file" in refused(tmp_path / "missing").what
    (tmp_path / "empty").mkdir()
    assert "holds no known model" in refused(tmp_path / "empty").what


def test_folders_that_contain_themselves_do_not_go_on_for_ever(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/again").symlink_to(tmp_path / "x")
    assert "holds no known model" in refused(tmp_path / "x").what
