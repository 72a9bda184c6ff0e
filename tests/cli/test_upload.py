"""`gpt2 convert --push-to`: a commit on a loopback hub, and the model downloaded from there again."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from layouts import use_hub
from teaching import save_base, write_teaching
from upload_hub import TOKEN, Hub, serving_uploads

Run = Callable[..., Any]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving_uploads() as hub:
        use_hub(monkeypatch, hub.address, tmp_path / "hf")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def run(gpt2: Run, tmp_path: Path) -> Path:
    """A few steps of instruction tuning."""
    done = gpt2("finetune-instruct", write_teaching(tmp_path), "optim.steps=2")
    assert done.code == 0, done.err
    return Path("runs/teach")


def test_a_run_goes_up_and_comes_down_again(hub: Hub, run: Path, gpt2: Run) -> None:
    found = gpt2("convert", run, "--push-to", "me/mine")
    assert found.code == 0, found.err
    assert f"uploaded: {hub.address}/me/mine" in found.err
    files = hub.repositories["me/mine"]
    expected = {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "prompt.json",
        "chat_template.jinja",
    }
    assert expected <= set(files) and not any(name.startswith("train_state") for name in files)
    card = files["README.md"].decode()
    head, _, body = card.removeprefix("---\n").partition("---\n")
    assert "library_name: transformers" in head and body.startswith("\n# me/mine\n")
    loss = json.loads((run / "best" / "train_state.json").read_text())["progress"]["best_loss"]
    assert f"| Validation loss | {loss:.3f} (perplexity" in body and "| Chat template | chat |" in body
    assert "| Data | records.json |" in body and "| Licence of the data | not known to gpt2cli |" in body

    down = gpt2("download", "me/mine")
    assert down.code == 0, down.err
    answers = [
        gpt2("generate", "Say it", "--model", model, "--temperature", "0", "-n", "4", "--json")
        for model in (down.out.strip(), run)
    ]
    ids = [json.loads(answer.out)["ids"] for answer in answers]
    assert ids[0] == ids[1]
    assert "instruction-tuned with the chat template" in answers[0].err  # it came along


def test_a_gguf_goes_up_with_its_modelfile(hub: Hub, run: Path, gpt2: Run) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    found = gpt2("convert", run, "--to", "gguf", "--out", "mine.gguf", "--push-to", "me/mine")
    assert found.code == 0, found.err
    assert set(hub.repositories["me/mine"]) == {"mine.gguf", "mine.Modelfile"}
    assert hub.repositories["me/mine"]["mine.gguf"] == Path("mine.gguf").read_bytes()


def test_what_the_hub_refuses_leaves_the_model_here(hub: Hub, run: Path, gpt2: Run) -> None:
    hub.writers = ()
    found = gpt2("convert", run, "--out", "out", "--push-to", "me/mine")
    assert (
        found.code == 5 and "the hub refuses the upload (403)" in found.err and "hf auth login" in found.err
    )
    assert Path("out/model.safetensors").exists()


@pytest.mark.parametrize(
    ("path", "code", "answer", "said"),
    [
        ("/repos/create", 500, b"out of order", "the hub refuses the upload (500)"),
        ("/repos/create", 200, b"<html>Welcome", "the upload failed"),
        ("/repos/create", 200, b"[]", "the server's answer is not the hub's"),
        ("/preupload/main", 200, b"{}", "the upload failed"),
        ("/commit/main", 409, b'{"error": "a commit has come between"}', "a commit has come between"),
    ],
)
def test_a_hub_out_of_order_leaves_the_model_and_the_command(
    path: str, code: int, answer: bytes, said: str, hub: Hub, tmp_path: Path, gpt2: Run
) -> None:
    hub.faults[path] = (code, answer)
    found = gpt2("convert", save_base(tmp_path / "base"), "--out", "out", "--push-to", "me/mine")
    assert found.code == 5 and said in found.err and found.out == ""
    assert found.err.endswith("fix: hf upload me/mine out\n") and Path("out/model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [("mine", TOKEN, "is not a name of the hub"), ("me/mine", "", "no token for the hub")],
)
def test_what_cannot_work_is_said_before_the_work(
    name: str, token: str, said: str, hub: Hub, run: Path, gpt2: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    found = gpt2("convert", run, "--out", "out", "--push-to", name)
    assert found.code == 2 and said in found.err and not Path("out").exists()
