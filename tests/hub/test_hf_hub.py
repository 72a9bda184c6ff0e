"""A repository of the hub becomes a folder of proved files; the hub is a server on loopback."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from downloads import QUICK
from faulty_server import Fault, Site, serving
from layouts import COMMIT, REPOSITORY, serve_hub, use_hub

from gpt2cli.checkpoints.provenance import Origin
from gpt2cli.errors import InputError, ServiceError, UsageError
from gpt2cli.hub import hf_hub, registry
from gpt2cli.hub.downloads import Downloaded, DownloadProgress, Request, download_hub, hub_folder
from gpt2cli.hub.inventory import discard, verify
from gpt2cli.hub.registry import Expected, Size

CONTENT = {
    "config.json": b'{"model_type": "gpt2"}',
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
    "model.safetensors": os.urandom(30_000),
    "pytorch_model.bin": b"not asked for",
    "README.md": b"a model card",
    "training_args.bin": b"not asked for either",
    "onnx/model.safetensors": b"nor this",
}
NEEDED = ["config.json", "vocab.json", "merges.txt", "README.md", "model.safetensors"]
WEIGHTS = f"/{REPOSITORY}/resolve/{COMMIT}/model.safetensors"
STORE = f"/store/{hashlib.sha256(CONTENT['model.safetensors']).hexdigest()}"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serving({}) as site:
        serve_hub(site, CONTENT)
        use_hub(monkeypatch, site.address, tmp_path / "hf")
        yield site


def fetch(
    revision: str | None = None, request: Request | None = None
) -> tuple[Downloaded, list[DownloadProgress]]:
    steps = list(download_hub(REPOSITORY, revision, request or Request(policy=QUICK)))
    assert steps[-1].result is not None
    return steps[-1].result, steps


def test_what_a_gpt2_needs_comes_and_nothing_else(site: Site) -> None:
    fetched, _ = fetch()
    assert fetched.folder == hub_folder(REPOSITORY) / COMMIT
    assert fetched.files == {name: hashlib.sha256(CONTENT[name]).hexdigest() for name in NEEDED}
    assert fetched.origin == Origin("hf", f"{site.address}/{REPOSITORY}/resolve/{COMMIT}", COMMIT)
    paths = [request.path for request in site.requests]
    assert paths[0] == f"/api/models/{REPOSITORY}/revision/main?blobs=true"
    assert paths[-1] == f"{STORE}?signature=abc"
    assert {item.by for item in verify(REPOSITORY)} == {"published"}
    assert discard(fetched.folder) == []  # the hub vouches for all of them


@pytest.mark.parametrize(
    ("revision", "fix"),
    [
        (None, f"gpt2 download {REPOSITORY} --force"),
        ("v1", f"gpt2 download {REPOSITORY} --revision v1 --force"),
    ],
)
def test_a_damaged_file_is_told_with_a_command_that_mends_it(
    revision: str | None, fix: str, site: Site
) -> None:
    serve_hub(site, CONTENT, revision=revision or "main")
    path = fetch(revision)[0].folder / "vocab.json"
    path.write_bytes(b"[]")
    with pytest.raises(InputError, match="is not the file it was") as caught:
        list(verify(REPOSITORY))
    assert caught.value.fix == fix


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        ({"config.json", "model.safetensors", "pytorch_model.bin"}, ["config.json", "model.safetensors"]),
        ({"config.json", "pytorch_model.bin"}, ["config.json", "pytorch_model.bin"]),
        (
            {
                "config.json",
                "model.safetensors.index.json",
                "model-00002-of-00002.safetensors",
                "model-00001-of-00002.safetensors",
                "pytorch_model.bin",
            },
            [
                "config.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
        ),
        (
            {"config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"},
            ["config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
        ),
    ],
)
def test_weights_are_whole_or_in_shards(names: set[str], needed: list[str], site: Site) -> None:
    serve_hub(site, dict.fromkeys(names, CONTENT["config.json"]))
    assert list(fetch()[0].files) == needed


@pytest.mark.parametrize(
    "names", [{"model.safetensors"}, {"config.json"}, {"config.json", "model-00001-of-00002.safetensors"}]
)
def test_a_repository_without_a_model_is_an_error(names: set[str], site: Site) -> None:
    serve_hub(site, dict.fromkeys(names, CONTENT["config.json"]))
    with pytest.raises(InputError, match="holds no model that can be read"):
        fetch()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_bytes_are_refused_by_the_hubs_own_hash(name: str, site: Site) -> None:
    path = STORE if name == "model.safetensors" else WEIGHTS.replace("model.safetensors", name)
    site.faults[path] = [Fault("wrong")]
    with pytest.raises(InputError, match=f"is not {name}"):
        fetch()
    assert not (hub_folder(REPOSITORY) / COMMIT / name).exists()
    fetch()
    assert (hub_folder(REPOSITORY) / COMMIT / name).read_bytes() == CONTENT[name]


def test_what_a_mirror_lists_no_hashes_of_is_held_to_its_first_download(site: Site) -> None:
    names = [{"rfilename": name} for name in CONTENT]
    listing = json.dumps({"sha": COMMIT, "siblings": names}).encode()
    site.files[f"/api/models/{REPOSITORY}/revision/main"] = listing
    fetched = fetch()[0]
    assert {item.by for item in verify(REPOSITORY)} == {"first seen"}
    (fetched.folder / "vocab.json").unlink()
    site.files[WEIGHTS.replace("model.safetensors", "vocab.json")] = b"[]"
    with pytest.raises(InputError, match=r"is not vocab\.json") as caught:
        fetch()
    assert caught.value.fix == f"gpt2 download {REPOSITORY} --force"


def test_the_token_goes_to_the_hub_and_not_to_its_store_nor_a_mirror(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_one")
    with serving(site.files) as store:
        site.moved[WEIGHTS] = f"{store.address}{STORE}"
        fetch()
    assert {request.headers.get("authorization") for request in site.requests} == {"Bearer hf_one"}
    assert [request.headers.get("authorization") for request in store.requests] == [None]
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_two\n")
    assert hf_hub.headers(None) == {"authorization": "Bearer hf_two"}
    assert hf_hub.headers(site.address + "/") == hf_hub.headers(None)
    assert hf_hub.headers("http://mirror.example") == {}


@pytest.mark.parametrize(("kind", "code"), [("401", "401 Unauthorized"), ("404", "404 Not Found")])
def test_a_repository_that_is_not_there_or_not_for_us(kind: str, code: str, site: Site) -> None:
    site.script = [Fault(kind)]
    with pytest.raises(ServiceError, match=code) as caught:
        fetch()
    assert ("HF_TOKEN" in caught.value.fix) == (kind == "401")
    assert not list(hub_folder(REPOSITORY).iterdir())


@pytest.mark.parametrize(
    "answer",
    [
        b"[]",
        b"{}",
        b'{"sha": "main", "siblings": []}',
        b'{"sha": 1, "siblings": []}',
        b'{"sha": "0123456789012345678901234567890123456789", "siblings": [{"rfilename": "a"}, 5]}',
        b"\xff",
    ],
)
def test_an_answer_that_is_not_the_hubs_is_an_error(answer: bytes, site: Site) -> None:
    site.files[f"/api/models/{REPOSITORY}/revision/main"] = answer
    with pytest.raises(InputError, match="list of its files cannot be read"):
        fetch()


@pytest.mark.parametrize("name", ["nonsense", "../x", "a/b/c", "a/..", "a/b--c", "a/b?c", ""])
def test_a_name_must_be_one_of_the_hub(name: str) -> None:
    with pytest.raises(UsageError, match="is not a name of the hub"):
        list(download_hub(name, None, Request(policy=QUICK)))


def test_published_hashes_hold_at_their_commit(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size("tiny", 1, REPOSITORY, COMMIT)
    monkeypatch.setitem(registry.SIZES, "tiny", size)
    wrong = {"config.json": Expected(sha256="0" * 64)}
    monkeypatch.setitem(registry.HUB, (REPOSITORY, COMMIT), wrong)
    with pytest.raises(InputError, match=r"is not config\.json") as caught:
        fetch()
    assert "0" * 64 in caught.value.why
    assert site.requests[0].path.startswith(f"/api/models/{REPOSITORY}/revision/{COMMIT}?")
    monkeypatch.setitem(registry.HUB, (REPOSITORY, "another"), registry.HUB.pop((REPOSITORY, COMMIT)))
    fetch()


def test_the_shared_cache_is_used_once_its_hash_is_right(site: Site, tmp_path: Path) -> None:
    blob = _cached(tmp_path, "model.safetensors")
    fetched, steps = fetch()
    assert STORE not in {request.path.partition("?")[0] for request in site.requests}
    path = fetched.folder / "model.safetensors"
    assert path.resolve() == blob
    assert any("Hugging Face cache" in step.note for step in steps)
    fetch()  # the link counts as here
    blob.write_bytes(blob.read_bytes()[::-1])
    fetched, _ = fetch()  # the cache is damaged: fetched
    assert path.read_bytes() == CONTENT["model.safetensors"]
    assert not path.is_symlink()
    path.unlink()
    blob.unlink()
    fetch()
    assert path.read_bytes() == CONTENT["model.safetensors"]


def _cached(tmp_path: Path, *names: str) -> Path:
    """Put files into the cache as huggingface_hub does; returns the last blob."""
    place = tmp_path / "hf" / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(COMMIT)
    for name in names:
        data = CONTENT[name]
        is_lfs = name == "model.safetensors"
        git = hashlib.sha1(b"blob %d\0" % len(data) + data)
        blob = place / "blobs" / (hashlib.sha256(data) if is_lfs else git).hexdigest()
        blob.write_bytes(data)
        (place / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{blob.name}")
    return blob


def test_offline_the_earlier_list_the_cache_or_files_by_hand_do(site: Site, tmp_path: Path) -> None:
    offline = Request(offline=True, policy=QUICK)
    with pytest.raises(ServiceError, match="is out of reach") as caught:
        fetch(request=offline)
    place = hub_folder(REPOSITORY) / "main"
    for part in ("config.json", "model.safetensors", f"{site.address}/{REPOSITORY}", str(place)):
        assert part in caught.value.fix
    place.mkdir(parents=True)  # as the error said
    for name in ("config.json", "model.safetensors"):
        (place / name).write_bytes(CONTENT[name])
    assert fetch(request=offline)[0].folder == place
    _cached(tmp_path, *NEEDED)
    fetched, _ = fetch(request=offline)
    assert fetched.folder == hub_folder(REPOSITORY) / COMMIT
    assert set(fetched.files) == set(NEEDED)
    assert not site.requests
    fetch()
    site.requests.clear()
    with serving({}) as silent:
        pass
    steps = fetch(request=Request(base_url=silent.address, policy=QUICK))[1]
    assert any("the list of an earlier download" in step.note for step in steps)
    assert not site.requests


def test_damage_in_the_cache_is_refused_offline(site: Site, tmp_path: Path) -> None:
    blob = _cached(tmp_path, *NEEDED)
    blob.write_bytes(blob.read_bytes()[::-1])
    with pytest.raises(ServiceError, match="1 of 5 files are out of reach") as caught:
        fetch(request=Request(offline=True, policy=QUICK))
    assert "fetch model.safetensors" in caught.value.fix


def test_huggingfaces_own_environment_counts(site: Site, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME with its token, HF_HUB_OFFLINE: read by huggingface_hub when it is imported."""
    code = f"""
from gpt2cli.hub.downloads import Request, download_hub
*_, last = download_hub({REPOSITORY!r}, None, Request())
print(last.result.folder)
"""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("hf_three")
    environment = {**os.environ, "HF_ENDPOINT": site.address, "HF_HOME": str(tmp_path / "home")}
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        environment.pop(name, None)
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(hub_folder(REPOSITORY) / COMMIT)
    assert site.requests[0].headers["authorization"] == "Bearer hf_three"
    site.requests.clear()
    refused = subprocess.run(
        [sys.executable, "-c", code.replace(REPOSITORY, "some/other")],
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert refused.returncode
    assert "the network is forbidden" in refused.stderr
    assert not site.requests
