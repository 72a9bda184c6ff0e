"""Servers: one that stands for both sources of `gpt2 download`, with what lies on it, and a judge."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from answers import RECORDS, low, write
from faulty_server import Site, serving
from judge_server import Judge, judging
from judged import without_pauses
from layouts import CONFIG, openai_content, serve_hub, serve_openai, tiny_size, use_hub
from words import BYTES

from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.hub.registry import Size
from gpt2cli.model.gpt2 import new_model


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server that stands for both sources, with nothing on it yet."""
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
    write_manifest(folder, write_model(folder, new_model(CONFIG, seed=3), BYTES, "task: pretrain\n"))
    return {
        name: (folder / name).read_bytes()
        for name in ("config.json", "vocab.json", "merges.txt", "model.safetensors")
    }


@pytest.fixture
def hub(site: Site, size: Size, model_files: dict[str, bytes]) -> None:
    serve_hub(site, model_files)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    """A judge that falls for no canary; attempts follow each other at once."""
    without_pauses(monkeypatch)
    with judging() as judge:
        judge.answer = low
        yield judge


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Responses to judge."""
    return write(tmp_path / "answers.json", RECORDS)
