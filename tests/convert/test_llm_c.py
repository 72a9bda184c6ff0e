"""llm.c's model files: what the layout of its writers says is read, and its other files are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hugging_face_folders import logits, model_of_theirs, padded, state_of
from words import BYTES

from gpt2cli.checkpoints.folder import load_model
from gpt2cli.tokenizer.files import save_tokenizer

Gpt2 = Callable[..., Any]


def llm_c(path: Path, version: int, n_rows: int = 384) -> transformers.GPT2LMHeadModel:
    """A model file as llm.c's writers lay it out: a header of 256 numbers, then array after array."""
    model = model_of_theirs()
    dtype = {3: torch.float32, 5: torch.bfloat16}[version]
    model.load_state_dict({name: t.to(dtype).float() for name, t in state_of(model).items()})
    state = padded(state_of(model), n_rows)
    header = np.zeros(256, dtype="<i4")
    header[:8] = [20240326, version, 24, 257, 2, 4, 32, n_rows]
    rows = ["ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight"]
    rows += ["attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias"]
    rows += ["mlp.c_proj.weight", "mlp.c_proj.bias"]
    names = ["wte.weight", "wpe.weight", *(f"h.{i}.{row}" for row in rows for i in range(2))]
    with open(path, "wb") as file:
        file.write(header.tobytes())
        for name in (*names, "ln_f.weight", "ln_f.bias"):
            tensor = state[f"transformer.{name}"]
            is_matrix = "h." in name and tensor.dim() == 2  # transformers' are (in, out), llm.c's (out, in)
            tensor = (tensor.T if is_matrix else tensor).contiguous().to(dtype)
            file.write(tensor.view(torch.uint8).numpy().tobytes())
    return model


@pytest.mark.parametrize("version", [3, 5])
def test_a_model_of_llm_c_is_read(version: int, gpt2: Gpt2, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    save_tokenizer(BYTES, tmp_path / "log")
    path = tmp_path / "log/model_00001000.bin"
    model = llm_c(path, version)
    done = gpt2("convert", path.parent, "--out", "out", "--json")
    assert done.code == 0, done.err
    receipt = json.loads(done.out)
    assert receipt["source"]["format"] == "llm.c"
    assert [note.partition(" ")[0] for note in receipt["notes"]] == ["the", "127"], receipt["notes"]
    assert receipt["verification"]["passed"]
    torch.testing.assert_close(logits(load_model(tmp_path / "out").model), logits(model), atol=1e-4, rtol=0)
    path.write_bytes(path.read_bytes()[:-4])
    done = gpt2("convert", path, "--out", "other")
    assert done.code == 3 and "its header means" in done.err


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ([20240520, 1], "tokens to train on"),
        ([20240527, 1], "an optimizer's state"),
        ([20240326, 2, 24, 257, 2, 4, 32, 384], "version 2 of llm.c's"),
        ([20240326, 3, 24, 257, 2, 5, 32, 384], "n_head 5 does not divide"),
        ([20240326, 3, 24, 257, 2, 4, 32, 0], "the header is damaged"),
        ([20240326, 3, 24, 257, -2, 4, 32, 384], "n_layer is -2"),
    ],
)
def test_other_files_of_llm_c_are_named(header: list[int], said: str, gpt2: Gpt2, tmp_path: Path) -> None:
    numbers = np.zeros(256, dtype="<i4")
    numbers[: len(header)] = header
    (tmp_path / "x.bin").write_bytes(numbers.tobytes())
    done = gpt2("convert", "x.bin", "--out", "out")
    assert done.code == 3 and said in done.err
    (tmp_path / "x.bin").write_bytes(numbers.tobytes()[:20])
    assert gpt2("convert", "x.bin", "--out", "out").code == 3
