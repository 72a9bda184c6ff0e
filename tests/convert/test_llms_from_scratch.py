"""The book's checkpoints against the book's model written out here."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import BookGPT, fill
from torch import Tensor

from gpt2cli.checkpoints.folder import TRANSPOSED, stored_shapes
from gpt2cli.convert.detect_format import open_foreign
from gpt2cli.convert.foreign_model import ForeignModel
from gpt2cli.convert.numpy_gpt2 import reference_logits
from gpt2cli.errors import InputError
from gpt2cli.model.gpt2 import empty_model
from gpt2cli.tokenizer.bpe import gpt2

IDS = torch.tensor([[1, 50256, 777, 3, 9, 1000, 31, 8]])


def book(tied: bool = False, **sizes: Any) -> BookGPT:
    model = fill(BookGPT(**sizes))
    assert isinstance(model, BookGPT)
    if tied:
        model.out_head.weight.data.copy_(model.tok_emb.weight.data)
    return model


def saved(folder: Path, value: Any) -> Path:
    torch.save(value, folder / "model.pth")
    return folder / "model.pth"


@torch.inference_mode()
def logits_of(source: ForeignModel) -> Tensor:
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == stored_shapes(source.config)
    state = {name: tensor.load() for name, tensor in source.tensors.items()}
    model = empty_model(source.config)
    state = {name: t.T.contiguous() if name.endswith(TRANSPOSED) else t for name, t in state.items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie()
    return model.eval()(IDS)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("shape", "tied", "qkv_bias"),
    [
        ("bare", True, True),
        ("bare", False, False),
        ("with an optimizer", True, False),
        ("_orig_mod.", False, True),
        ("module._orig_mod.", True, False),
    ],
)
def test_logits_are_those_of_the_book(tmp_path: Path, shape: str, tied: bool, qkv_bias: bool) -> None:
    model = book(tied, qkv_bias=qkv_bias)
    value: Any = model.state_dict()
    if shape.endswith("."):
        value = {shape + name: tensor for name, tensor in value.items()}
    if shape == "with an optimizer":
        value = {
            "model_state_dict": value,
            "optimizer_state_dict": torch.optim.AdamW(model.parameters()).state_dict(),
        }
    with torch.inference_mode():
        wanted = model(IDS)
    with open_foreign(saved(tmp_path, value), n_head=2) as source:
        assert source.format == "llms-from-scratch" and source.tokenizer is gpt2()
        assert source.config.tie_word_embeddings is tied and source.config.n_positions == 32
        assert torch.allclose(logits_of(source), wanted, atol=2e-5, rtol=0)
        (theirs,) = reference_logits(source.raw, source.format, source.config, [IDS[0].tolist()])
        assert torch.allclose(torch.from_numpy(theirs).float(), wanted[0], atol=2e-5, rtol=0)
        said = " ".join(source.notes)
        assert "2 mask buffers" in said and "2 attention heads, as --n-head says" in said
        assert ("no biases of query, key and value" in said) is not qkv_bias
        assert ("out_head.weight is not the token embedding" in said) is not tied
        joined = source.tensors["transformer.h.0.attn.c_attn.weight"].source
        prefix = shape if shape.endswith(".") else ""
        assert joined == " + ".join(
            f"{prefix}trf_blocks.0.att.W_{part}.weight" for part in ("query", "key", "value")
        )


def test_without_the_option_64_channels_make_a_head(tmp_path: Path) -> None:
    model = book(emb_dim=128, n_heads=2)
    with torch.inference_mode():
        wanted = model(IDS)
    with open_foreign(saved(tmp_path, model.state_dict())) as source:
        assert source.config.n_head == 2 and "--n-head N sets another number" in " ".join(source.notes)
        assert torch.allclose(logits_of(source), wanted, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("n_head", "said"),
    [(None, "number of attention heads is not in the file"), (3, "3 attention heads"), (0, "0 att")],
)
def test_heads_that_do_not_divide_the_channels(tmp_path: Path, n_head: int | None, said: str) -> None:
    path = saved(tmp_path, book().state_dict())
    with pytest.raises(InputError, match=said) as caught, open_foreign(path, n_head=n_head):
        pass
    assert "--n-head" in caught.value.fix


W = "trf_blocks.1.att.W_key.weight"


def drop(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state.pop(name)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop(W), f"missing: {W}"),
        (drop("trf_blocks.0.att.W_key.bias"), r"missing: trf_blocks\.0\.att\.W_key\.bias \[16\]"),
        (put(W, torch.zeros(16, 15)), f"{W} has shape"),
        (put("out_head.weight", torch.zeros(10, 16)), "out_head.weight has shape"),
        (put("extra", torch.zeros(2)), "unknown: extra"),
        (put("pos_emb.weight", 5), "pos_emb.weight is not a matrix"),
        (put(7, torch.zeros(2)), "has an entry 7"),
        (put(W, torch.zeros(16, 16, dtype=torch.complex64)), "is complex64"),
        (put("tok_emb.weight", torch.zeros(100, 16)), "has 100 tokens"),
        (lambda state: [state.pop(name) for name in list(state) if name.startswith("trf")], "0 blocks"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, damage: Callable[[dict[str, Any]], Any], said: str) -> None:
    state = dict(book(qkv_bias=True).state_dict())
    damage(state)
    with pytest.raises(InputError) as caught, open_foreign(saved(tmp_path, state), n_head=2):
        pass
    assert re.search(said, str(caught.value))


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, {"model_state_dict": 3}, torch.zeros(2)])
def test_another_thing_is_no_checkpoint_of_the_book(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match="but not as a GPT-2"), open_foreign(saved(tmp_path, value)):
        pass
