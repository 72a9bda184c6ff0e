"""Seeded scripts of network faults: either the exact bytes are installed, or an error a user can act on."""

import hashlib
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from downloads import QUICK
from faulty_server import ETAG, FAULTS, Fault, serving
from layouts import REPOSITORY, serve_hub, use_hub

from gpt2cli.errors import Gpt2Error, InputError, ServiceError
from gpt2cli.hub.fetch import fetch
from gpt2cli.hub.registry import Expected

# Faults that take their time-out to be noticed; a quarter of the scripts may have one of them.
SLOW = ("stall", "no-answer")
HASTY = replace(QUICK, stall=0.15)
SURE = replace(QUICK, stall=10)  # on a busy machine, too
KNOWLEDGE = ("hash", "git", "size", "nothing")


@pytest.mark.parametrize("first", range(0, 48, 12))
def test_no_script_of_faults_gets_a_wrong_byte_installed(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 12):
        play(seed, tmp_path / str(seed))


@pytest.mark.proofs
def test_nor_do_five_hundred(tmp_path: Path) -> None:
    for seed in range(48, 548):
        play(seed, tmp_path / str(seed))


def play(seed: int, folder: Path) -> None:
    chance = random.Random(seed)
    content = chance.randbytes(chance.choice([1, 700, 5000, 30_000]))
    knowledge = KNOWLEDGE[seed % len(KNOWLEDGE)]
    script = _script(chance, len(content), knowledge)
    expected = {
        "hash": Expected(len(content), hashlib.sha256(content).hexdigest()),
        "git": Expected(None, None, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), 40_000),
        "size": Expected(len(content)),
    }.get(knowledge, Expected(max_size=40_000))
    out, said = folder / "file", f"seed {seed}, {knowledge} known: {script}"
    with serving({"/file": content}, *script, etag=chance.choice([ETAG, ETAG, None])) as site:
        for _ in range(2):  # the same command again, over what the first one left
            try:
                steps = list(fetch(f"{site.address}/file", out, expected, policy=HASTY))
            except Gpt2Error as error:
                assert isinstance(error, (InputError, ServiceError)), said
                assert not out.exists(), said
                continue
            assert out.read_bytes() == content, said
            assert steps[-1].sha256 == hashlib.sha256(content).hexdigest(), said
            assert list(folder.iterdir()) == [out], said
            break
        site.script.clear()
        list(fetch(f"{site.address}/file", out, expected, policy=SURE))
    assert out.read_bytes() == content, said  # once the server behaves, it succeeds


def _script(chance: random.Random, n_bytes: int, knowledge: str, *, waits: bool | None = None) -> list[Fault]:
    """Up to six faults, among them no lie that nothing could ever give away.

    Wrong bytes in the right size and another version as a whole can be told only by a hash, and too
    many bytes only by a hash or a size. An unmarked end is looked at twice, so it may lie once.
    """
    waits = chance.random() < 0.25 if waits is None else waits
    lies = {"nothing": {"wrong", "other-version", "too-long"}, "size": {"wrong", "other-version"}}
    kinds = [kind for kind in FAULTS if kind not in lies.get(knowledge, ())]
    kinds = [kind for kind in kinds if waits or kind not in SLOW]
    script: list[Fault] = []
    for _ in range(chance.randint(1, 6)):
        kind = chance.choice(kinds)
        once = SLOW if kind in SLOW else ("unmarked-cut",)
        if kind in once:
            kinds = [other for other in kinds if other not in once]
        script.append(Fault(kind, chance.randrange(n_bytes + 1)))
    return script


@pytest.mark.parametrize("first", range(0, 12, 6))
def test_through_the_command_each_script_ends_right_or_in_an_error_of_few_lines(
    first: int, gpt2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the pauses between attempts
    for seed in range(first, first + 6):
        chance, home = random.Random(seed), tmp_path / str(seed)
        monkeypatch.setenv("GPT2_HOME", str(home))
        content = {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": chance.randbytes(30_000)}
        with serving({}) as site:
            serve_hub(site, content)
            use_hub(monkeypatch, site.address, tmp_path / "hf")
            site.script += _script(chance, 30_000, "hash", waits=False)
            done = gpt2("download", REPOSITORY, "--no-convert")
            assert done.code in (0, 3, 5), (seed, done.err)
            assert "Traceback" not in done.err, seed
            if done.code:
                error = done.err[done.err.index("error:") :].splitlines()
                assert len(error) <= 4 and error[-1].startswith("fix: "), (seed, error)
                site.script.clear()
                done = gpt2("download", REPOSITORY, "--no-convert")
            assert done.code == 0, (seed, done.err)
        folder = Path(done.out.strip())
        assert {name: (folder / name).read_bytes() for name in content} == content, seed
        assert not list(home.rglob(".partial-*")), seed
