"""A container: a user without an entry in the password file, without a home, in folders of someone else.

One process, since what it gives up it cannot take back.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_run import PRETRAIN, random_text, write_tokens

USER = 12345
# Run as root; it keeps the one right to read, because the interpreter may lie in root's home.
SCRIPT = f"""
import ctypes, json, os, struct, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
os.setgroups([]); os.setgid({USER}); os.setuid({USER})
CAP_DAC_READ_SEARCH, VERSION_3 = 1 << 2, 0x20080522
few = struct.pack("6I", CAP_DAC_READ_SEARCH, CAP_DAC_READ_SEARCH, 0, 0, 0, 0)
assert libc.capset(struct.pack("II", VERSION_3, 0), few) == 0, os.strerror(ctypes.get_errno())
from gpt2cli.cli.app import run
for line in json.loads(sys.argv[1]):
    code = run(line)
    print(f"exit code {{code}}", file=sys.stderr, flush=True)
"""
WITHOUT_HOME = (
    ["pretrain", "run.yaml", "--name", "mine/run"],
    ["generate", "--model", "mine/run", "-n", "3", "-t", "0", "ab"],
    ["chat", "mine/run", "-n", "3", "-t", "0"],
    ["evaluate", "mine/run", "--on", "text.txt"],
)
WITH_ONE = (
    ["pretrain", "text.yaml", "--name", "mine/text"],
    ["download", "124M", "--offline"],
    ["convert", "mine/run"],
)


@pytest.fixture
def place(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that others may read; `mine` in it belongs to the user."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    try:
        folder.chmod(0o755)
        monkeypatch.chdir(folder)
        write_tokens(gpt2, random_text(260, seed=1))
        text = {**PRETRAIN, "data": {"source": "text.txt", "tokenizer": "chars"}}
        for name, recipe in (("run", PRETRAIN), ("text", text)):
            Path(f"{name}.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        for name, owner in (("mine", USER), ("closed", 0)):
            Path(name).mkdir()
            os.chown(name, owner, owner)
        yield folder
    finally:
        shutil.rmtree(folder)


def test_a_user_without_a_home(place: Path) -> None:
    environment = {key: os.environ[key] for key in os.environ if key not in ("HOME", "GPT2_HOME", "USER")}
    environment |= {"TMPDIR": str(place / "closed"), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-B", "-c", SCRIPT, json.dumps([*WITHOUT_HOME, *WITH_ONE])],
        input="ab\ncd\n",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    codes = [
        int(line.rpartition(" ")[2]) for line in done.stderr.splitlines() if line.startswith("exit code")
    ]
    assert codes == [0] * len(WITHOUT_HOME) + [4] * len(WITH_ONE), done.stderr
    assert done.stderr.count("fix: export GPT2_HOME=") == len(WITH_ONE), done.stderr
    assert "Matplotlib" not in done.stderr and "bug" not in done.stderr
    assert done.stdout.startswith("mine/run\n") and (place / "mine/run/loss.png").is_file()
    assert [path.name for path in (place / "mine").iterdir()] == ["run"]
    assert not list((place / "mine/run").glob(".partial*"))


@pytest.mark.parametrize("megabytes", [70, 300])  # below what Python's own modules need, and torch
def test_an_address_space_too_small(megabytes: int, tmp_path: Path) -> None:
    limit = megabytes << 20
    done = subprocess.run(
        [sys.executable, "-m", "gpt2cli", "pretrain", "verdict"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 4 and "fix: ulimit -v unlimited" in done.stderr, done.stderr
    assert f"{limit >> 10:,} KiB" in done.stderr and not list(tmp_path.iterdir())
