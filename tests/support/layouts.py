"""The two layouts in which GPT-2 is served, for a loopback server: OpenAI's store, and the hub."""

import hashlib
import json
import random
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from faulty_server import Site
from words import BYTES

from gpt2cli import paths
from gpt2cli.hub import registry
from gpt2cli.hub.registry import Size, openai_files
from gpt2cli.model.config import GPT2Config
from gpt2cli.tokenizer.bpe import gpt2

# Of the model that is served.
CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=24, vocab_size=BYTES.n_vocab)
DATA = "model.ckpt.data-00000-of-00001"
COMMIT = "1234567890abcdef1234567890abcdef12345678"
REPOSITORY = "somebody/tiny-gpt2"


def tiny_size(monkeypatch: pytest.MonkeyPatch, n_parameters: int = 500) -> Size:
    """A fifth published size, "tiny", for the length of a test."""
    size = Size("tiny", n_parameters, REPOSITORY)
    monkeypatch.setitem(registry.SIZES, "tiny", size)
    monkeypatch.setitem(paths.ALIASES, "tiny", "tiny")
    return size


def openai_content(size: Size) -> dict[str, bytes]:
    """Seven files of the right names and sizes; the two of the vocabulary are the true ones."""
    chance = random.Random(size.n_parameters)
    content = {name: chance.randbytes(known.size or 300) for name, known in openai_files(size).items()}
    content |= {"encoder.json": gpt2().vocab_json, "vocab.bpe": gpt2().merges_txt, "hparams.json": b"{}"}
    return content


def serve_openai(site: Site, size: Size, content: Mapping[str, bytes]) -> None:
    site.files |= {f"/{size.name}/{name}": data for name, data in content.items()}


def serve_hub(
    site: Site,
    content: Mapping[str, bytes],
    in_lfs: Collection[str] = ("model.safetensors",),
    repository: str = REPOSITORY,
    revision: str = "main",
    tags: Collection[str] = (),
) -> None:
    """As huggingface.co: a list of files, small files by git's SHA-1, large ones on another path."""
    siblings = []
    for name, data in content.items():
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        sha256 = hashlib.sha256(data).hexdigest()
        entry = {"rfilename": name, "size": len(data), "blobId": blob}
        if name in in_lfs:
            entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
        siblings.append(entry)
        path, etag = f"/{repository}/resolve/{COMMIT}/{name}", sha256 if name in in_lfs else blob
        site.headers[path] = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
        site.files[path] = data
        if name in in_lfs:
            site.headers[path] |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
            site.files[f"/store/{sha256}"] = site.files.pop(path)
            site.moved[path] = f"/store/{sha256}?signature=abc"
    answer = {"id": repository, "sha": COMMIT, "siblings": siblings, "tags": list(tags)}
    for name in (revision, COMMIT):
        site.files[f"/api/models/{repository}/revision/{name}"] = json.dumps(answer).encode()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str, hf_home: Path) -> None:
    """Let huggingface_hub, which reads its environment once, mean this server and this folder."""
    from huggingface_hub import constants

    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(hf_home / "hub"),
        "HF_TOKEN_PATH": str(hf_home / "token"),
        "HF_STORED_TOKENS_PATH": str(hf_home / "stored_tokens"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
