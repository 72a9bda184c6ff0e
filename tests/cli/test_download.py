"""`gpt2 download` as a command: sources, what it says, what it prints, and how it ends."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty_server import Fault, Site, serving
from layouts import COMMIT, CONFIG, DATA, REPOSITORY, serve_hub, serve_openai, tiny_size
from openai_checkpoint import imitate_checkpoint
from words import BYTES

from gpt2cli import paths
from gpt2cli.checkpoints.folder import load_model, verify, write_manifest, write_model
from gpt2cli.convert import pipeline
from gpt2cli.hub.registry import Size
from gpt2cli.model.gpt2 import new_model


def test_a_repository_becomes_a_model_ready_to_use(gpt2: Any, site: Site, hub: None) -> None:
    done = gpt2("download", "tiny", "--source", "hf")
    assert done.code == 0, done.err
    assert done.out == f"{paths.models() / 'tiny'}\n"
    assert "the hub's files are here: 4 of them" in done.err
    assert "logits differ from the NumPy reference by at most" in done.err
    verify(paths.models() / "tiny")
    assert load_model(paths.models() / "tiny").config.n_embd == CONFIG.n_embd
    said = gpt2("generate", "--model", "tiny", "--json", "-n", "3", "Hello")
    assert json.loads(said.out)["ids"]
    site.requests.clear()
    again = gpt2("download", "tiny")
    assert (again.code, again.out, site.requests) == (0, done.out, [])
    assert "already exists" in again.err
    checked = gpt2("download", "tiny", "--verify")
    assert (checked.code, checked.out, site.requests) == (0, done.out, [])
    assert "right (published): " in checked.err
    assert "right (manifest): " in checked.err


def test_any_repository_of_the_hub_by_its_name(gpt2: Any, site: Site, model_files: dict[str, bytes]) -> None:
    serve_hub(site, model_files, repository="other/model", revision="v1.0")
    done = gpt2("download", "other/model", "--revision", "v1.0", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["model"] == str(paths.models() / "other--model@v1.0")
    assert (result["source"], result["revision"]) == ("hf", COMMIT)
    assert result["verification"]["max_difference"] < 1e-4
    assert set(result["sha256"]) == set(model_files)
    assert paths.find_model("other/model@v1.0") == paths.models() / "other--model@v1.0"
    site.requests.clear()
    again = json.loads(gpt2("download", "other/model", "--revision", "v1.0", "--json").out)
    assert {name: again[name] for name in again} == {name: result[name] for name in again}
    assert site.requests == []


def test_another_revision_is_another_model(gpt2: Any, site: Site, model_files: dict[str, bytes]) -> None:
    """The same name twice, once at main and once at a tag, must not give the first one's weights."""
    serve_hub(site, model_files, repository="other/model")
    plain = gpt2("download", "other/model", "--json")
    assert json.loads(plain.out)["model"] == str(paths.models() / "other--model")
    same = json.loads(gpt2("download", "other/model", "--revision", COMMIT, "--json").out)
    assert (same["model"], same["revision"]) == (str(paths.models() / "other--model"), COMMIT)
    site.requests.clear()
    tagged = gpt2("download", "other/model", "--revision", "v2")
    assert tagged.code == 5 and site.requests  # the server is asked, and has no such tag
    serve_hub(site, model_files, repository="other/model", revision="v2")
    assert (
        gpt2("download", "other/model", "--revision", "v2").out == f"{paths.models() / 'other--model@v2'}\n"
    )
    assert gpt2("download", "other/model", "--revision", "v2", "--verify").code == 0
    assert gpt2("download", "other/model", "--revision", "v3", "--verify").code == 3


