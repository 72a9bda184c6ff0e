"""The model folder: what is refused, and with which words."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loud import loud

from gpt2cli.checkpoints.folder import load_model, read_config, verify, write_manifest, write_model
from gpt2cli.checkpoints.hf_config import require_language_model
from gpt2cli.checkpoints.info import read_model_info
from gpt2cli.checkpoints.safetensors_file import read_tensors, write_tensors
from gpt2cli.errors import InputError, NewerFormatError
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.tokenizer.chars import Chars

TOKENIZER = Chars.from_text(["abcdefg\n"])
CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=12, vocab_size=TOKENIZER.n_vocab)


@pytest.fixture
def model() -> GPT2LMHead:
    return loud(new_model(CONFIG, 1))


@pytest.fixture
def folder(tmp_path: Path, model: GPT2LMHead) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_manifest(folder, write_model(folder, model, TOKENIZER, "task: pretrain\n"))
    return folder


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Rewrite model.safetensors as somebody else would have: without our manifest."""
    (folder / "manifest.json").unlink(missing_ok=True)
    tensors = read_tensors(folder / "model.safetensors") | changes
    write_tensors(folder / "model.safetensors", {n: t for n, t in tensors.items() if t is not None}, {})


def change_config(folder: Path, **changes: object) -> None:
    (folder / "manifest.json").unlink(missing_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_saved_is_loaded_bit_for_bit(folder: Path, model: GPT2LMHead) -> None:
    loaded = load_model(folder)
    verify(folder)
    assert loaded.config == CONFIG and not loaded.model.training
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert loaded.tokenizer.fingerprint == TOKENIZER.fingerprint


def test_half_precision_weights_become_fp32(folder: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in read_tensors(folder / "model.safetensors").items()}
    change_weights(folder, **tensors)
    assert {p.dtype for p in load_model(folder).model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_to_any_file_is_noticed(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else whole[:-9] + b"#" + whole[-8:])
    with pytest.raises(InputError, match=name if damage != "gone" else None):
        verify(folder)
    if name != "manifest.json":
        with pytest.raises(InputError):
            load_model(folder)


W = "transformer.h.1.attn.c_proj.weight"


def test_tensors_that_are_missing_unknown_or_misshapen_are_named(folder: Path) -> None:
    change_weights(folder, **{W: None})
    with pytest.raises(InputError, match=f"missing: {W}"):
        load_model(folder)
    change_weights(folder, **{W: torch.zeros(8, 8), "extra.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"unknown: extra\.weight"):
        load_model(folder)
    change_weights(folder, **{W: torch.zeros(8, 7), "extra.weight": None})
    with pytest.raises(InputError, match=W) as caught:
        load_model(folder)
    assert "[8, 8]" in caught.value.why


def test_a_tokenizer_of_another_size_is_refused(folder: Path) -> None:
    change_config(folder, vocab_size=20)
    with pytest.raises(InputError, match=f"the tokenizer has {TOKENIZER.n_vocab} tokens, the model 20"):
        load_model(folder)


def test_a_classifier_is_no_language_model(folder: Path) -> None:
    change_config(folder, architectures=["GPT2ForSequenceClassification"])
    with pytest.raises(InputError, match="GPT2ForSequenceClassification") as caught:
        load_model(folder)
    assert "gpt2 generate --model" in caught.value.fix


@pytest.mark.parametrize(
    ("named", "said", "fix"),
    [
        (["GPT2ForSequenceClassification"], "not a language model", "gpt2 classify"),
        (["GPT2Model"], "not a language model", "gpt2 convert"),
        (["GPT2DoubleHeadsModel"], "not a language model", "gpt2 convert"),
        (["LlamaForCausalLM"], "not a GPT-2 language model", "gpt2 download"),
        ({"GPT2LMHeadModel": 1}, "not a GPT-2 language model", "gpt2 download"),
        ([7], "holds a 7", "gpt2 download"),
    ],
)
def test_other_models_are_refused_with_the_command_that_takes_them(
    named: object, said: str, fix: str, folder: Path
) -> None:
    change_config(folder, architectures=named)
    for look in (load_model, read_config, read_model_info):
        with pytest.raises(InputError) as caught:
            look(folder)
        assert said in caught.value.what and caught.value.fix.startswith(fix)
    require_language_model(folder, {"architectures": ["GPT2Model"]}, to_convert=True)
    require_language_model(folder, {"architectures": []})


def bare(folder: Path) -> None:
    tensors = read_tensors(folder / "model.safetensors")
    changes = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    change_weights(folder, **dict.fromkeys(tensors), **changes)


def masked(folder: Path) -> None:
    change_weights(folder, **{"transformer.h.0.attn.bias": torch.ones(1, 1, 12, 12).tril()})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "said"),
    [(bare, "names lack"), (masked, "1 causal masks"), (pickled, "there is no model.safetensors")],
)
def test_older_programs_folders_are_to_be_converted(
    change: Callable[[Path], None], said: str, folder: Path
) -> None:
    change(folder)
    for look in (load_model, read_model_info):
        with pytest.raises(InputError, match=said) as caught:
            look(folder)
        assert caught.value.fix == f"gpt2 convert {folder}"


def test_json_that_says_a_thing_twice_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 1, "format": 1'))
    with pytest.raises(InputError, match="is not JSON") as caught:
        load_model(folder)
    assert "the key 'format' occurs twice" in caught.value.why


def test_fewer_tokens_than_rows_may_be_padding(folder: Path) -> None:
    change_config(folder, vocab_size=20)
    for look in (load_model, read_model_info):
        with pytest.raises(InputError, match="the model 20") as caught:
            look(folder)
        assert "padding" in caught.value.why
        assert f"resize_token_embeddings({TOKENIZER.n_vocab})" in caught.value.fix
    change_config(folder, vocab_size=2)
    with pytest.raises(InputError, match="the model 2") as caught:
        load_model(folder)
    assert "padding" not in caught.value.why and "resize" not in caught.value.fix


def test_a_newer_format_asks_for_an_upgrade(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(NewerFormatError, match="format 99") as caught:
        load_model(folder)
    assert caught.value.fix == "pip install --upgrade gpt2cli"
