"""`gpt2 download` as a command: sources, what it says, what it prints, and how it ends."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from faulty_server import Fault, Site, serving
from layouts import COMMIT, REPOSITORY, openai_content, serve_hub, serve_openai, tiny_size, use_hub
from openai_checkpoint import make_checkpoint

from gpt2cli import disk, home
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.tokenizer.bpe import gpt2 as bpe
from gpt2cli.weights import conversion, tf_process
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
    assert result["model"] == str(home.models() / "other--model@v1.0")
    assert (result["source"], result["revision"]) == ("hf", COMMIT)
    assert result["verification"]["max_difference"] < 1e-4
    assert set(result["sha256"]) == set(model_files)
    assert home.find_model("other/model@v1.0") == home.models() / "other--model@v1.0"
    site.requests.clear()
    again = json.loads(gpt2("download", "other/model", "--revision", "v1.0", "--json").out)
    assert {name: again[name] for name in again} == {name: result[name] for name in again}
    assert site.requests == []


def test_another_revision_is_another_model(gpt2: Any, site: Site, model_files: dict[str, bytes]) -> None:
    """The same name twice, once at main and once at a tag, must not give the first one's weights."""
    serve_hub(site, model_files, repository="other/model")
    plain = gpt2("download", "other/model", "--json")
    assert json.loads(plain.out)["model"] == str(home.models() / "other--model")
    same = json.loads(gpt2("download", "other/model", "--revision", COMMIT, "--json").out)
    assert (same["model"], same["revision"]) == (str(home.models() / "other--model"), COMMIT)
    site.requests.clear()
    tagged = gpt2("download", "other/model", "--revision", "v2")
    assert tagged.code == 5 and site.requests  # the server is asked, and has no such tag
    serve_hub(site, model_files, repository="other/model", revision="v2")
    assert gpt2("download", "other/model", "--revision", "v2").out == f"{home.models() / 'other--model@v2'}\n"
    assert gpt2("download", "other/model", "--revision", "v2", "--verify").code == 0
    assert gpt2("download", "other/model", "--revision", "v3", "--verify").code == 3


def test_a_model_from_elsewhere_than_asked_is_refused(gpt2: Any, site: Site, hub: None) -> None:
    assert gpt2("download", "tiny", "--source", "hf", "--base-url", site.address).code == 0
    for same in (("--source", "hf"), ("--base-url", site.address), ("--base-url", f"{site.address}/")):
        done = gpt2("download", "tiny", *same)
        assert done.code == 0 and f"is here already, from {site.address}/{REPOSITORY}" in done.err
    other = gpt2("download", "tiny", "--source", "openai")
    assert (other.code, other.out) == (2, "")
    assert "tiny is here already, from the Hugging Face hub" in other.err
    assert "fix: gpt2 download tiny --source openai --force" in other.err
    mirror = gpt2("download", "tiny", "--base-url", "http://mirror.example")
    assert mirror.code == 2
    assert f"tiny is here already, from {site.address}/{REPOSITORY}" in mirror.err
    assert "fix: gpt2 download tiny --base-url http://mirror.example --force" in mirror.err


def test_files_from_another_server_than_asked_are_refused(
    gpt2: Any, site: Site, openai: dict[str, bytes]
) -> None:
    command = ("download", "tiny", "--source", "openai", "--no-convert", "--base-url")
    assert gpt2(*command, site.address).code == 0
    with serving({}) as mirror:
        refused = gpt2(*command, mirror.address)
        assert refused.code == 2 and f"is here already, from {site.address}/tiny" in refused.err
        mirror.files |= site.files
        assert gpt2(*command, mirror.address, "--force").code == 0
        assert len(mirror.requests) == 7
        (home.downloads() / "openai" / "tiny" / DATA).unlink()
        shown = json.loads(gpt2(*command, site.address, "--json").out)  # what is missing comes from there
    assert shown["address"] == f"{site.address}/tiny"


def test_a_model_that_was_not_downloaded_is_here_but_from_no_source(
    gpt2: Any, size: Size, site: Site, model_files: dict[str, bytes]
) -> None:
    place = home.models() / "tiny"
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
    hashes = write_model(folder, new_model(CONFIG, seed=3), bpe(), "task: pretrain\n")
    (folder / "train_state.safetensors").write_bytes(b"large")
    write_manifest(folder, {**hashes, "train_state.safetensors": "0" * 64})
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    serve_hub(site, content, in_lfs=("model.safetensors", "train_state.safetensors"))
    done = gpt2("download", REPOSITORY)
    assert done.code == 0, done.err
    assert "logits differ from an independent computation" in done.err  # a stranger's, whatever it says
    assert not any("train_state" in request.path for request in site.requests)


TWO_AT_ONCE = """
import sys
from gpt2cli.cli.app import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("locks", [True, False])
def test_two_downloads_of_one_model_side_by_side_both_succeed(
    locks: bool, site: Site, model_files: dict[str, bytes], tmp_path: Path
) -> None:
    serve_hub(site, model_files)
    code = TWO_AT_ONCE if locks else f"import fcntl\n{WITHOUT_LOCKS}{TWO_AT_ONCE}"
    environment = {**os.environ, "HF_ENDPOINT": site.address, "HF_HOME": str(tmp_path / "hf")}
    environment.pop("HF_HUB_OFFLINE")
    command = [sys.executable, "-c", code, "download", REPOSITORY]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    heard = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], heard
    place = home.models() / REPOSITORY.replace("/", "--")
    assert {out for out, _ in heard} == {f"{place}\n"}
    verify(place)
    assert sorted(path.name for path in home.models().iterdir()) == [place.name]


WITHOUT_LOCKS = """
def flock(*arguments):
    raise OSError(37, "no locks available")
