"""`gpt2 download` as a command: sources, what it says, what it prints, and how it ends."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_server import Fault, Site, serving
from layouts import COMMIT, REPOSITORY, openai_content, serve_hub, serve_openai, tiny_size, use_hub
from openai_checkpoint import make_checkpoint

from gpt2cli import home
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.tokenizer.bpe import gpt2 as bpe
from gpt2cli.weights import tf_process
from gpt2cli.weights.folder import load_model, verify, write_manifest, write_model
from gpt2cli.weights.published import Size

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=24)
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="tensorflow is not installed"
)
DATA = "model.ckpt.data-00000-of-00001"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server that stands for both sources, with nothing on it yet."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with serving({}) as site:
        use_hub(monkeypatch, site.address, tmp_path / "hf")
        yield site


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> Size:
    return tiny_size(monkeypatch, CONFIG.n_parameters)


@pytest.fixture
def openai(site: Site, size: Size) -> dict[str, bytes]:
    """OpenAI's layout, of the right names and sizes; no checkpoint that TensorFlow would read."""
    content = openai_content(size)
    serve_openai(site, size, content)
    return content


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small model as the hub would have it."""
    folder = tmp_path_factory.mktemp("model")
    write_manifest(folder, write_model(folder, new_model(CONFIG, seed=3), bpe(), "task: pretrain\n"))
    return {
        name: (folder / name).read_bytes()
        for name in ("config.json", "vocab.json", "merges.txt", "model.safetensors")
    }


@pytest.fixture
def hub(site: Site, size: Size, model_files: dict[str, bytes]) -> None:
    serve_hub(site, model_files)


def test_a_repository_becomes_a_model_ready_to_use(gpt2: Any, site: Site, hub: None) -> None:
    done = gpt2("download", "tiny", "--source", "hf")
    assert done.code == 0, done.err
    assert done.out == f"{home.models() / 'tiny'}\n"
    assert "the hub's files are here: 4 of them" in done.err
    assert "logits differ from an independent computation by at most" in done.err
    verify(home.models() / "tiny")
    assert load_model(home.models() / "tiny").config.n_embd == CONFIG.n_embd
    said = gpt2("generate", "--model", "tiny", "--json", "-n", "3", "Hello")
    assert json.loads(said.out)["ids"]
    site.requests.clear()
    again = gpt2("download", "tiny")
    assert (again.code, again.out, site.requests) == (0, done.out, [])
    assert "is here already" in again.err
    checked = gpt2("download", "tiny", "--verify")
    assert (checked.code, checked.out, site.requests) == (0, done.out, [])
    assert "right (published): " in checked.err
    assert "right (manifest): " in checked.err


def test_any_repository_of_the_hub_by_its_name(gpt2: Any, site: Site, model_files: dict[str, bytes]) -> None:
    serve_hub(site, model_files, repository="other/model", revision="v1.0")
    done = gpt2("download", "other/model", "--revision", "v1.0", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["model"] == str(home.models() / "other--model")
    assert (result["source"], result["revision"]) == ("hf", COMMIT)
    assert result["verification"]["max_difference"] < 1e-4
    assert set(result["sha256"]) == set(model_files)
    assert home.find_model("other/model") == home.models() / "other--model"


@needs_tensorflow
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
    assert result["files"] == str(home.downloads() / "openai" / "tiny")
    assert result["address"] == f"{site.address}/tiny"


@needs_tensorflow
def test_openais_checkpoint_is_converted_at_once(gpt2: Any, site: Site, size: Size, tmp_path: Path) -> None:
    hparams = {"n_vocab": 50257, "n_ctx": 24, "n_embd": 8, "n_head": 2, "n_layer": 2}
    folder = make_checkpoint(tmp_path / "checkpoint", hparams, truth=False)
    serve_openai(site, size, {path.name: path.read_bytes() for path in folder.iterdir()})
    site.faults[f"/tiny/{DATA}"] = [Fault("cut", 900_000)]
    done = gpt2("download", "tiny", "--source", "openai", "--base-url", site.address)
    assert done.code == 0, done.err
    assert done.out == f"{home.models() / 'tiny'}\n"
    assert "OpenAI's files are here: 7 of them" in done.err
    assert load_model(home.models() / "tiny").config.n_parameters == size.n_parameters


@needs_tensorflow
def test_files_that_cannot_be_converted_are_refused_and_fetched_anew(
    gpt2: Any, site: Site, openai: dict[str, bytes]
) -> None:
    """Damage that nothing but the conversion can see: hparams.json says nothing."""
    command = ("download", "tiny", "--source", "openai", "--base-url", site.address)
    hurt = gpt2(*command)
    assert (hurt.code, hurt.out) == (3, "")
    assert "these files are damaged, and the next download fetches them anew" in hurt.err
    folder = home.downloads() / "openai" / "tiny"
    assert sorted(path.name for path in folder.glob("*.refused"))[0] == "checkpoint.refused"
    assert (folder / "vocab.bpe").exists()
    assert not home.is_model(home.models() / "tiny")
    site.requests.clear()
    gpt2(*command, "--no-convert")
    assert len(site.requests) == 5


def test_without_tensorflow_both_ways_on_are_told_before_anything_is_fetched(
    gpt2: Any, site: Site, openai: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf_process.importlib.util, "find_spec", lambda name: None)
    done = gpt2("download", "tiny", "--base-url", site.address)
    assert done.code == 2
    assert "pip install 'gpt2cli[tensorflow]'" in done.err
    assert "gpt2 download tiny --source hf" in done.err
    assert site.requests == []
    kept = gpt2("download", "tiny", "--base-url", site.address, "--no-convert")
    assert kept.code == 0
    assert kept.out == f"{home.downloads() / 'openai' / 'tiny'}\n"


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (Fault("wrong"), 3, "git's SHA-1 of its"),
        (Fault("html"), 3, "a web page"),
        (Fault("403"), 5, "403 Forbidden"),
        (Fault("to-file"), 5, "redirects to file://"),
    ],
)
def test_each_failure_has_its_code_and_few_lines(
    fault: Fault, code: int, message: str, gpt2: Any, site: Site, hub: None
) -> None:
    site.faults[f"/{REPOSITORY}/resolve/{COMMIT}/config.json"] = [fault]
    done = gpt2("download", "tiny", "--source", "hf")
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert "Traceback" not in done.err
    assert not home.is_model(home.models() / "tiny")


@pytest.mark.parametrize("arguments", [("--offline",), ("--offline", "--source", "hf")])
def test_offline_the_steps_are_told_in_four_lines(
    arguments: tuple[str, ...], gpt2: Any, site: Site, size: Size
) -> None:
    done = gpt2("download", "tiny", "--no-convert", *arguments)
    assert done.code == 5
    error = done.err[done.err.index("error:") :].splitlines()
    assert len(error) <= 4
    assert error[-1].startswith("fix: on another machine fetch ")
    assert str(home.downloads()) in error[-1]
    assert site.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which model?"),
        (("gpt2-smal",), "no such model"),
        (("124M", "--source", "azure"), "--source azure is unknown"),
        (("a/b", "--source", "openai"), "OpenAI has only its own sizes"),
        (("124M", "--source", "openai", "--revision", "x"), "--revision goes with --source hf"),
        (("a--b/c",), "is not a name of the hub"),
        (("124M", "--base-url", "ftp://x", "--no-convert"), "is not an address of the web"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], message: str, gpt2: Any, site: Site) -> None:
    done = gpt2("download", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "gpt2-smal" not in arguments or "gpt2 download gpt2-small" in done.err


def test_the_list_shows_sizes_and_what_is_here(
    gpt2: Any, site: Site, hub: None, openai: dict[str, bytes]
) -> None:
    rows = gpt2("download", "--list").out.splitlines()
    assert rows[1].split()[:4] == ["124M", "124,439,808", "499", "MB"]
    assert [row.split()[-1] for row in rows[1:]] == ["no"] * 5
    gpt2("download", "tiny", "--no-convert", "--base-url", site.address)
    assert gpt2("download", "--list").out.splitlines()[-1].endswith("files, not converted")
    gpt2("download", "tiny", "--source", "hf")
    assert gpt2("download", "--list").out.splitlines()[-1].endswith("ready")
    listed = json.loads(gpt2("download", "--list", "--json").out)
    assert [row["ready"] for row in listed] == [False] * 4 + [True]
    assert listed[1]["repository"] == "openai-community/gpt2-medium"


def test_the_list_needs_no_torch() -> None:
    code = (
        "import sys; from gpt2cli.cli.download import _list; _list(False);"
        " print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("False False\n")


def test_verify_without_anything_here_and_with_damage(gpt2: Any, site: Site, hub: None) -> None:
    assert gpt2("download", "tiny", "--verify").code == 3
    assert gpt2("download", "tiny", "--source", "hf").code == 0
    path = home.models() / "tiny" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    done = gpt2("download", "tiny", "--verify", "--json")
    assert (done.code, done.out) == (3, "")
    assert str(path) in done.err
    assert gpt2("download", "tiny", "--source", "hf", "--force").code == 0
    listed = json.loads(gpt2("download", "tiny", "--verify", "--json").out)
    assert listed["folder"] == str(home.models() / "tiny")
    assert {file["by"] for file in listed["files"]} == {"published", "manifest"}


def test_ctrl_c_says_that_the_same_command_continues(
    site: Site, size: Size, openai: dict[str, bytes]
) -> None:
    site.faults["/tiny/vocab.bpe"] = [Fault("stall", 100_000)]
    code = f"""
import sys
from gpt2cli import home
from gpt2cli.cli.app import main
from gpt2cli.weights import published
home.ALIASES["tiny"] = "tiny"
published.SIZES["tiny"] = published.Size("tiny", {size.n_parameters}, "a/b")
main(sys.argv[1:])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, "download", "tiny", "--no-convert", "--base-url", site.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    heard = []
    for line in process.stderr:
        heard.append(line)
        if line.startswith("vocab.bpe  456.3 KB"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "Stopped. The same command continues where it was." in err, heard
    site.requests.clear()
    again = subprocess.run([*process.args, "--source", "openai"], capture_output=True, text=True, check=True)  # type: ignore[misc]
    assert again.stdout == f"{home.downloads() / 'openai' / 'tiny'}\n"
    assert (site.starts()[0] or 0) > 50_000
    assert "\x1b" not in again.stderr
