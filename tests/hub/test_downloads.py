"""A size becomes a folder of proved files: OpenAI's layout, records, and what happens offline."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import QUICK
from faulty_server import Fault, Site, serving
from layouts import openai_content, serve_openai, tiny_size

from gpt2cli.checkpoints.provenance import NAME, Origin
from gpt2cli.errors import InputError, ResourceError, ServiceError
from gpt2cli.hub.downloads import Downloaded, DownloadProgress, Request, download_openai, openai_folder
from gpt2cli.hub.inventory import REFUSED, discard, is_here, verify
from gpt2cli.hub.registry import SIZES, Size, openai_files
from gpt2cli.model.config import PRESETS

DATA = "model.ckpt.data-00000-of-00001"


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> Size:
    return tiny_size(monkeypatch)


@pytest.fixture
def content(size: Size) -> dict[str, bytes]:
    return openai_content(size)


@pytest.fixture
def site(size: Size, content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serving({}) as site:
        serve_openai(site, size, content)
        yield site


def fetch(size: Size, site: Site, **options: bool | int) -> tuple[Downloaded, list[DownloadProgress]]:
    steps = list(download_openai(size, request(site, **options)))
    assert steps[-1].result is not None
    return steps[-1].result, steps


def request(site: Site, **options: bool | int) -> Request:
    return replace(Request(base_url=site.address + "/", policy=QUICK), **options)  # type: ignore[arg-type]


def test_the_table_agrees_with_the_model_and_names_each_size_once() -> None:
    assert list(SIZES) == list(PRESETS)
    for name, size in SIZES.items():
        assert size.name == name
        assert size.n_parameters == PRESETS[name].n_parameters
        assert openai_files(size)[DATA].size == 4 * PRESETS[name].n_parameters


def test_seven_files_come_with_progress_and_a_record(
    size: Size, site: Site, content: dict[str, bytes]
) -> None:
    fetched, steps = fetch(size, site)
    assert fetched.folder == openai_folder(size)
    assert fetched.files == {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    assert fetched.origin == Origin("openai", f"{site.address}/tiny", "")
    assert fetched.n_bytes == sum(map(len, content.values()))
    for name, data in content.items():
        assert (fetched.folder / name).read_bytes() == data
    totals = [(step.all_done, step.all_total) for step in steps if step.all_total]
    assert totals[-1] == (fetched.n_bytes, fetched.n_bytes)
    assert [done for done, _ in totals] == sorted(done for done, _ in totals)
    records = json.loads((fetched.folder / NAME).read_text())["files"]
    assert records[DATA]["by"] == "first seen"
    assert records["vocab.bpe"]["by"] == "published"
    assert records[DATA]["address"] == f"{site.address}/tiny/{DATA}"
    assert records[DATA]["date"].startswith("20")
    assert is_here(size)


def test_what_is_here_is_compared_and_not_fetched(size: Size, site: Site, content: dict[str, bytes]) -> None:
    folder = openai_folder(size)
    folder.mkdir(parents=True)
    for name in ("vocab.bpe", DATA, "checkpoint"):  # somebody put them there
        (folder / name).write_bytes(content[name])
    fetched, _ = fetch(size, site)
    assert len(site.requests) == 4
    assert set(fetched.files) == set(content)
    site.requests.clear()
    again, _ = fetch(size, site, offline=True)
    assert (again.files, site.requests) == (fetched.files, [])
    fetch(size, site, fresh=True)
    assert len(site.requests) == 7


def test_a_file_put_there_of_the_wrong_size_is_fetched(
    size: Size, site: Site, content: dict[str, bytes]
) -> None:
    folder = openai_folder(size)
    folder.mkdir(parents=True)
    (folder / DATA).write_bytes(content[DATA][:-1])  # nothing but its size is known
    _, steps = fetch(size, site)
    assert (folder / DATA).read_bytes() == content[DATA]
    assert any("it has 1,999 bytes, not 2,000" in step.note for step in steps)


@pytest.mark.parametrize("name", ["vocab.bpe", DATA])
def test_a_damaged_file_is_fetched_again_and_offline_refused(
    name: str, size: Size, site: Site, content: dict[str, bytes]
) -> None:
    folder = fetch(size, site)[0].folder
    damaged = bytes([content[name][0] ^ 1]) + content[name][1:]
    (folder / name).write_bytes(damaged)
    with pytest.raises(InputError) as caught:
        fetch(size, site, offline=True)
    assert hashlib.sha256(damaged).hexdigest() in caught.value.why
    assert hashlib.sha256(content[name]).hexdigest() in caught.value.why
    _, steps = fetch(size, site)
    assert (folder / name).read_bytes() == content[name]
    assert any("is another" in step.note for step in steps)


def test_a_first_download_is_held_against_the_server_ever_after(
    size: Size, site: Site, content: dict[str, bytes]
) -> None:
    folder = fetch(size, site)[0].folder
    (folder / DATA).unlink()
    site.files[f"/tiny/{DATA}"] = content[DATA][::-1]
    with pytest.raises(InputError) as caught:
        fetch(size, site)
    assert hashlib.sha256(content[DATA]).hexdigest() in caught.value.why
    assert "first seen" in caught.value.why
    assert caught.value.fix == f"gpt2 download tiny --source openai --base-url {site.address}/ --force"
    assert not (folder / DATA).exists()
    fetch(size, site, fresh=True)  # on purpose
    assert (folder / DATA).read_bytes() == content[DATA][::-1]
    assert [found.by for found in verify("tiny")].count("first seen") == 5


def test_damaged_files_are_refused_and_forgotten_but_published_ones_kept(
    size: Size, site: Site, content: dict[str, bytes]
) -> None:
    folder = fetch(size, site)[0].folder
    names = discard(folder)
    assert set(names) == set(content) - {"vocab.bpe", "encoder.json"}
    assert not (folder / DATA).exists()
    assert (folder / f"{DATA}{REFUSED}").read_bytes() == content[DATA]
    site.requests.clear()
    site.files[f"/tiny/{DATA}"] = content[DATA][::-1]  # the right one this time
    fetch(size, site)
    assert len(site.requests) == 5
    assert (folder / DATA).read_bytes() == content[DATA][::-1]


@pytest.mark.parametrize(
    ("name", "fault"), [(DATA, "html"), (DATA, "too-long"), ("vocab.bpe", "wrong"), ("hparams.json", "xml")]
)
def test_wrong_files_end_in_an_error_and_are_not_there(
    name: str, fault: str, size: Size, site: Site, content: dict[str, bytes]
) -> None:
    site.faults[f"/tiny/{name}"] = [Fault(fault)]
    with pytest.raises(InputError, match=f"is not {name}"):
        fetch(size, site)
    assert not (openai_folder(size) / name).exists()
    fetch(size, site)
    assert (openai_folder(size) / name).read_bytes() == content[name]


def test_faults_on_the_way_change_nothing(size: Size, site: Site, content: dict[str, bytes]) -> None:
    site.faults[f"/tiny/{DATA}"] = [Fault("cut", 700), Fault("other-version", 1)]
    site.faults["/tiny/checkpoint"] = [Fault("503-now")]
    site.faults["/tiny/vocab.bpe"] = [Fault("chunked-cut", 100_000)]
    site.faults["/tiny/encoder.json"] = [Fault("gzip")]
    fetched, steps = fetch(size, site)
    assert fetched.files == {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    assert any("503" in step.note for step in steps)


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_error_says_what_to_put_where(offline: bool, size: Size, site: Site) -> None:
    fetch(size, site)
    for name in (DATA, "vocab.bpe"):
        (openai_folder(size) / name).unlink()
    with serving({}) as silent:
        pass
    with pytest.raises(ServiceError) as caught:
        fetch(size, silent, offline=offline)
    error = caught.value
    assert error.what == f"{silent.address}/tiny: 2 of 7 files are out of reach"
    assert ("--offline" in error.why) is offline
    for part in (DATA, "vocab.bpe", str(openai_folder(size)), "the same command again"):
        assert part in error.fix
    assert "hparams.json" not in error.fix


def test_the_space_for_all_files_and_for_the_model_is_looked_at_first(
    size: Size, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As far as the sizes are known, and the model: its weights in fp32, and 4 MiB for the other files.
    needed = size.data_bytes + 1_042_301 + 456_318 + size.data_bytes + (4 << 20)
    for free, is_enough in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        if is_enough:
            fetch(size, site, convert=True)
        else:
            with pytest.raises(ResourceError, match="too little room") as caught:
                fetch(size, site, convert=True)
            assert caught.value.why == f"{needed:,} bytes are needed, {free:,} are free"
            assert not site.requests


def test_verify_names_the_first_file_that_differs(size: Size, site: Site, content: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match="nothing of it is here"):
        list(verify("tiny"))
    folder = fetch(size, site)[0].folder
    found = {item.path.name: (item.sha256, item.by) for item in verify("tiny")}
    assert found["vocab.bpe"] == (hashlib.sha256(content["vocab.bpe"]).hexdigest(), "published")
    assert len(found) == 7
    flipped = bytearray(content[DATA])
    flipped[5] ^= 1
    (folder / DATA).write_bytes(flipped)
    with pytest.raises(InputError, match="is not the file it was") as caught:
        list(verify("tiny"))
    assert hashlib.sha256(content[DATA]).hexdigest() in caught.value.why
    assert caught.value.fix == f"gpt2 download tiny --source openai --base-url {site.address}/ --force"
    (folder / DATA).unlink()
    with pytest.raises(InputError, match="is not complete"):
        list(verify("tiny"))


def test_where_the_files_came_from_is_recorded_and_kept(size: Size, site: Site) -> None:
    folder = fetch(size, site)[0].folder
    origin = {"source": "openai", "address": f"{site.address}/tiny", "revision": ""}
    assert json.loads((folder / NAME).read_text())["origin"] == origin
    with serving({}) as elsewhere:
        assert fetch(size, elsewhere)[0].origin.address == origin["address"]  # nothing came from there
    discard(folder)
    assert json.loads((folder / NAME).read_text())["origin"] == origin


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"origin": 5, "files": {}}',
        '{"origin": {"source": 1}}',
        '{"files": {"a": 1}}',
        '{"files": {"a": {"n_bytes": "x"}}}',
        "\xff",
        '{"origin": {"source": "", "address": "", "revision": ""}, "command": "", "names": [],'
        ' "files": {"a": {"size": "1", "sha256": "2", "by": "first seen"}}}',
    ],
)
def test_a_broken_record_is_an_error_with_its_path(text: str, size: Size, site: Site, tmp_path: Path) -> None:
    path = openai_folder(size) / NAME
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError) as caught:
        fetch(size, site)
    assert str(path) in caught.value.what
    assert f"rm {path}" in caught.value.fix
