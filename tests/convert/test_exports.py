"""What leaves: read back after it is written, cast without overflow, with a receipt beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loud import loud
from safetensors.torch import load_file, save_file
from words import BYTES

from gpt2cli.checkpoints import provenance
from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.convert import pipeline
from gpt2cli.convert.pipeline import ConvertOptions, convert
from gpt2cli.errors import InputError, UsageError
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.tokenizer.files import save_tokenizer

NAME = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture
def ours(loud_model: GPT2LMHead, tmp_path: Path) -> Path:
    return written(tmp_path / "gpt2-home/models/ours", loud_model)


def written(folder: Path, model: GPT2LMHead) -> Path:
    folder.mkdir(parents=True)
    write_manifest(folder, write_model(folder, model, BYTES, "task: pretrain\nseed: 7\n"))
    return folder


def run(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    return list(convert(path, out, ConvertOptions(**options)))[-1].receipt


@pytest.mark.parametrize(
    ("to", "dtype"), [("nanogpt", "f32"), *[("gguf", d) for d in ("f32", "f16", "bf16", "q8_0")]]
)
def test_what_is_written_is_read_back(
    to: str, dtype: str, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if to == "gguf":
        pytest.importorskip("gguf", reason="the extra gguf is not installed")
    receipt = run(ours, tmp_path / "out.bin", to=to, dtype=dtype)
    assert receipt["read_back"] == {"tensors": len(load_file(ours / "model.safetensors")), "equal": True}

    writer = {"nanogpt": "write_nanogpt", "gguf": "write_gguf"}[to]
    write = getattr(pipeline, writer)

    def write_wrong(path: Path, source: Any, *rest: Any) -> None:
        """A disk, or a program, that changes one row of one matrix a little."""
        right = source.tensors[NAME].load
        values = right().clone()
        values[3] *= 1.1
        tensors = {**source.tensors, NAME: pipeline.replace(source.tensors[NAME], load=lambda: values)}
        write(path, pipeline.replace(source, tensors=tensors), *rest)

    monkeypatch.setattr(pipeline, writer, write_wrong)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for name in ("wrong.bin", "out.bin"):
        with pytest.raises(InputError, match=rf"{name}: {NAME} is not what was written"):
            run(ours, tmp_path / name, to=to, dtype=dtype, force=True)
    # What was there is there, and nothing else.
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_the_receipt_lies_beside_an_export(ours: Path, tmp_path: Path) -> None:
    receipt = run(ours, tmp_path / "out.pt", to="nanogpt")
    assert json.loads((tmp_path / "out.pt.conversion.json").read_text()) == receipt


def test_a_character_model_goes_to_nanogpt_and_back(tmp_path: Path) -> None:
    tokenizer = Chars.from_text("every effort moves you")
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=tokenizer.n_vocab)
    ours = tmp_path / "gpt2-home/models/letters"
    ours.mkdir(parents=True)
    write_manifest(ours, write_model(ours, loud(new_model(config, 1)), tokenizer, "task: pretrain\n"))
    run(ours, tmp_path / "letters.pt", to="nanogpt")
    with pytest.raises(InputError, match="no tokenizer with as many is known"):
        run(tmp_path / "letters.pt", tmp_path / "back")
    save_tokenizer(tokenizer, tmp_path)  # beside nanoGPT's file, which holds none
    run(tmp_path / "letters.pt", tmp_path / "back")
    there, back = (load_file(folder / "model.safetensors") for folder in (ours, tmp_path / "back"))
    assert there.keys() == back.keys() and all(torch.equal(there[name], back[name]) for name in there)


@pytest.mark.parametrize("to", ["folder", "gguf"])
def test_what_does_not_fit_f16_is_named(to: str, tmp_path: Path) -> None:
    if to == "gguf":
        pytest.importorskip("gguf", reason="the extra gguf is not installed")
    model = loud(new_model(GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=257), seed=1))
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[2, 3] = 1e5
    ours = written(tmp_path / "gpt2-home/models/big", model)
    with pytest.raises(InputError, match=r"mlp\.c_fc\.weight") as caught:
        run(ours, tmp_path / "out", to=to, dtype="f16")
    assert "bf16" in caught.value.fix
    assert not (tmp_path / "out").exists()
    run(ours, tmp_path / "out", to=to, dtype="bf16")


def test_weights_that_overflow_in_use_do_not_pass(ours: Path, tmp_path: Path) -> None:
    tensors = load_file(ours / "model.safetensors")
    tensors["transformer.h.0.ln_1.weight"][0] = 3.3e38
    (ours / "manifest.json").unlink()
    save_file(tensors, ours / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError) as caught, np.errstate(all="ignore"):
        run(ours, tmp_path / "out")
    assert "not finite in fp32" in caught.value.why
    assert not (tmp_path / "out").exists()


def test_a_model_keeps_its_recipe_and_its_past(ours: Path, tmp_path: Path) -> None:
    run(ours, tmp_path / "half", dtype="f16")
    assert (tmp_path / "half/recipe.yaml").read_bytes() == (ours / "recipe.yaml").read_bytes()
    record = provenance.Record(3, "00", "first seen", "http://127.0.0.1/somewhere")
    origin = provenance.Origin("hf", "http://127.0.0.1", "abc")
    known = provenance.Provenance(origin, "gpt2 download a/b", [], {"model.safetensors": record})
    provenance.write(tmp_path / "half", known)
    receipt = run(tmp_path / "half", tmp_path / "again")
    past = receipt["source"]["made_from"]
    assert past["conversion"]["source"]["path"] == str(ours)
    assert past["hashes"]["files"]["model.safetensors"]["address"] == "http://127.0.0.1/somewhere"


def test_heads_that_the_source_denies(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--n-head is 2, but .* says it has 4 heads"):
        run(ours, tmp_path / "out", n_head=2)
    run(ours, tmp_path / "out", n_head=4)


def test_an_adapter_becomes_a_whole_model(ours: Path, loud_model: GPT2LMHead, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers")
    base = transformers.GPT2LMHeadModel.from_pretrained(ours)
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(r=4, lora_alpha=7, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UsageError, match="is an adapter") as caught:
        run(tmp_path / "adapter", tmp_path / "whole")
    assert "--merge" in caught.value.fix
    receipt = run(tmp_path / "adapter", tmp_path / "whole", merge=True)
    assert receipt["verification"]["passed"]
    whole = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "whole").eval()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.inference_mode():
        difference = (whole(ids).logits - adapted.eval()(ids).logits).abs().max()
        moved = (whole(ids).logits - loud_model(ids)).abs().max()
    assert difference < 1e-4 < moved
