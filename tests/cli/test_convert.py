"""`gpt2 convert` as typed: names, places, streams, and the messages of each refusal."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from words import BYTES

from gpt2cli import paths
from gpt2cli.checkpoints.folder import load_model, verify, write_manifest, write_model
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.tokenizer.files import save_tokenizer

Gpt2 = Callable[..., object]


@pytest.fixture
def foreign(loud_model: GPT2LMHead, tmp_path: Path) -> Path:
    folder = tmp_path / "theirs"
    folder.mkdir()
    write_model(folder, loud_model, BYTES, "")
    (folder / "recipe.yaml").unlink()
    return folder


@pytest.fixture
def run(loud_model: GPT2LMHead, tmp_path: Path) -> Path:
    """What pretraining leaves: runs/mine with a checkpoint and its pointers."""
    folder = tmp_path / "runs/mine/checkpoints/step-000007"
    folder.mkdir(parents=True)
    write_manifest(folder, write_model(folder, loud_model, BYTES, "task: pretrain\n"))
    for pointer in ("best", "last"):
        (tmp_path / "runs/mine" / pointer).symlink_to("checkpoints/step-000007")
    return tmp_path / "runs/mine"


def test_a_foreign_folder_becomes_a_model_by_name(gpt2: Gpt2, foreign: Path, loud_model: GPT2LMHead) -> None:
    done = gpt2("convert", foreign)
    place = paths.models() / "theirs"
    assert (done.code, done.out) == (0, f"{place}\n")
    verify(place)
    lines = done.err.splitlines()
    assert lines[0].startswith("PASS") and len(lines) < 12, done.err  # it fits a screen, the result first
    details = json.loads((place / "conversion.json").read_text())["tensors"]
    rows = [row for row in details if row["source"] == "transformer.h.1.attn.c_proj.weight"]
    assert len(rows) == 1 and rows[0]["shape"] == [32, 32] and str(place / "conversion.json") in done.err
    assert f"parameters: {loud_model.config.n_parameters:,}, not one of OpenAI's sizes" in done.err
    foreign.rename(foreign.with_name("away"))  # a folder in the present one would go before the name
    again = gpt2("generate", "Hello", "--model", "theirs", "-n", "3", "--temperature", "0")
    assert again.code == 0


def test_json_is_the_receipt(gpt2: Gpt2, foreign: Path, tmp_path: Path) -> None:
    done = gpt2("convert", foreign, "--out", tmp_path / "out", "--json")
    assert done.code == 0
    receipt = json.loads(done.out)
    assert receipt == json.loads((tmp_path / "out/conversion.json").read_text())
    assert receipt["verification"]["passed"] is True


def test_a_run_goes_out_under_its_own_name(gpt2: Gpt2, run: Path, tmp_path: Path) -> None:
    save_tokenizer(BYTES, tmp_path)  # beside nanoGPT's file, which holds none
    for typed in ("mine", "runs/mine", "runs/mine/best", "runs/mine/checkpoints/step-000007"):
        done = gpt2("convert", typed, "--to", "nanogpt", "--force")
        assert (done.code, done.out) == (0, "mine.pt\n"), done.err
    assert "not compared with the source" in done.err
    back = gpt2("convert", tmp_path / "mine.pt", "--out", tmp_path / "back")
    assert back.code == 0 and "PASS" in back.err
    ours, theirs = load_model(run / "best").model, load_model(tmp_path / "back").model
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_gguf_has_its_ending(gpt2: Gpt2, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    done = gpt2("convert", "mine", "--to", "gguf", "--dtype", "f16")
    assert (done.code, done.out) == (0, "mine.gguf\n")
    assert (tmp_path / "mine.gguf").read_bytes()[:4] == b"GGUF"
    assert (tmp_path / "mine.Modelfile").read_text().startswith("FROM ./mine.gguf\n")
    assert "ollama create mine -f mine.Modelfile" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["nowhere"], 3, "nowhere: no such model"),
        (["124M"], 3, "124M: this model is not here yet"),
        (["theirs", "--to", "onnx"], 2, "'onnx' is not one of"),
        (["theirs", "--dtype", "q8_0"], 2, "--dtype q8_0 does not go with --to folder"),
        (["theirs", "--out", "theirs"], 2, "theirs: is the source itself"),
        (["/dev/zero"], 3, "/dev/zero"),
    ],
)
def test_refusals(gpt2: Gpt2, foreign: Path, arguments: list[str], code: int, what: str) -> None:
    done = gpt2("convert", *arguments)
    assert done.code == code and what in done.err
    assert done.out == "" and len(done.err.splitlines()) <= 4
    assert "Traceback" not in done.err


def test_a_missing_size_is_one_download_away(gpt2: Gpt2) -> None:
    for name in ("124M", "gpt2", "openai-community/gpt2", "GPT2-small"):
        assert "fix: gpt2 download 124M" in gpt2("convert", name).err


def test_what_exists_stays_without_force(gpt2: Gpt2, foreign: Path) -> None:
    assert gpt2("convert", foreign).code == 0
    done = gpt2("convert", foreign)
    assert done.code == 2 and "exists already" in done.err and "--force" in done.err
    assert gpt2("convert", foreign, "--force").code == 0


def test_names_cannot_steer_a_terminal(gpt2: Gpt2, foreign: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a\x1b[31m[x]"
    foreign.rename(odd)
    done = gpt2("convert", odd, "--out", tmp_path / "out")
    assert done.code == 0 and "\x1b" not in done.err + done.out and "␛[31m[x]" in done.err