def test_a_model_from_elsewhere_than_asked_is_refused(gpt2: Any, site: Site, hub: None) -> None:
    assert gpt2("download", "tiny", "--source", "hf", "--base-url", site.address).code == 0
    for same in (("--source", "hf"), ("--base-url", site.address), ("--base-url", f"{site.address}/")):
        done = gpt2("download", "tiny", *same)
        assert done.code == 0 and f"already exists, from {site.address}/{REPOSITORY}" in done.err
    other = gpt2("download", "tiny", "--source", "openai")
    assert (other.code, other.out) == (2, "")
    assert "tiny already exists, from the Hugging Face hub" in other.err
    assert "fix: gpt2 download tiny --source openai --force" in other.err
    mirror = gpt2("download", "tiny", "--base-url", "http://mirror.example")
    assert mirror.code == 2
    assert f"tiny already exists, from {site.address}/{REPOSITORY}" in mirror.err
    assert "fix: gpt2 download tiny --base-url http://mirror.example --force" in mirror.err


def test_files_from_another_server_than_asked_are_refused(
    gpt2: Any, site: Site, openai: dict[str, bytes]
) -> None:
    command = ("download", "tiny", "--source", "openai", "--no-convert", "--base-url")
    assert gpt2(*command, site.address).code == 0
    with serving({}) as mirror:
        refused = gpt2(*command, mirror.address)
        assert refused.code == 2 and f"already exists, from {site.address}/tiny" in refused.err
        mirror.files |= site.files
        assert gpt2(*command, mirror.address, "--force").code == 0
        assert len(mirror.requests) == 7
        (paths.downloads() / "openai" / "tiny" / DATA).unlink()
        shown = json.loads(gpt2(*command, site.address, "--json").out)  # what is missing comes from there
    assert shown["address"] == f"{site.address}/tiny"


def test_a_model_that_was_not_downloaded_is_here_but_from_no_source(
    gpt2: Any, size: Size, site: Site, model_files: dict[str, bytes]
) -> None:
    place = paths.models() / "tiny"
    place.mkdir(parents=True)
    for name, data in model_files.items():
        (place / name).write_bytes(data)
    assert gpt2("download", "tiny").code == 0
    refused = gpt2("download", "tiny", "--source", "hf")
    assert refused.code == 2 and "not from a download" in refused.err
    (place / "config.json").unlink()
    stranger = gpt2("download", "tiny", "--source", "hf")
    assert stranger.code == 2 and f"fix: mv {place} {place}.old" in stranger.err
    assert site.requests == []


def test_no_gpt2_is_refused_before_its_weights_come(gpt2: Any, site: Site) -> None:
    for config, said in (
        (b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}', "holds a LlamaForCausalLM"),
        (b'{"model_type": "gpt2", "activation_function": "relu"}', "activation_function is 'relu'"),
        (b'{"model_type": "gpt2", "n_head": 5}', "n_head 5 does not divide"),
    ):
        serve_hub(site, {"config.json": config, "model.safetensors": os.urandom(9000), "vocab.json": b"{}"})
        for _ in range(2):
            site.requests.clear()
            done = gpt2("download", REPOSITORY, "--force")
            assert (done.code, done.out) == (3, "")
            assert said in done.err
            assert [request.path.rpartition("/")[2] for request in site.requests[1:]] == ["config.json"]


