"""Seeded scripts of faults: either the exact bytes are installed, or an error a user can act on."""

import base64
import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import QUICK
from faulty_server import ETAG, FAULTS, Fault, serving

from gpt2cli.errors import Gpt2Error, InputError, ServiceError
from gpt2cli.hub.fetch import fetch
from gpt2cli.hub.registry import Expected

N_SCRIPTS = 240
SCRIPTS_A_TEST = 12
# Faults that take their time-out to be noticed; a quarter of the scripts may have one of them.
SLOW = ("stall", "slow", "slow-head", "no-answer", "unmarked-slow")
HASTY = replace(QUICK, stall=0.12, window=0.12)
SURE = replace(QUICK, stall=10, window=10)  # on a busy machine, too
KNOWLEDGE = ("hash", "git", "server", "size", "nothing")


@pytest.mark.parametrize("first", range(0, N_SCRIPTS, SCRIPTS_A_TEST))
def test_no_script_of_faults_gets_a_wrong_byte_installed(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + SCRIPTS_A_TEST):
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
    }.get(knowledge, Expected(at_most=40_000))
    out = folder / "file"
    with serving({"/file": content}, *script, etag=chance.choice([ETAG, ETAG, None])) as site:
        if knowledge == "server":
            site.md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        for _ in range(2):  # the same command again, over whatever the first one left
            try:
                steps = list(fetch(f"{site.address}/file", out, expected=expected, patience=HASTY))
            except Gpt2Error as error:
                assert isinstance(error, (InputError, ServiceError)), (seed, script, error)
                assert not out.exists(), (seed, script)
                continue
            assert out.read_bytes() == content, (seed, knowledge, script)
            assert steps[-1].sha256 == hashlib.sha256(content).hexdigest()
            assert list(folder.iterdir()) == [out], (seed, script)
            break
        site.script.clear()
        list(fetch(f"{site.address}/file", out, expected=expected, patience=SURE))
    assert out.read_bytes() == content  # once the server behaves, it succeeds


def _script(chance: random.Random, n_bytes: int, knowledge: str) -> list[Fault]:
    """Up to six faults, among them no lie that nothing could ever give away.

    Wrong bytes in the right size and another version as a whole can be told only by a hash, and too
    many bytes only by a hash or a size. An unmarked end is looked at twice, so it may lie once.
    """
    waits = chance.random() < 0.25
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
