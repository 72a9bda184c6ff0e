"""An adapter's folder: written, read, trained on; damage and other tensors refused."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import (
    IDS,
    SETTINGS,
    TOKENIZER,
    WEIGHTS,
    Base,
    Lora,
    adapted,
    by_somebody_else,
    change_tensors,
    save_adapter,
    save_base,
)
from runs import scratch_task, tiny

from gpt2cli.checkpoints.folder import verify, write_manifest, write_model
from gpt2cli.checkpoints.lora_adapter import load_adapter, write_adapter
from gpt2cli.checkpoints.safetensors_file import read_tensors
from gpt2cli.convert.open_model import open_model
from gpt2cli.errors import InputError, UsageError
from gpt2cli.model.lora import add_lora, lora_layers, lora_state, merge_lora

A = "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return save_base(tmp_path / "models" / "plain")


@pytest.fixture
def folder(tmp_path: Path, base: Base) -> Path:
    save_adapter(tmp_path / "adapter", base, Lora())
    return tmp_path / "adapter"


@torch.no_grad()
def test_loading_gives_the_plain_model_with_the_adapters_added(folder: Path, base: Base) -> None:
    loaded, apart = open_model(folder), adapted(base, Lora())
    verify(folder)
    torch.testing.assert_close(loaded.model(IDS), apart(IDS), atol=1e-5, rtol=0)
    assert not lora_layers(loaded.model) and not loaded.model.training
    assert loaded.folder == folder and loaded.tokenizer.fingerprint == TOKENIZER.fingerprint
    merge_lora(apart)
    for name, tensor in apart.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


@torch.no_grad()
def test_a_merged_model_is_stored_like_any_other(folder: Path, tmp_path: Path) -> None:
    merged, out = open_model(folder), tmp_path / "whole"
    out.mkdir()
    write_manifest(out, write_model(out, merged.model, merged.tokenizer, ""))
    shutil.rmtree(folder)
    assert torch.equal(open_model(out).model(IDS), merged.model(IDS))


def test_a_model_with_adapters_is_not_stored_as_a_plain_one(base: Base, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"attn\.c_attn\.weight"):
        write_model(tmp_path, adapted(base, Lora()), TOKENIZER, "")
    assert not list(tmp_path.glob("*.safetensors"))


def test_training_goes_on_with_the_stored_adapters(folder: Path, base: Base) -> None:
    model = open_model(base.folder).model  # type: ignore[arg-type]
    add_lora(model, rank=4, alpha=10.0, dropout=0.0, targets=("c_attn", "c_proj", "c_fc"), seed=77)
    load_adapter(folder, model)
    wanted = lora_state(adapted(base, Lora()))
    for name, tensor in lora_state(model).items():
        assert torch.equal(tensor, wanted[name]), name
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "numbers", [{"alpha": 20.0}, {"rank": 5}, {"targets": ("c_attn",)}], ids=lambda n: next(iter(n))
)
def test_training_on_with_other_adapters_is_refused(
    folder: Path, base: Base, numbers: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="its adapters are not those of this run") as caught:
        load_adapter(folder, adapted(base, Lora(**numbers)))
    assert "attn.c_attn 4, 10" in caught.value.why


def test_nothing_but_adapters_changes_in_training(tmp_path: Path) -> None:
    """Twelve steps of the real loop, with decay and dropout."""
    from gpt2cli.runtime import choose_runtime
    from gpt2cli.training.loop import train_step
    from gpt2cli.training.optimizer_step import OptimizerStep, make_optimizer, parameter_names
    from gpt2cli.training.setup import TrainingSetup
    from gpt2cli.training.train_state import TrainState

    recipe, data = tiny(tmp_path)
    task = scratch_task(recipe, data)
    model = task.fresh_model("sdpa")
    names = add_lora(model, rank=2, alpha=16.0, dropout=0.1, targets=("c_attn", "c_proj"), seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runtime = choose_runtime("cpu", "fp32", 2, "off", training=True, flops=0.0)
    optimizer = make_optimizer(model, recipe.optim, runtime.device)
    assert set(parameter_names(model, optimizer)) == {
        f"{name}.lora_{part}" for name in names for part in "AB"
    }
    step = OptimizerStep(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    setup = TrainingSetup(recipe, runtime, "sdpa", model, step, task, TrainState(), {}, ())
    losses = [train_step(setup).loss for _ in range(12)]
    assert losses[-1] < losses[0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != ("lora_" in name), name


def test_an_adapter_over_random_weights_is_refused(base: Base, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lora over random weights"):
        write_adapter(
            tmp_path,
            adapted(base, Lora()),
            dropout=0.0,
            targets=("c_attn",),
            base=None,
            base_sha256="0" * 64,
            tokenizer=TOKENIZER,
            recipe="",
        )


@pytest.mark.parametrize("name", [WEIGHTS, SETTINGS, "base.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_to_any_file_is_noticed(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else whole[:-9] + b"#" + whole[-8:])
    if (name, damage) == ("manifest.json", "gone"):
        open_model(folder)  # somebody else's then, and still whole
    else:
        with pytest.raises(InputError):
            open_model(folder)


def test_tensors_that_are_missing_unknown_or_misshapen_are_named(folder: Path) -> None:
    change_tensors(folder, **{A: None})
    with pytest.raises(InputError) as caught:
        open_model(folder)
    assert caught.value.why == f"missing: {A} [4, 16]"
    change_tensors(folder, **{A: torch.zeros(4, 16), "lm_head.lora_A.weight": torch.zeros(4, 16)})
    with pytest.raises(InputError) as caught:
        open_model(folder)
    assert caught.value.why == "unknown: lm_head.lora_A.weight [4, 16]"
    change_tensors(folder, **{A: torch.zeros(16, 4), "lm_head.lora_A.weight": None})
    with pytest.raises(InputError, match=r"c_attn\.lora_A\.weight has shape \[16, 4\]"):
        open_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    change_tensors(folder, **{A: torch.full((4, 16), value)})
    with pytest.raises(InputError, match=r"c_attn\.lora_A\.weight holds values that are not finite"):
        open_model(folder)


@torch.no_grad()
def test_half_precision_adapters_are_read(folder: Path, base: Base) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in read_tensors(folder / WEIGHTS).items()}
    change_tensors(folder, **tensors)
    loaded = open_model(folder).model
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded(IDS), adapted(base, Lora())(IDS), atol=0.5, rtol=0)


class RunsCode:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda tensors, canary: {**tensors, "x": RunsCode(canary)}, "wants to run code"),
        (lambda tensors, canary: list(tensors.values()), "a table of named tensors is needed"),
        (lambda tensors, canary: {**tensors, "x": 1}, "'x' is a int, not a tensor"),
        (lambda tensors, canary: {}, "the tensors are not those"),
    ],
    ids=["code", "a list", "a number", "nothing"],
)
def test_a_pickled_adapter_runs_nothing(folder: Path, tmp_path: Path, content: Any, said: str) -> None:
    by_somebody_else(folder)
    torch.save(content(read_tensors(folder / WEIGHTS), tmp_path / "canary"), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"adapter_model\.bin: ") as caught:
        open_model(folder)
    assert said in str(caught.value) and not (tmp_path / "canary").exists()


def test_150_mutations_are_refused_or_read_and_nothing_else(folder: Path) -> None:
    """Whatever bytes are there: an error that names the folder's file, or a finite model."""
    (folder / "manifest.json").unlink()
    files = {name: (folder / name).read_bytes() for name in (WEIGHTS, SETTINGS, "base.json")}
    rng, n_refused = random.Random(4), 0
    for _ in range(150):
        name = rng.choice(list(files))
        data = bytearray(files[name])
        end = 2000 if name == WEIGHTS else len(data)  # its header is where mistakes are made
        for _ in range(rng.randint(1, 4)):
            i = rng.randrange(min(end, len(data)))
            match rng.randrange(3):
                case 0:
                    data[i] = rng.randrange(256)
                case 1:
                    del data[i : i + rng.randint(1, 40)]
                case 2:
                    data[i:i] = rng.choice([b"9", b"-", b"null", b'"', b"[", b"{", b"1e400", b"\\ud800"])
        (folder / name).write_bytes(data)
        try:
            model = open_model(folder).model
        except InputError as error:
            assert str(folder) in error.what, error.what
            n_refused += 1
        else:
            assert all(parameter.isfinite().all() for parameter in model.parameters())
        (folder / name).write_bytes(files[name])
    assert n_refused > 75
