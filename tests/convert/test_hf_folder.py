"""Folders as transformers writes them and as it used to, and what must not be taken for one."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from hugging_face_folders import (
    BIN,
    INDEX,
    SHAPE,
    THEIRS,
    UNTIED,
    VARIANTS,
    WEIGHTS,
    bare,
    save_state,
    state_of,
    write_folder,
)
from loud import loud
from words import BYTES

from gpt2cli.checkpoints.folder import build_model, stored_shapes, write_manifest, write_model
from gpt2cli.convert.foreign_model import ForeignModel
from gpt2cli.convert.hf_folder import open_hugging_face
from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model

W = "transformer.h.1.attn.c_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each variant once. Do not change them."""
    place = tmp_path_factory.mktemp("variants")
    return {name: write_folder(place / name, write) for name, write in VARIANTS.items()}


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made["safetensors"], tmp_path / "copy"))


@torch.no_grad()
def require_same(source: ForeignModel, theirs: transformers.GPT2LMHeadModel) -> None:
    """Names, order, bits and logits."""
    state, shapes = state_of(theirs), stored_shapes(source.config)
    assert [(name, t.shape) for name, t in source.tensors.items()] == list(shapes.items())
    loaded = {name: tensor.load() for name, tensor in source.tensors.items()}
    for name, tensor in loaded.items():
        assert torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype, name
        assert tensor.is_contiguous() and not source.tensors[name].transposed
    for tensor in source.tensors.values():
        assert torch.equal(torch.from_numpy(source.raw[tensor.source]), tensor.load())
    assert not any(name.endswith((".attn.bias", "masked_bias")) for name in source.raw)
    ids = torch.randint(0, 257, (2, 24), generator=torch.Generator().manual_seed(3))
    model = build_model(source.path, source.config, loaded)
    torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_of_storing_is_read_bit_for_bit(name: str, made: dict[str, Path]) -> None:
    with open_hugging_face(made[name]) as source:
        require_same(source, THEIRS)
        assert source.format == "huggingface"
        assert ("4 mask buffers (h.*.attn.bias and the like) were left out" in source.notes) == (
            name in ("old bin", "old 124M", "masks")
        )
        assert all(path.is_file() for path in source.files)
        weights = {path.name for path in made[name].iterdir() if path.suffix in (".safetensors", ".bin")}
        assert weights < {path.name for path in source.files}


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    write_folder(tmp_path, lambda folder: save_state(folder, state_of(UNTIED)), UNTIED)
    with open_hugging_face(tmp_path) as source:
        assert not source.config.tie_word_embeddings
        require_same(source, UNTIED)
    state = state_of(UNTIED)
    del state["lm_head.weight"]
    save_state(tmp_path, state)
    with (
        pytest.raises(InputError, match=r"missing: lm_head\.weight \[257, 32\]"),
        open_hugging_face(tmp_path),
    ):
        pass


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [WEIGHTS, BIN])
def test_precisions_are_kept_and_raw_is_exact(dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype) for name, tensor in state_of().items()}
    write = {WEIGHTS: save_state, BIN: lambda folder, state: torch.save(state, folder / BIN)}[kind]
    write_folder(tmp_path, lambda folder: write(folder, state))
    with open_hugging_face(tmp_path) as source:
        for name, tensor in source.tensors.items():
            assert tensor.load().dtype == dtype and torch.equal(tensor.load(), state[name])
            assert torch.equal(torch.from_numpy(source.raw[name]).double(), state[name].double())


def test_safetensors_are_preferred_and_it_is_said(folder: Path) -> None:
    (folder / BIN).write_bytes(b"not looked at")
    with open_hugging_face(folder) as source:
        assert f"{WEIGHTS} is read, {BIN} not" in source.notes
        require_same(source, THEIRS)


