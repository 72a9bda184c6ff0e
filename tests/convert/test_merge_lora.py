"""An adapter and its base as one model: the base found, proved, and added to."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapters import (
    CONFIG,
    IDS,
    SETTINGS,
    WEIGHTS,
    Base,
    Lora,
    by_somebody_else,
    change_tensors,
    save_adapter,
    save_base,
)

from gpt2cli import paths
from gpt2cli.checkpoints.folder import read_config
from gpt2cli.convert.open_model import open_model
from gpt2cli.errors import InputError

A = "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return save_base(tmp_path / "models" / "plain")


@pytest.fixture
def folder(tmp_path: Path, base: Base) -> Path:
    save_adapter(tmp_path / "adapter", base, Lora())
    return tmp_path / "adapter"


@torch.no_grad()
def test_a_base_that_moved_is_found_by_its_name(folder: Path, base: Base) -> None:
    wanted = open_model(folder).model(IDS)
    paths.models().mkdir(parents=True)
    shutil.move(str(base.folder), paths.models() / "plain")
    assert torch.equal(open_model(folder).model(IDS), wanted)


def test_a_base_in_a_run_is_found_by_the_name_of_the_run(tmp_path: Path) -> None:
    base = save_base(tmp_path / "elsewhere" / "first" / "checkpoints" / "step-000010")
    save_adapter(tmp_path / "adapter", base, Lora())
    (tmp_path / "runs").mkdir()
    shutil.move(str(tmp_path / "elsewhere" / "first"), tmp_path / "runs" / "first")
    assert open_model(tmp_path / "adapter").config == CONFIG


def test_a_base_that_is_gone_is_named_with_where_it_was(folder: Path, base: Base) -> None:
    shutil.rmtree(base.folder)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="base model of this adapter is not here") as caught:
        open_model(folder)
    assert str(base.folder) in caught.value.why
    assert caught.value.fix == f"put its folder at {paths.models() / 'plain'}"


def test_a_base_that_peft_named_by_its_path_belongs_there(folder: Path) -> None:
    (folder / "base.json").unlink()
    by_somebody_else(folder, base_model_name_or_path="/nowhere/at all")
    with pytest.raises(InputError, match="base model of this adapter is not here") as caught:
        open_model(folder)
    assert caught.value.fix == "put its folder at /nowhere/at all"


def test_a_base_of_openai_is_asked_for_by_its_name(folder: Path) -> None:
    (folder / "base.json").unlink()
    by_somebody_else(folder, base_model_name_or_path="openai-community/gpt2")
    with pytest.raises(InputError, match="base model of this adapter is not here") as caught:
        open_model(folder)
    assert caught.value.fix == "gpt2 download 124M"


def test_a_base_with_other_weights_is_refused(folder: Path, base: Base) -> None:
    shutil.rmtree(base.folder)  # type: ignore[arg-type]
    other = save_base(base.folder, seed=5)  # type: ignore[arg-type]
    assert other.sha256 != base.sha256
    with pytest.raises(InputError, match="has changed") as caught:
        open_model(folder)
    assert base.sha256[:16] in caught.value.why and other.sha256[:16] in caught.value.why


def test_an_adapter_over_an_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    record = json.loads((folder / "base.json").read_text()) | {"path": str(folder)}
    by_somebody_else(folder)
    (folder / "base.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="is an adapter itself"):
        open_model(folder)
    with pytest.raises(InputError, match="is an adapter, which has no weights of its own") as caught:
        read_config(folder)
    assert caught.value.fix.startswith(f"gpt2 convert {folder} --merge")


@pytest.mark.parametrize(
    "name", ["", "\0", "a/" * 600, "x" * 300, "~nobody-of-this-name/m", "\ud800", "\x1b[2J", "/dev/zero", "."]
)
def test_a_base_of_a_strange_name_is_not_here(folder: Path, name: str) -> None:
    (folder / "base.json").unlink()
    by_somebody_else(folder, base_model_name_or_path=name)
    with pytest.raises(InputError, match="base model of this adapter is not here"):
        open_model(folder)


def test_numbers_that_overflow_only_in_the_sum_are_refused(folder: Path) -> None:
    change_tensors(folder, **{A: torch.full((4, 16), 3e38)})
    by_somebody_else(folder, lora_alpha=1e9)
    with pytest.raises(InputError, match=r"h\.1\.attn\.c_attn is beyond the range of fp32"):
        open_model(folder)


@torch.no_grad()
def test_the_source_to_convert_is_the_merged_model(folder: Path, base: Base) -> None:
    from gpt2cli.checkpoints.folder import build_model
    from gpt2cli.convert.hf_folder import open_hugging_face
    from gpt2cli.convert.merge_lora import open_adapter
    from gpt2cli.convert.verify import compare_logits, expected_logits

    with open_adapter(folder) as source:
        tensors = {name: tensor.load() for name, tensor in source.tensors.items()}
        expected = expected_logits(source, torch.float32)
        names = {path.name for path in source.files}
        assert source.path == folder and source.format != "gpt2cli"  # so that it is compared by default
        assert compare_logits(expected, source).max_difference < 1e-5
    with open_hugging_face(base.folder) as source:
        assert compare_logits(expected, source).max_difference > 0.1
    model = build_model(folder, CONFIG, tensors)
    merged = open_model(folder).model
    for name, tensor in merged.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert {WEIGHTS, SETTINGS, "base.json", "model.safetensors"} <= names


def test_home_knows_an_adapter_by_name(folder: Path) -> None:
    assert paths.is_model(folder) and paths.is_adapter(folder)
    paths.models().mkdir(parents=True)
    shutil.move(folder, paths.models() / "mine")
    assert paths.find_model("mine") == paths.models() / "mine" == paths.find_model(None)
    assert not paths.is_adapter(paths.models() / ("x" * 300)) and not paths.is_model(Path("a\0b"))
