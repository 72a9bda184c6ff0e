"""`gpt2 download` where something is missing, wrong or unwanted: what it says, and how it ends."""

import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from faulty_server import Fault, Site
from layouts import COMMIT, DATA, REPOSITORY

from gpt2cli import paths
from gpt2cli.hub.registry import Size


def test_files_that_cannot_be_converted_are_refused_and_fetched_anew(
    gpt2: Any, site: Site, openai: dict[str, bytes]
) -> None:
    """Damage that nothing but the conversion can see: hparams.json says nothing."""
    command = ("download", "tiny", "--source", "openai", "--base-url", site.address)
    hurt = gpt2(*command)
    assert (hurt.code, hurt.out) == (3, "")
    assert "these files are damaged; the next download fetches them again" in hurt.err
    folder = paths.downloads() / "openai" / "tiny"
    assert sorted(path.name for path in folder.glob("*.refused"))[0] == "checkpoint.refused"
    assert (folder / "vocab.bpe").exists()
    assert not paths.is_model(paths.models() / "tiny")
    site.requests.clear()
    gpt2(*command, "--no-convert")
    assert len(site.requests) == 5


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
    assert not paths.is_model(paths.models() / "tiny")


@pytest.mark.parametrize("arguments", [("--offline",), ("--offline", "--source", "hf")])
def test_offline_the_steps_are_told_in_four_lines(
    arguments: tuple[str, ...], gpt2: Any, site: Site, size: Size
) -> None:
    done = gpt2("download", "tiny", "--no-convert", *arguments)
    assert done.code == 5
    error = done.err[done.err.index("error:") :].splitlines()
    assert len(error) <= 4
    assert error[-1].startswith("fix: on another machine fetch ")
    assert str(paths.downloads()) in error[-1]
    assert site.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which model?"),
        (("gpt2-smal",), "no such model"),
        (("124M", "--source", "azure"), "--source: invalid value"),
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


def test_verify_without_anything_here_and_with_damage(gpt2: Any, site: Site, hub: None) -> None:
    assert gpt2("download", "tiny", "--verify").code == 3
    assert gpt2("download", "tiny", "--source", "hf").code == 0
    path = paths.models() / "tiny" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    done = gpt2("download", "tiny", "--verify", "--json")
    assert (done.code, done.out) == (3, "")
    assert str(path) in done.err
    assert gpt2("download", "tiny", "--source", "hf", "--force").code == 0
    listed = json.loads(gpt2("download", "tiny", "--verify", "--json").out)
    assert listed["folder"] == str(paths.models() / "tiny")
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
    assert f"fix: gpt2 download tiny --source openai --base-url {site.address}\n" in done.err
    assert gpt2("download", "tiny", "--source", "hf").code == 0  # what was begun is no part of this one
    assert gpt2("download", "tiny", "--verify").code == 0
    folder = paths.downloads() / "hub" / REPOSITORY.replace("/", "--") / COMMIT
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
from gpt2cli import paths as home
from gpt2cli.cli.app import main
from gpt2cli.hub import registry as published
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
    assert "Stopped. Run the same command again to continue." in err, heard
    site.requests.clear()
    again = subprocess.run([*process.args, "--source", "openai"], capture_output=True, text=True, check=True)  # type: ignore[misc]
    assert again.stdout == f"{paths.downloads() / 'openai' / 'tiny'}\n"
    assert (site.starts()[0] or 0) > 50_000
    assert "\x1b" not in again.stderr
