"""The lowest versions that pyproject.toml promises: every library is used once, through a command.

Run by `make check-lowest`, in an environment of the versions of constraints-lowest.txt; not a part of the
suite, and wrong in any other environment.
"""

import io
import json
import re
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from faulty_server import serving
from judge_server import MODEL, judging
from layouts import CONFIG, serve_hub, serve_openai, tiny_size, use_hub
from openai_checkpoint import imitate_checkpoint
from tiny_run import PRETRAIN, random_text, train, write_tokens

from gpt2cli import paths
from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.model.gpt2 import new_model
from gpt2cli.tokenizer.bpe import gpt2 as bpe

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOWEST = dict(
    line.split("==")
    for line in (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)
# torch is .venv's; TensorFlow, half a gigabyte, is left to the suite.
NOT_INSTALLED = {"torch", "tensorflow"}


def promised() -> dict[str, str]:
    """{name: lowest version} of what users install, extras too."""
    extras = PROJECT["optional-dependencies"]
    users = (extras[name] for name in ("gguf", "parquet", "rouge", "tensorboard", "tensorflow"))
    ranges = [*PROJECT["dependencies"], *(one for extra in users for one in extra)]
    return dict(re.fullmatch(r"([\w-]+)>=([\w.]+)", one).groups() for one in ranges)  # type: ignore[union-attr]


def test_the_promised_versions_are_those_installed() -> None:
    assert promised() == LOWEST
    installed = {name: version(name) for name in LOWEST if name not in NOT_INSTALLED}
    assert installed == {name: LOWEST[name] for name in installed}


def test_a_text_becomes_a_model_that_writes_and_chats(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # .venv's, which TensorBoard would take
    write_tokens(gpt2, random_text(400, seed=1))
    run = train(gpt2, PRETRAIN, "run", "log.tensorboard=true")
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG") and any((run / "tensorboard").iterdir())
    written = gpt2("generate", "--model", run, "--json", "-n", "5", "abc")
    found = json.loads(written.out)  # chance may end the text before its five tokens
    assert written.code == 0 and (len(found["ids"]) == 5 or found["finish_reason"] == "end_of_text")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\n/clear\ndef\n")))
    chatted = gpt2("chat", run, "--json", "-n", "5", "--seed", "1")
    assert chatted.code == 0 and len([json.loads(line) for line in chatted.out.splitlines()]) == 2
    seen = gpt2("inspect", run, "--prompt", "abc", "--attention", "heads.png")
    assert seen.code == 0 and Path("heads.png").read_bytes().startswith(b"\x89PNG")


def test_both_sources_of_a_download(gpt2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    config = replace(CONFIG, vocab_size=50257)
    size = tiny_size(monkeypatch, config.n_parameters)
    shape = {
        "n_vocab": 50257,
        "n_ctx": CONFIG.n_positions,
        "n_embd": CONFIG.n_embd,
        "n_head": 2,
        "n_layer": 2,
    }
    checkpoint = imitate_checkpoint(tmp_path / "checkpoint", shape)
    (folder := tmp_path / "model").mkdir()
    write_manifest(folder, write_model(folder, new_model(config, seed=3), bpe(), "task: pretrain\n"))
    names = ("config.json", "vocab.json", "merges.txt", "model.safetensors")
    with serving({}) as site:
        serve_openai(site, size, {path.name: path.read_bytes() for path in checkpoint.iterdir()})
        serve_hub(site, {name: (folder / name).read_bytes() for name in names}, repository="other/model")
        use_hub(monkeypatch, site.address, tmp_path / "hf")
        for words in (("tiny", "--source", "openai", "--base-url", site.address), ("other/model",)):
            done = gpt2("download", *words)
            assert done.code == 0, done.err
    exported = gpt2("convert", paths.models() / "tiny", "--to", "gguf", "--out", "tiny.gguf")
    assert exported.code == 0, exported.err


def test_parquet_the_judge_and_rouge(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    from gpt2cli.evaluation.rouge import rouge

    pyarrow.parquet.write_table(pyarrow.table({"text": [random_text(200, seed=1)] * 2}), "texts.parquet")
    prepared = gpt2("prepare", "texts.parquet", "--text-field", "text", "--out", "texts", "--block", "32")
    assert prepared.code == 0, prepared.err
    record = {"instruction": "Name a thing.", "input": "", "output": "a thing", "response": "thing"}
    Path("answers.json").write_text(json.dumps([record]), encoding="utf-8")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with judging() as server:
        judged = gpt2(
            "judge", "answers.json", "--base-url", server.base_url, "--judge-model", MODEL, "--json"
        )
    assert judged.code == 0 and len(json.loads(judged.out)["items"]) == 1, judged.err
    assert rouge([("a thing", "a thing")])["rouge_l"] == 1.0


def test_an_error_of_the_command_line_names_its_option(gpt2: Any) -> None:
    refused = gpt2("generate", "--max-new-tokens", "many", "abc")
    assert refused.code == 2 and "--max-new-tokens" in refused.err
    misspelt = gpt2("recipes", "check", "verdict", "optim.ler=1")
    assert misspelt.code == 2 and "optim.ler" in misspelt.err