def test_a_checkpoint_that_was_published_without_its_training_state(
    gpt2: Any, site: Site, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    hashes = write_model(folder, new_model(CONFIG, seed=3), BYTES, "task: pretrain\n")
    (folder / "train_state.safetensors").write_bytes(b"large")
    write_manifest(folder, {**hashes, "train_state.safetensors": "0" * 64})
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    serve_hub(site, content, in_lfs=("model.safetensors", "train_state.safetensors"))
    done = gpt2("download", REPOSITORY)
    assert done.code == 0, done.err
    assert "logits differ from the NumPy reference" in done.err  # a stranger's, whatever it says
    assert not any("train_state" in request.path for request in site.requests)


WITHOUT_LOCKS = """
import fcntl, sys
from gpt2cli.cli.app import main
def flock(*arguments):
    raise OSError(37, "no locks available")
fcntl.flock = flock
main(sys.argv[1:])
"""


def test_two_downloads_of_one_model_side_by_side_both_succeed(
    site: Site, model_files: dict[str, bytes], tmp_path: Path
) -> None:
    """On a disk without locks; with them the second waits (hub/test_fetch_processes.py)."""
    serve_hub(site, model_files)
    environment = {**os.environ, "HF_ENDPOINT": site.address, "HF_HOME": str(tmp_path / "hf")}
    environment.pop("HF_HUB_OFFLINE")
    command = [sys.executable, "-c", WITHOUT_LOCKS, "download", REPOSITORY]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    heard = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], heard
    place = paths.models() / REPOSITORY.replace("/", "--")
    assert {out for out, _ in heard} == {f"{place}\n"}
    verify(place)
    assert sorted(path.name for path in paths.models().iterdir()) == [place.name]


def test_a_place_that_is_taken_in_the_meantime(
    gpt2: Any, site: Site, hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the second of two: the files are here, and the model appears while it is being made."""
    genuine = pipeline.convert

    def slow(path: Path, out: Path, options: Any) -> Any:
        list(genuine(path, out, options))
        return genuine(path, out, options)

    monkeypatch.setattr(pipeline, "convert", slow)
    done = gpt2("download", "tiny", "--source", "hf", "--json")
    assert done.code == 0, done.err
    assert "tiny already exists" in done.err
    assert json.loads(done.out)["verification"]["max_difference"] < 1e-4

    def other(path: Path, out: Path, wish: Any) -> Any:
        list(genuine(path, out, wish))
        receipt = json.loads((out / "conversion.json").read_text())
        receipt["source"]["files"]["model.safetensors"]["sha256"] = "0" * 64
        (out / "conversion.json").write_text(json.dumps(receipt))
        return genuine(path, out, wish)

    shutil.rmtree(paths.models() / "tiny")
    monkeypatch.setattr(pipeline, "convert", other)
    taken = gpt2("download", "tiny", "--source", "hf")
    assert taken.code == 2
    assert "another model has come to its place" in taken.err
    assert "fix: gpt2 download tiny --source hf --force" in taken.err


def test_openai_first_then_the_hub_and_it_says_which(
    gpt2: Any, site: Site, hub: None, openai: dict[str, bytes]
) -> None:
    site.faults["/tiny/hparams.json"] = [Fault("404")]
    done = gpt2("download", "tiny", "--base-url", site.address)
    assert done.code == 0, done.err
    assert "404 Not Found" in done.err
    assert "trying the Hugging Face hub" in done.err
    assert "the hub's files are here" in done.err
    kept = gpt2("download", "tiny", "--base-url", site.address, "--no-convert", "--json")
    result = json.loads(kept.out)
    assert (result["source"], result["model"], result["verification"]) == ("openai", None, None)
    assert result["files"] == str(paths.downloads() / "openai" / "tiny")
    assert result["address"] == f"{site.address}/tiny"


def test_openais_checkpoint_is_converted_at_once(
    gpt2: Any, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = tiny_size(monkeypatch, replace(CONFIG, vocab_size=50257).n_parameters)
    hparams = {"n_vocab": 50257, "n_ctx": 24, "n_embd": 8, "n_head": 2, "n_layer": 2}
    folder = imitate_checkpoint(tmp_path / "checkpoint", hparams)
    serve_openai(site, size, {path.name: path.read_bytes() for path in folder.iterdir()})
    site.faults[f"/tiny/{DATA}"] = [Fault("cut", 900_000)]
    done = gpt2("download", "tiny", "--source", "openai", "--base-url", site.address)
    assert done.code == 0, done.err
    assert done.out == f"{paths.models() / 'tiny'}\n"
    assert "OpenAI's files are here: 7 of them" in done.err
    assert load_model(paths.models() / "tiny").config.n_parameters == size.n_parameters