def test_gpt2s_vocabulary_is_taken_where_none_is_there(folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="there is no tokenizer"), open_hugging_face(folder):
        pass
    save_state(folder, bare(state_of()) | {"wte.weight": torch.zeros(50257, 32)})
    change_config(folder, vocab_size=50257)
    with open_hugging_face(folder) as source:
        assert source.notes == ("no tokenizer files: GPT-2's vocabulary of 50257 is taken",)
        assert source.tokenizer.name == "gpt2"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, *said: str) -> None:
    with pytest.raises(InputError) as caught, open_hugging_face(folder):
        pass
    for words in said:
        assert words in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_embd": 64}, ("wte.weight has shape [257, 32]", "[257, 64] is needed")),
        ({"n_inner": 130}, ("c_fc.weight has shape [32, 128]", "[32, 130] is needed")),
        ({"n_positions": 25}, ("wpe.weight has shape [24, 32]", "[25, 32] is needed")),
        ({"n_layer": 3}, ("n_layer is 3", "2 blocks")),
        ({"n_layer": 2**31}, ("n_layer is 2147483648", "no model is that large")),
        ({"n_embd": 2**20}, ("wte.weight has shape [257, 32]", "is needed")),
        ({"n_head": 5}, ("n_head 5 does not divide n_embd 32",)),
        ({"n_layer": "2"}, ("n_layer is '2'",)),
        ({"vocab_size": 300}, ("the tokenizer has 257 tokens, the model 300", "tokens without text")),
        ({"vocab_size": 200}, ("the tokenizer has 257 tokens, the model 200", "not made for each other")),
        ({"tie_word_embeddings": False}, ("missing: lm_head.weight",)),
        ({"model_type": "llama"}, ("model_type is 'llama'",)),
        ({"activation_function": "relu"}, ("activation_function is 'relu'",)),
        (
            {"architectures": ["GPT2ForSequenceClassification"]},
            ("GPT2ForSequenceClassification", "classifies texts"),
        ),
        ({"architectures": ["GPT2ForTokenClassification"]}, ("GPT2ForTokenClassification", "another head")),
        ({"architectures": ["LlamaForCausalLM"]}, ("LlamaForCausalLM", "only GPT-2")),
        ({"architectures": {"GPT2LMHeadModel": 1}}, ("not a GPT-2 language model",)),
        ({"architectures": [7]}, ("holds a 7",)),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_config_that_disagrees_is_refused(
    changes: dict[str, Any], said: tuple[str, ...], folder: Path
) -> None:
    change_config(folder, **changes)
    refused(folder, *said)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"n_layer": 2, "n_layer": 2}', "[" * 60_000, "\udcff"])
def test_a_config_that_is_no_table_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text, errors="surrogateescape")
    refused(folder, "config.json", "JSON")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({W: None}, (f"missing: {W} [32, 32]",)),
        ({W: torch.zeros(32, 31)}, (f"{W} has shape [32, 31]", "[32, 32] is needed")),
        ({"score.weight": torch.zeros(2, 32)}, ("unknown: score.weight [2, 32]",)),
        ({"h.0.ln_1.bias": torch.zeros(32)}, ("unknown: h.0.ln_1.bias [32]",)),
        ({W: torch.zeros(32, 32, dtype=torch.int8)}, (f"{W} is of type int8",)),
        ({"lm_head.weight": torch.zeros(257, 32)}, ("lm_head.weight is not transformer.wte.weight",)),
        ({"lm_head.weight": torch.zeros(256, 32)}, ("lm_head.weight is not transformer.wte.weight",)),
        (
            {f"transformer.h.{i}.mlp.c_fc.weight": torch.zeros(128, 32) for i in (0, 1)},
            ("stored transposed",),
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_tensors_that_are_not_those_of_the_config_are_named(
    change: dict[str, torch.Tensor | None], said: tuple[str, ...], folder: Path
) -> None:
    state = {name: t for name, t in (state_of() | change).items() if t is not None}
    save_state(folder, state)
    refused(folder, *said)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    refused(folder, "there are no weights", "looked for model.safetensors")


@pytest.mark.parametrize("content", [[1, 2], {1: torch.zeros(2)}, {"transformer.wte.weight": 5}])
def test_a_pickle_that_is_no_table_of_tensors_is_refused(content: Any, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / BIN)
    refused(folder, BIN)


@pytest.fixture
def shards(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["shards"], tmp_path / "shards"))


def change_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "place",
    ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "..", "", 5, None, "a\nb.safetensors"],
)
def test_a_shard_elsewhere_is_refused(place: Any, shards: Path) -> None:
    (shards.parent / "x.safetensors").write_bytes(b"secret")
    change_index(shards, lambda weight_map: weight_map.update({W: place}))
    refused(shards, f"{W} is said to be in", "this folder is needed")


