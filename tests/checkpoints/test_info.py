"""What is said of a folder, against what transformers, numpy and safetensors say of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from loud import loud
from safetensors.numpy import load_file, save_file

from gpt2cli.checkpoints import info as module
from gpt2cli.checkpoints.folder import load_model, write_manifest, write_model
from gpt2cli.checkpoints.info import modules_of, nearest_size, read_model_info, statistics, tensor_statistics
from gpt2cli.errors import InputError
from gpt2cli.model.config import PRESETS, GPT2Config, size_of
from gpt2cli.model.gpt2 import new_model
from gpt2cli.model.layers import KVCache
from gpt2cli.tokenizer.chars import Chars

CHARS = Chars.from_text("some characters")
CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=24, vocab_size=CHARS.n_vocab)


def save(folder: Path, config: GPT2Config = CONFIG) -> Path:
    folder.mkdir()
    model = loud(new_model(config, 1))
    write_manifest(folder, write_model(folder, model, CHARS, "task: pretrain\n"))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "model")


def foreign(folder: Path) -> Path:
    (folder / "manifest.json").unlink()
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_modules_are_those_of_transformers(tied: bool, tmp_path: Path) -> None:
    config = replace(CONFIG, tie_word_embeddings=tied, n_inner=40)
    ours = read_model_info(save(tmp_path / "model", config))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(ours.folder)
    assert ours.n_parameters == sum(p.numel() for p in theirs.parameters())  # a shared one comes once
    reference = dict(theirs.named_modules())
    with_weight = [name for name, m in reference.items() if list(m.parameters(recurse=False))]
    assert [m.name for m in ours.modules] == [name.removeprefix("transformer.") for name in with_weight]
    for mine, name in zip(ours.modules, with_weight, strict=True):
        weight, bias = reference[name].weight, getattr(reference[name], "bias", None)
        assert mine.stored == tuple(weight.shape), name
        assert mine.bias == (None if bias is None else tuple(bias.shape)), name
        assert mine.transposed == (type(reference[name]).__name__ == "Conv1D"), name
        assert mine.weight == (mine.stored[::-1] if mine.transposed else mine.stored), name
        counted = 0 if tied and name == "lm_head" else sum(p.numel() for p in reference[name].parameters())
        assert mine.n_parameters == counted, name


@pytest.mark.parametrize("size", ["124M", "355M"])  # model/test_gpt2.py knows the parameters of all
def test_openai_sizes(size: str) -> None:
    config = PRESETS[size]
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd)
        )
    assert sum(m.n_parameters for m in modules_of(config)) == theirs.num_parameters()
    assert nearest_size(config) == (size, ())
    assert nearest_size(replace(config, dropout=0.1)) == (size, ())
    short = replace(config, n_positions=256, tie_word_embeddings=False)
    assert nearest_size(short) == (size, ("n_positions", "tie_word_embeddings"))
    assert nearest_size(replace(config, n_layer=config.n_layer - 1)) is None
    assert nearest_size(replace(config, n_inner=64)) is None
    assert size_of(replace(config, dropout=0.1, n_inner=config.mlp_width)) == size
    for number in ("n_positions", "vocab_size", "n_layer"):
        assert size_of(replace(config, **{number: 7})) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_what_the_tensors_take(folder: Path, dtype: torch.dtype) -> None:
    summary, model = read_model_info(folder), load_model(folder).model.to(dtype)
    assert summary.weight_bytes(dtype.itemsize) == sum(p.nbytes for p in model.parameters())
    cache = KVCache(summary.config, 1, model.transformer.wpe.weight)
    n_bytes = sum(t.nbytes for t in [*cache.keys, *cache.values])
    assert summary.cache_bytes(dtype.itemsize, CONFIG.n_positions) == n_bytes
    assert summary.cache_bytes(dtype.itemsize) * CONFIG.n_positions == n_bytes


def test_what_the_files_are(folder: Path) -> None:
    summary = read_model_info(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    weights = manifest["files"]["model.safetensors"]
    assert summary.manifest is not None
    assert (summary.manifest.written_by, summary.manifest.n_files) == (manifest["written_by"], 6)
    assert (summary.manifest.sha256, summary.n_bytes) == (weights["sha256"], weights["bytes"])
    assert summary.dtypes == {"float32": len(load_file(folder / "model.safetensors"))}
    assert summary.tokenizer.fingerprint == CHARS.fingerprint
    assert read_model_info(foreign(folder)).manifest is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_of_tensors(folder: Path, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 100)  # most tensors come in several parts
    path = foreign(folder) / "model.safetensors"
    save_file({name: values.astype(dtype) for name, values in load_file(path).items()}, path)
    wanted = load_file(path)
    found = list(tensor_statistics(read_model_info(folder)))
    assert {tensor.name for tensor in found} == set(wanted)
    for tensor in found:
        values = wanted[tensor.name].astype(np.float64)
        assert (tensor.shape, tensor.dtype) == (values.shape, np.dtype(dtype).name)
        numbers = tensor.statistics
        assert (numbers.min, numbers.max) == (values.min(), values.max())
        assert numbers.mean == pytest.approx(values.mean(), abs=1e-13)
        assert numbers.std == pytest.approx(values.std(), rel=1e-12)


def test_a_spread_that_is_small_beside_its_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 1000)
    values = 1e8 + torch.randn(10_500, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = statistics(values)
    assert found.std == pytest.approx(values.numpy().std(), rel=1e-7)
    assert found.mean == pytest.approx(values.numpy().mean(), rel=1e-14)


def test_a_single_value_has_no_spread() -> None:
    assert statistics(torch.tensor([[3.5]])) == module.TensorStatistics(3.5, 0.0, 3.5, 3.5, 0, 0)


def test_values_that_are_not_finite_are_counted_and_left_out() -> None:
    values = torch.tensor([1.0, float("nan"), 3.0, float("inf"), float("-inf"), float("nan")])
    assert statistics(values.to(torch.bfloat16)) == module.TensorStatistics(2.0, 1.0, 1.0, 3.0, 2, 2)
    assert statistics(torch.full((4,), float("nan"))) == module.TensorStatistics(None, None, None, None, 4, 0)


def test_the_weights_stay_unread_until_their_numbers_are_asked_for(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    summary = read_model_info(folder)
    with pytest.raises(InputError, match="content has changed") as caught:
        list(tensor_statistics(summary))
    assert str(path) in caught.value.what


def test_a_second_copy_of_the_embedding_is_no_stranger(folder: Path) -> None:
    path = foreign(folder) / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["transformer.wte.weight"]}, path)
    assert read_model_info(folder).n_parameters == CONFIG.n_parameters


def change_config(folder: Path, **values: object) -> None:
    path = foreign(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    path = foreign(folder) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a small file was changed": (
        lambda f: (f / "tokenizer_config.json").write_text("{}"),
        "content has changed",
    ),
    "a small file is missing": (lambda f: (f / "recipe.yaml").unlink(), "no such file"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "there is no model.safetensors"),
    "weights cut short": (cut, "does not fit the file"),
    "weights empty": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "0 bytes are not a safetensors file",
    ),
    "another model": (lambda f: change_config(f, architectures=["Other"]), "holds a Other"),
    "a model that is no name": (lambda f: change_config(f, architectures=5), "holds a 5"),
    "a billion blocks": (lambda f: change_config(f, n_layer=10**9), "no model is that large"),
    "wide as the sea": (lambda f: change_config(f, n_embd=2**31, n_inner=2**31), "no model is that large"),
    "an odd head": (lambda f: change_config(f, n_head=3), "does not divide"),
    "another vocabulary": (lambda f: change_config(f, vocab_size=99), "the model 99"),
    "config is a list": (lambda f: (foreign(f) / "config.json").write_text("[]"), "not a JSON object"),
    "tensor missing": (
        lambda f: change_tensors(f, lambda t: t.pop("transformer.ln_f.bias")),
        "tensors are not those",
    ),
    "tensor of another shape": (
        lambda f: change_tensors(f, lambda t: t.update({"transformer.ln_f.bias": np.zeros(3)})),
        r"ln_f.bias has shape \[3\]",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, folder: Path) -> None:
    change, said = DAMAGE[name]
    change(folder)
    with pytest.raises(InputError, match=said):
        read_model_info(folder)
