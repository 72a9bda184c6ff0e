"""Repositories as people publish them: each becomes a model, or is refused before a byte of its weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from faulty_server import Site
from hugging_face_folders import BIN, THEIRS, WEIGHTS, model_of_theirs, save_state, state_of
from layouts import REPOSITORY, serve_hub
from words import BYTES

from gpt2cli import paths
from gpt2cli.checkpoints.folder import load_model
from gpt2cli.tokenizer.files import save_tokenizer

IDS = torch.randint(0, 257, (2, 24), generator=torch.Generator().manual_seed(3))
LARGE = (".safetensors", ".bin", ".h5", ".msgpack", ".gguf", ".pth", ".ckpt")


def files_of(folder: Path) -> dict[str, bytes]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def publish(site: Site, folder: Path, **options: Any) -> None:
    content = files_of(folder)
    serve_hub(site, content, [name for name in content if name.endswith(LARGE)], **options)


def pushed(folder: Path, model: Any = THEIRS, **changes: Any) -> Path:
    """What push_to_hub writes; `changes` are of its config.json."""
    model.save_pretrained(folder)
    save_tokenizer(BYTES, folder)
    (folder / "README.md").write_text("# A model")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    return folder


def cerebras(folder: Path) -> Any:
    model = model_of_theirs(activation_function="gelu")
    pushed(folder, model)
    (folder / WEIGHTS).unlink()
    torch.save(state_of(model), folder / BIN)
    return model


def mistral(folder: Path) -> Any:
    model = model_of_theirs(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True)
    pushed(folder, model)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    return model


def padded(folder: Path) -> Any:
    pushed(folder, vocab_size=320)
    state = state_of()
    state["transformer.wte.weight"] = torch.cat([state["transformer.wte.weight"], torch.zeros(63, 32)])
    del state["lm_head.weight"]
    save_state(folder, state)
    return THEIRS


def value_head(folder: Path) -> Any:
    pushed(folder)
    safetensors.torch.save_file(state_of() | {"v_head.summary.weight": torch.ones(1, 32)}, folder / WEIGHTS)
    return THEIRS


@pytest.mark.parametrize("make", [cerebras, mistral, padded, value_head])
@torch.no_grad()
def test_a_repository_writes_what_transformers_writes(
    make: Callable[[Path], Any], gpt2: Any, site: Site, tmp_path: Path
) -> None:
    model = make(tmp_path / "theirs")
    publish(site, tmp_path / "theirs")
    done = gpt2("download", REPOSITORY)
    assert done.code == 0, done.err
    ours = load_model(Path(done.out.strip())).model
    torch.testing.assert_close(ours(IDS), model(IDS).logits, atol=1e-4, rtol=0)


def without(*names: str, **changes: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        pushed(folder, **changes)
        for name in names:
            (folder / name).unlink()

    return make


def holding(*names: str) -> Callable[[Path], Any]:
    """A repository of these files, whatever is in them, with the config and the tokenizer of a GPT-2."""

    def make(folder: Path) -> None:
        without(WEIGHTS)(folder)
        for name in names:
            (folder / name).write_bytes(b"{}" * 100)

    return make


def checkpoints(folder: Path) -> None:
    holding()(folder)
    for step in (500, 1000):
        pushed(folder / f"checkpoint-{step}")


def broken_merges(folder: Path) -> None:
    pushed(folder)
    (folder / "merges.txt").write_text("#version: 0.2\na b c d\n")


def sentencepiece(folder: Path) -> None:
    without("vocab.json", "merges.txt", vocab_size=50257)(folder)
    (folder / "spiece.model").write_bytes(b"\x0a\x0e")


BASE = "base_model:quantized:openai-community/gpt2"
# What is published, with which tags; what is said; the fix.
REFUSED: dict[str, tuple[Callable[[Path], Any], str, str, str]] = {
    "another vocabulary": (
        without(vocab_size=300),
        "",
        "the tokenizer has 257 tokens, the model 300",
        "a tokenizer that fits",
    ),
    "no tokenizer": (
        without("vocab.json", "merges.txt"),
        "",
        "there is no tokenizer",
        "then: gpt2 convert tiny-gpt2",
    ),
    "broken merges": (broken_merges, "", "merges.txt", "use another model: the files are as"),
    "SentencePiece": (
        sentencepiece,
        "",
        "its tokenizer is not GPT-2's kind, byte-level BPE",
        "use a model with GPT-2's tokenizer",
    ),
    "another model": (without(model_type="llama"), "", "model_type is 'llama'", ""),
    "another activation": (without(activation_function="relu"), "", "activation_function is 'relu'", ""),
    "quantised weights": (
        without(quantization_config={"quant_method": "gptq", "bits": 4}),
        "",
        "its weights are quantised",
        "use the model that it was made from",
    ),
    "a classifier": (
        without(architectures=["GPT2ForSequenceClassification"]),
        "",
        "holds a GPT2ForSequenceClassification",
        "hf download somebody/tiny-gpt2 --local-dir tiny-gpt2 && gpt2 classify tiny-gpt2 TEXT",
    ),
    "an adapter": (
        lambda folder: holding("adapter_config.json", "adapter_model.safetensors")(folder),
        "base_model:adapter:openai-community/gpt2",
        "holds an adapter, no whole model",
        "hf download somebody/tiny-gpt2 --local-dir tiny-gpt2 && gpt2 convert tiny-gpt2 --merge",
    ),
    "GGUF": (holding("a.Q4_0.gguf", "a.f16.gguf"), BASE, "holds GGUF files alone", "openai-community/gpt2"),
    "GGUF of something": (holding("a.gguf"), "gguf", "holds GGUF files alone", "that they were made from"),
    "TensorFlow": (
        holding("tf_model.h5"),
        "",
        "these are weights of TensorFlow",
        "modeling_tf_pytorch_utils",
    ),
    "Flax": (holding("flax_model.msgpack"), "", "these are weights of Flax", "modeling_flax_pytorch_utils"),
    "the book": (
        holding("gpt2-small-124M.pth"),
        "",
        "there is gpt2-small-124M.pth",
        "gpt2-small-124M.pth && gpt2 convert tiny-gpt2/gpt2-small-124M.pth",
    ),
    "checkpoints": (
        checkpoints,
        "",
        "there is checkpoint-1000\n",
        "--include 'checkpoint-1000/*' && gpt2 convert tiny-gpt2/checkpoint-1000",
    ),
    "nothing": (holding(), "", "holds no model that can be read here", "gpt2 download --list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_before_its_weights(
    name: str, gpt2: Any, site: Site, tmp_path: Path
) -> None:
    make, tag, said, fix = REFUSED[name]
    make(tmp_path / "theirs")
    publish(site, tmp_path / "theirs", tags=[tag])
    done = gpt2("download", REPOSITORY)
    assert (done.code, done.out) == (3, ""), done.err
    error = done.err[done.err.index("error:") :]
    assert said in error and REPOSITORY in error and fix in error, error
    assert str(paths.gpt2_home()) not in error
    asked = [request.path.partition("?")[0] for request in site.requests]
    assert not [path for path in asked if path.startswith("/store/") or path.endswith(LARGE)]


def test_a_data_set_is_named(gpt2: Any, site: Site) -> None:
    site.files[f"/api/datasets/{REPOSITORY}"] = json.dumps({"id": REPOSITORY}).encode()
    done = gpt2("download", REPOSITORY)
    assert done.code == 3 and f"{REPOSITORY}: is a data set, not a model" in done.err
    assert "--local-dir tiny-gpt2 --repo-type dataset && gpt2 prepare tiny-gpt2" in done.err
    del site.files[f"/api/datasets/{REPOSITORY}"]
    done = gpt2("download", REPOSITORY)
    assert done.code == 5 and "404 Not Found" in done.err


def test_the_files_alone_come_whatever_they_are(gpt2: Any, site: Site, tmp_path: Path) -> None:
    without(vocab_size=300)(tmp_path / "theirs")
    publish(site, tmp_path / "theirs")
    done = gpt2("download", REPOSITORY, "--no-convert")
    assert done.code == 0 and (Path(done.out.strip()) / WEIGHTS).is_file()