def test_shards_that_do_not_fit_their_index_are_refused(shards: Path) -> None:
    files = sorted(shards.glob("model-*.safetensors"))
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    own = weight_map[W]
    other = next(path.name for path in files if path.name != own)
    change_index(shards, lambda table: table.update({W: other}))
    refused(shards, W, other)
    change_index(shards, lambda table: table.pop(W))
    refused(shards, f"{own}: holds {W}", "no file")
    change_index(shards, lambda table: table.update({W: own}))
    again = safetensors.torch.load_file(shards / other)
    safetensors.torch.save_file(again | {W: torch.zeros(32, 32)}, shards / other)
    refused(shards, W)
    (shards / other).unlink()
    refused(shards, f"{other}: no such file")
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": "b", "a": "c"}}'):
        (shards / INDEX).write_text(text)
        refused(shards, INDEX)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "vocab.json"])
def test_what_is_no_file_is_refused(name: str, folder: Path) -> None:
    """A pipe; test_files.py has what else is no file."""
    path = folder / name
    path.unlink()
    os.mkfifo(path)
    refused(folder, name)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    model = loud(new_model(GPT2Config(**SHAPE), 1))
    hashes = write_model(tmp_path, model, BYTES, "task: pretrain\n")
    (tmp_path / "train_state.json").write_text("{}")
    hashes["train_state.json"] = sha256_of(tmp_path / "train_state.json")
    write_manifest(tmp_path, hashes)
    return tmp_path


def test_a_folder_of_ours_is_read_by_its_manifest(ours: Path) -> None:
    with open_hugging_face(ours) as source:
        assert source.notes == ()
        theirs = transformers.GPT2LMHeadModel.from_pretrained(ours).eval()
        require_same(source, theirs)


@pytest.mark.parametrize(
    ("place", "format"),
    [
        ("gpt2-home/models/x", "gpt2cli"),
        ("runs/x/checkpoints/step-000001", "gpt2cli"),
        ("elsewhere/x/checkpoints/step-000001", "gpt2cli"),
        ("gpt2-home/downloads/hub/a--b/main", "huggingface"),
        ("elsewhere/x", "huggingface"),
    ],
)
def test_only_where_we_write_a_manifest_proves_whose_it_is(
    place: str, format: str, ours: Path, tmp_path: Path
) -> None:
    shutil.copytree(ours, tmp_path / place)
    with open_hugging_face(tmp_path / place) as source:
        assert source.format == format


@pytest.mark.parametrize("text", ['{"name": "an app"}', "[1]", "{", '{"format": 9, "files": {}}'])
def test_a_manifest_of_another_program_is_none(text: str, folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").write_text(text)
    with open_hugging_face(folder) as source:
        assert source.format == "huggingface"
        assert source.notes == ("manifest.json belongs to another program and was ignored",)
    place = Path(shutil.copytree(folder, tmp_path / "gpt2-home" / "models" / "x"))
    if text in ("[1]", "{"):  # where only we write, it is ours and damaged
        refused(place, "manifest.json")
    else:
        with open_hugging_face(place) as source:
            assert source.format == "huggingface"


@pytest.mark.parametrize("name", ["train_state.json", "recipe.yaml"])
def test_what_the_model_does_without_may_be_missing(name: str, ours: Path) -> None:
    (ours / name).unlink()
    with open_hugging_face(ours) as source:
        require_same(source, transformers.GPT2LMHeadModel.from_pretrained(ours).eval())


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "vocab.json", "merges.txt", "recipe.yaml"])
def test_a_change_to_any_file_of_ours_is_noticed(name: str, ours: Path) -> None:
    data = bytearray((ours / name).read_bytes())
    data[-1] ^= 1 if name in (WEIGHTS, "merges.txt", "recipe.yaml") else 0x2A  # } becomes W
    data = data if name != "config.json" else bytearray((ours / name).read_bytes() + b" ")
    (ours / name).write_bytes(data)
    refused(ours, name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda files: files.pop(WEIGHTS), "the content has changed"),
        (lambda files: files.update({"tokenizer.json": {"sha256": "0"}}), "tokenizer.json: no such file"),
    ],
)
def test_a_manifest_that_was_edited_is_refused(change: Callable[[Any], Any], said: str, ours: Path) -> None:
    manifest = json.loads((ours / "manifest.json").read_text())
    change(manifest["files"])
    (ours / "manifest.json").write_text(json.dumps(manifest))
    refused(ours, said)
