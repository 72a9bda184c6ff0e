"""The NumPy GPT-2 against the model, in each format's spelling, and against mistakes."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loud import loud

from gpt2cli.checkpoints.folder import TRANSPOSED
from gpt2cli.convert.numpy_gpt2 import loss_of, reference_logits
from gpt2cli.convert.verify import converted_logits
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model

PROMPTS = [[5, 17, 3, 3, 9, 1, 40], [2], list(range(16))]
CONFIG = GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=16, vocab_size=50)
Raw = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def model() -> GPT2LMHead:
    return loud(new_model(CONFIG, seed=3))


def hugging_face(model: GPT2LMHead, prefix: str = "transformer.") -> Raw:
    return {
        name.replace("transformer.", prefix): (t.T if name.endswith(TRANSPOSED) else t).numpy()
        for name, t in model.state_dict().items()
        if name != "lm_head.weight" or not model.config.tie_word_embeddings
    }


def in_float64(model: GPT2LMHead) -> list[np.ndarray]:
    raw = hugging_face(model)
    return [*converted_logits(model.config, lambda name: torch.from_numpy(raw[name]), PROMPTS, torch.float64)]


def nanogpt(model: GPT2LMHead) -> Raw:
    return {f"_orig_mod.{name}": tensor.numpy() for name, tensor in model.state_dict().items()}


def openai(model: GPT2LMHead) -> Raw:
    found = {}
    for name, array in hugging_face(model, "model/").items():
        name = name.replace("h.", "h").replace(".", "/").removesuffix("wte/weight").removesuffix("wpe/weight")
        name = {"model/": "model/wte"}.get(name, name)
        found[name] = array
    found["model/wpe"] = model.transformer.wpe.weight.detach().numpy()
    found["model/wte"] = model.transformer.wte.weight.detach().numpy()
    renamed = {}
    for name, array in found.items():
        norm = "ln_" in name
        name = name.replace("/weight", "/g" if norm else "/w").replace("/bias", "/b")
        renamed[name] = array[None] if name.endswith("/w") else array
    return renamed


def book(model: GPT2LMHead) -> Raw:
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    names = {"attn.c_proj": "att.out_proj", "mlp.c_fc": "ff.layers.0", "mlp.c_proj": "ff.layers.2"}
    found = {
        "tok_emb.weight": state["transformer.wte.weight"],
        "pos_emb.weight": state["transformer.wpe.weight"],
        "final_norm.scale": state["transformer.ln_f.weight"],
        "final_norm.shift": state["transformer.ln_f.bias"],
        "out_head.weight": state["lm_head.weight"],
    }
    for layer in range(model.config.n_layer):
        ours, theirs = f"transformer.h.{layer}.", f"trf_blocks.{layer}."
        for kind in ("weight", "bias"):
            for part, array in zip(
                ("query", "key", "value"), np.split(state[f"{ours}attn.c_attn.{kind}"], 3), strict=True
            ):
                found[f"{theirs}att.W_{part}.{kind}"] = array
            for own, other in names.items():
                found[f"{theirs}{other}.{kind}"] = state[f"{ours}{own}.{kind}"]
            for number in (1, 2):
                new = "scale" if kind == "weight" else "shift"
                found[f"{theirs}norm{number}.{new}"] = state[f"{ours}ln_{number}.{kind}"]
    return found


SPELLINGS: list[tuple[str, Callable[[GPT2LMHead], Raw]]] = [
    ("gpt2cli", hugging_face),
    ("huggingface", hugging_face),
    ("huggingface", lambda model: hugging_face(model, "")),
    ("nanogpt", nanogpt),
    ("openai-tf", openai),
    ("llms-from-scratch", book),
]


@pytest.mark.parametrize(("format", "spelled"), SPELLINGS)
def test_equals_the_model_in_every_spelling(
    format: str, spelled: Callable[[GPT2LMHead], Raw], model: GPT2LMHead
) -> None:
    found = reference_logits(spelled(model), format, CONFIG, PROMPTS)
    for ours, theirs in zip(in_float64(model), found, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-10


@pytest.mark.parametrize("format", ["huggingface", "llms-from-scratch"])
def test_a_head_of_its_own(format: str) -> None:
    config = replace(CONFIG, tie_word_embeddings=False)
    model = loud(new_model(config, seed=3))
    raw = hugging_face(model) if format == "huggingface" else book(model)
    (found,) = reference_logits(raw, format, config, [[1, 2, 3]])
    with torch.inference_mode():
        ours = model(torch.tensor([[1, 2, 3]]))[0].double().numpy()
    assert np.abs(ours - found).max() < 1e-4


def test_biases_that_a_format_leaves_out_are_zero(model: GPT2LMHead) -> None:
    raw = nanogpt(model)
    without = {name: array for name, array in raw.items() if not name.endswith("bias")}
    zeroed = {name: array * (not name.endswith("bias")) for name, array in raw.items()}
    for a, b in zip(
        reference_logits(without, "nanogpt", CONFIG, PROMPTS),
        reference_logits(zeroed, "nanogpt", CONFIG, PROMPTS),
        strict=True,
    ):
        assert np.array_equal(a, b)


def test_a_square_matrix_turned_over_shows(model: GPT2LMHead) -> None:
    raw = hugging_face(model)
    right = reference_logits(raw, "huggingface", CONFIG, PROMPTS)
    wrong = {name: a.T if name.endswith("attn.c_proj.weight") else a for name, a in raw.items()}
    found = reference_logits(wrong, "huggingface", CONFIG, PROMPTS)
    assert np.abs(right[0] - found[0]).max() > 0.1
    mended = reference_logits(wrong, "huggingface", CONFIG, PROMPTS, transposed=True)
    assert np.abs(right[0] - mended[0]).max() < 1e-12


def test_rounding_is_that_of_the_converted_model(model: GPT2LMHead) -> None:
    def halved(array: np.ndarray) -> np.ndarray:
        return torch.from_numpy(np.ascontiguousarray(array)).bfloat16().float().numpy()

    rounded = reference_logits(hugging_face(model), "huggingface", CONFIG, PROMPTS, rounded=halved)
    for_bf16 = new_model(CONFIG, seed=3)
    for_bf16.load_state_dict({name: t.bfloat16().float() for name, t in model.state_dict().items()})
    ours = in_float64(for_bf16)
    assert np.abs(ours[2] - rounded[2]).max() < 1e-10


def test_the_loss_is_cross_entropy(model: GPT2LMHead) -> None:
    ids = PROMPTS[2]
    with torch.inference_mode():
        logits = model(torch.tensor([ids]))[0].double()
    wanted = F.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()
    assert loss_of(logits.numpy(), ids) == pytest.approx(wanted, abs=1e-9)
    assert loss_of(logits.numpy()[:1], ids[:1]) == math.inf