fcntl.flock = flock
"""


def test_a_place_that_is_taken_in_the_meantime(
    gpt2: Any, site: Site, hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the second of two: the files are here, and the model appears while it is being made."""
    genuine = conversion.convert

    def slow(path: Path, out: Path, wish: Any) -> Any:
        list(genuine(path, out, wish))
        return genuine(path, out, wish)

    monkeypatch.setattr(conversion, "convert", slow)
    done = gpt2("download", "tiny", "--source", "hf", "--json")
    assert done.code == 0, done.err
    assert "tiny is here already" in done.err
    assert json.loads(done.out)["verification"]["max_difference"] < 1e-4

    def other(path: Path, out: Path, wish: Any) -> Any:
        list(genuine(path, out, wish))
        receipt = json.loads((out / "conversion.json").read_text())
        receipt["source"]["files"]["model.safetensors"]["sha256"] = "0" * 64
        (out / "conversion.json").write_text(json.dumps(receipt))
        return genuine(path, out, wish)

    shutil.rmtree(home.models() / "tiny")
    monkeypatch.setattr(conversion, "convert", other)
    taken = gpt2("download", "tiny", "--source", "hf")
    assert taken.code == 2
    assert "another model has come to its place" in taken.err
    assert "fix: gpt2 download tiny --source hf --force" in taken.err


def test_one_waits_for_the_other(gpt2: Any, site: Site, hub: None) -> None:
    assert gpt2("download", "tiny", "--source", "hf", "--no-convert").code == 0
    (folder,) = (home.downloads() / "hub" / REPOSITORY.replace("/", "--")).glob(COMMIT)
    held = ExitStack()
    held.enter_context(disk.lock(folder))
    Timer(1.0, held.close).start()
    done = gpt2("download", "tiny", "--source", "hf")
    assert done.code == 0, done.err
    assert done.err.count("waiting for it") == 1


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
    done = gpt2("download", "tiny", "--source", "openai", "--base-url", site.address)
    assert done.code == 2
    assert "pip install 'gpt2cli[tensorflow]'" in done.err
    assert "gpt2 download tiny --source hf" in done.err
    assert site.requests == []
    kept = gpt2("download", "tiny", "--base-url", site.address, "--no-convert")
    assert kept.code == 0
    assert kept.out == f"{home.downloads() / 'openai' / 'tiny'}\n"
    assert gpt2("download", "tiny", "--no-convert", "--offline").out == kept.out


def test_without_tensorflow_the_hub_is_next_and_offline_what_is_here(
    gpt2: Any, site: Site, hub: None, openai: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf_process.importlib.util, "find_spec", lambda name: None)
    assert gpt2("download", "tiny", "--source", "hf", "--no-convert").code == 0
    site.requests.clear()
    done = gpt2("download", "tiny", "--offline")
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if "TensorFlow" in line]
    assert lines == [
        "OpenAI's checkpoint format needs TensorFlow: it is not installed here;"
        " taking the Hugging Face hub's files"
    ]
    assert site.requests == []
    assert load_model(home.models() / "tiny").config.n_embd == CONFIG.n_embd


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
        (("124M@v1",), "fix: gpt2 download 124M --revision v1"),
        (("124M", "--revision", "a b"), "--revision 'a b' is not a name of git"),
        (("124M", "--verify", "--base-url", "http://x"), "--verify fetches nothing"),
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
    site.faults["/tiny/vocab.bpe"] = [Fault("404")]
    gpt2("download", "tiny", "--source", "openai", "--no-convert", "--base-url", site.address)
    assert gpt2("download", "--list").out.splitlines()[-1].endswith("incomplete")
    assert [row["incomplete"] for row in json.loads(gpt2("download", "--list", "--json").out)][-1] is True
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


def test_verify_fails_on_a_download_of_which_something_is_missing(
    gpt2: Any, site: Site, hub: None, openai: dict[str, bytes]
) -> None:
    site.faults["/tiny/encoder.json"] = [Fault("404")]
    gpt2("download", "tiny", "--source", "openai", "--no-convert", "--base-url", site.address)
    done = gpt2("download", "tiny", "--verify")
    assert (done.code, done.out) == (3, "")
    assert "the download is not complete" in done.err
    assert f"why: missing: encoder.json, vocab.bpe, model.ckpt.index, model.ckpt.meta, {DATA}" in done.err
    assert "fix: gpt2 download tiny --source openai\n" in done.err
    assert gpt2("download", "tiny", "--source", "hf").code == 0  # what was begun is no part of this one
    assert gpt2("download", "tiny", "--verify").code == 0
    folder = home.downloads() / "hub" / REPOSITORY.replace("/", "--") / COMMIT
    for name in ("vocab.json", "model.safetensors"):
        (folder / name).unlink()
        broken = gpt2("download", "tiny", "--verify", "--source", "hf")
        assert broken.code == 3 and name in broken.err
        assert "fix: gpt2 download tiny --source hf --force" in broken.err


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
