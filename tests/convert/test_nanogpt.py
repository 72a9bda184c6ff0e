"""nanoGPT's checkpoints against a nanoGPT written out here, both ways."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import NANO_ARGS, NanoGPT, fill, nano_checkpoint
from torch import Tensor
from words import BYTES

from gpt2cli.checkpoints.folder import TRANSPOSED, stored_shapes
from gpt2cli.convert.detect_format import open_foreign
from gpt2cli.convert.foreign_model import ForeignModel, ForeignTensor, RawTensors
from gpt2cli.convert.nanogpt import require_expressible, write_nanogpt
from gpt2cli.convert.numpy_gpt2 import reference_logits
from gpt2cli.errors import InputError
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, empty_model
from gpt2cli.tokenizer.bpe import BPE
from gpt2cli.tokenizer.bpe import gpt2 as gpt2_tokenizer
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.tokenizer.files import save_tokenizer

IDS = torch.tensor([[1, 50256, 777, 3, 9, 1000, 31, 8]])


def nano(**args: Any) -> NanoGPT:
    model = fill(NanoGPT(**NANO_ARGS | args))
    assert isinstance(model, NanoGPT)
    return model


def save(folder: Path, model: NanoGPT, **args: Any) -> Path:
    torch.save(nano_checkpoint(model, **args), folder / "ckpt.pt")
    return folder / "ckpt.pt"


def as_ours(source: ForeignModel) -> GPT2LMHead:
    """Our model from a source's tensors, whose names and shapes must be just those of its config."""
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == stored_shapes(source.config)
    model = empty_model(source.config)
    state = {name: tensor.load() for name, tensor in source.tensors.items()}
    assert all(state[name].shape == tensor.shape for name, tensor in source.tensors.items())
    state = {name: t.T.contiguous() if name.endswith(TRANSPOSED) else t for name, t in state.items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie()
    return model.eval()


def logits_of(source: ForeignModel, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        return as_ours(source)(ids)


@torch.inference_mode()
def logits(model: torch.nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(ids)  # type: ignore[no-any-return]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_logits_are_those_of_nanogpt(tmp_path: Path, bias: bool, prefix: str) -> None:
    model = nano(bias=bias)
    checkpoint = nano_checkpoint(model, bias=bias)
    checkpoint["model"] = {prefix + name: tensor for name, tensor in checkpoint["model"].items()}
    torch.save(checkpoint, tmp_path / "anything.pt")
    with open_foreign(tmp_path / "anything.pt") as source:
        assert source.format == "nanogpt" and source.config.n_head == 2 and source.config.n_positions == 32
        assert torch.allclose(logits_of(source), logits(model), atol=2e-5, rtol=0)
        (theirs,) = reference_logits(source.raw, source.format, source.config, [IDS[0].tolist()])
        assert torch.allclose(torch.from_numpy(theirs).float(), logits(model)[0], atol=2e-5, rtol=0)
        name = "transformer.h.1.attn.c_proj.weight"
        assert source.tensors[name].transposed and source.tensors[name].source == prefix + name
        assert torch.equal(torch.from_numpy(source.raw[prefix + name]), model.state_dict()[name])
        said = " ".join(source.notes)
        assert "2 mask buffers" in said and "GPT-2's tokenizer is taken" in said and "tanh" in said
        assert ("no biases: zeros" in said) is not bias
        if not bias:
            assert source.tensors["transformer.ln_f.bias"].source == "zeros"


def test_the_exact_gelu_of_nanogpt_differs_by_what_the_note_says(tmp_path: Path) -> None:
    model = nano(gelu="none")
    for parameter in model.parameters():  # of the scale that trained models have
        parameter.data.mul_(0.5)
    with open_foreign(save(tmp_path, model)) as source:
        difference = (logits_of(source) - logits(model)).abs().max().item()
    assert 1e-6 < difference < 3e-3


@dataclass
class GPTConfig:
    """build-nanogpt's, an object of which its train_gpt2.py saves with the weights."""

    block_size: int = 32
    vocab_size: int = 50257
    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 16


def test_build_nanogpt_saves_a_dataclass(tmp_path: Path, gpt2: Callable[..., Any]) -> None:
    model = nano()
    checkpoint = {"model": model.state_dict(), "config": GPTConfig(), "step": 7, "val_loss": 3.1}
    torch.save(checkpoint, tmp_path / "model_00007.pt")
    with open_foreign(tmp_path / "model_00007.pt") as source:
        assert source.config.n_head == 2 and "GELU" not in " ".join(source.notes)
        assert torch.allclose(logits_of(source), logits(model), atol=2e-5, rtol=0)
    assert gpt2("convert", "model_00007.pt", "--out", "made").code == 0
    torch.save({**checkpoint, "config": GPTConfig(n_layer=3)}, tmp_path / "model_00007.pt")
    outcome = gpt2("convert", "model_00007.pt", "--out", "again")
    assert outcome.code == 3 and "n_layer 3" in outcome.err and not (tmp_path / "again").exists()


def test_padding_rows_are_cut_off(tmp_path: Path) -> None:
    model = nano(vocab_size=50304)
    with open_foreign(save(tmp_path, model, vocab_size=50304)) as source:
        assert source.config.vocab_size == 50257 and source.tokenizer is gpt2_tokenizer()
        assert torch.allclose(logits_of(source), logits(model)[..., :50257], atol=2e-5, rtol=0)
        assert "47 rows of the embedding from 50257 on" in " ".join(source.notes)


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    checkpoint = nano_checkpoint(nano())
    head = checkpoint["model"]["lm_head.weight"].clone()
    head[7, 3] += 1
    checkpoint["model"] = dict(checkpoint["model"]) | {"lm_head.weight": head}
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    with open_foreign(tmp_path / "ckpt.pt") as source:
        assert not source.config.tie_word_embeddings
        assert torch.equal(source.tensors["lm_head.weight"].load(), head)
        assert "lm_head.weight is not the token embedding" in " ".join(source.notes)


def test_a_tokenizer_beside_the_checkpoint_is_taken_where_it_fits(tmp_path: Path) -> None:
    chars = Chars.from_text(["abcdefgh\n"])
    save_tokenizer(chars, tmp_path)
    path = save(tmp_path, nano(vocab_size=chars.n_vocab), vocab_size=chars.n_vocab)
    with open_foreign(path) as source:
        assert source.tokenizer.fingerprint == chars.fingerprint
        assert "tokenizer beside it (tokenizer.json)" in " ".join(source.notes)
        assert tmp_path / "tokenizer.json" in source.files
    with open_foreign(save(tmp_path, nano())) as source:  # one that does not fit is somebody else's
        assert source.tokenizer is gpt2_tokenizer()


def test_an_unknown_vocabulary_says_what_to_do(tmp_path: Path) -> None:
    path = save(tmp_path, nano(vocab_size=65), vocab_size=65)
    with pytest.raises(InputError, match="has 65 tokens") as caught, open_foreign(path):
        pass
    assert "meta.pkl" in caught.value.why and "tokenizer.json" in caught.value.fix


def test_a_bare_state_dict_needs_the_number_of_heads(tmp_path: Path) -> None:
    model = nano()
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    with open_foreign(path, n_head=2) as source:
        assert torch.allclose(logits_of(source), logits(model), atol=2e-5, rtol=0)
        assert "as --n-head says" in " ".join(source.notes)
    with (
        pytest.raises(InputError, match="number of attention heads") as caught,
        open_foreign(path),
    ):
        pass
    assert "--n-head" in caught.value.fix


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda checkpoint: checkpoint["model"].pop(name)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda checkpoint: checkpoint["model"].update({name: value})


def args(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda checkpoint: checkpoint["model_args"].update(changes)


W = "transformer.h.1.attn.c_attn.weight"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop(W), f"missing: {W}"),
        (drop("transformer.h.0.ln_1.bias"), r"missing: transformer\.h\.0\.ln_1\.bias"),
        (put("transformer.h.0.rope.freqs", torch.ones(4)), r"unknown: transformer\.h\.0\.rope\.freqs \[4\]"),
        (put(W, torch.zeros(16, 48)), f"{W} has shape"),
        (put(W, [1.0]), "is a list, not a tensor"),
        (put(W, torch.zeros(48, 16, dtype=torch.int64)), "is int64"),
        (put(W, torch.zeros(0, 16)), "is empty"),
        (put("_orig_mod." + W, torch.zeros(48, 16)), "same tensor's name"),
        (put("transformer.wte.weight", torch.zeros(3)), "is not a matrix"),
        (args(n_layer=3), "n_layer 3"),
        (args(n_layer=10**9), "n_layer 1000000000"),
        (args(n_embd="16"), "n_embd '16'"),
        (args(block_size=64), "block_size 64"),
        (args(vocab_size=50304), "vocab_size 50304"),
        (args(bias=False), "bias False"),
        (args(n_head=3), "n_head 3"),
        (args(n_head=0), "n_head 0"),
        (args(dropout=2.0), "dropout 2.0"),
        (lambda checkpoint: checkpoint.update(model_args=[1]), "model_args is a list"),
        (lambda checkpoint: checkpoint.update(model=None), "but not as a GPT-2"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, damage: Callable[[dict[str, Any]], None], said: str) -> None:
    save_tokenizer(BYTES, tmp_path)
    checkpoint = nano_checkpoint(nano(vocab_size=BYTES.n_vocab), vocab_size=BYTES.n_vocab)
    checkpoint["model"] = dict(checkpoint["model"])
    damage(checkpoint)
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    with pytest.raises(InputError) as caught, open_foreign(tmp_path / "ckpt.pt"):
        pass
    assert re.search(said, f"{caught.value}")


def source_of(
    tensors: Mapping[str, Tensor], config: GPT2Config, tokenizer: BPE | None = None
) -> ForeignModel:
    """A source that holds what it is given."""
    return ForeignModel(
        path=Path("somewhere"),
        format="huggingface",
        config=config,
        tokenizer=tokenizer or gpt2_tokenizer(),
        tensors={
            name: ForeignTensor(name, shape, False, lambda name=name: tensors[name])  # type: ignore[misc]
            for name, shape in stored_shapes(config).items()
        },
        raw=RawTensors(tensors, lambda name: tensors[name].numpy()),
        files=(),
    )


CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32)


def random_tensors(config: GPT2Config) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {name: torch.randn(shape) * 0.14 for name, shape in stored_shapes(config).items()}


def test_what_is_written_opens_in_nanogpt_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors, path = random_tensors(CONFIG), tmp_path / "out.pt"
    source = source_of(tensors, CONFIG)
    write_nanogpt(path, source)
    checkpoint = torch.load(path, weights_only=True)
    theirs = NanoGPT(**checkpoint["model_args"]).eval()
    state = checkpoint["model"]
    masks = [name for name in theirs.state_dict() if name.endswith(".attn.bias")]
    assert set(state) == set(theirs.state_dict()) - set(masks)
    assert theirs.load_state_dict(state, strict=False).missing_keys == masks
    assert torch.allclose(logits(theirs), logits_of(source), atol=2e-5, rtol=0)
    assert checkpoint["iter_num"] == 0 and "optimizer" not in checkpoint
    with open_foreign(path) as back:
        assert back.config == CONFIG
        for name, tensor in tensors.items():
            assert torch.equal(back.tensors[name].load(), tensor), name


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.pt"
    path.write_bytes(b"old")

    def stop(value: object, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        write_nanogpt(path, source_of(random_tensors(CONFIG), CONFIG))
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["out.pt"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(CONFIG, tie_word_embeddings=False), "output layer is a matrix of its own"),
        (replace(CONFIG, n_inner=32), "MLP has 32 channels"),
        (replace(CONFIG, layer_norm_epsilon=1e-6), "epsilon is 1e-06"),
    ],
)
def test_what_nanogpt_cannot_be_is_refused(tmp_path: Path, config: GPT2Config, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        write_nanogpt(tmp_path / "out.pt", source_of(random_tensors(config), config))
    assert "--to folder" in caught.value.fix and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=said):
        require_expressible(config, gpt2_tokenizer(), "f32")
    require_expressible(CONFIG, gpt2_tokenizer(), "f32")
    with pytest.raises(InputError, match="f16 is wanted"):
        require_expressible(CONFIG, gpt2_tokenizer(), "f16")


def test_memory_is_let_go_when_the_source_closes(tmp_path: Path) -> None:
    with open_foreign(save(tmp_path, nano())) as source:
        tensor = source.tensors["transformer.wpe.weight"]
        assert json.dumps(source.notes)
    with pytest.raises((KeyError, StopIteration)):
        tensor.load()
