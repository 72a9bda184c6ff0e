"""What the compiler recovers from is not the user's business.

In processes of their own, because a compiler keeps in memory what it once has read.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import PRETRAIN, random_text, write_tokens


@pytest.mark.proofs
def test_a_damaged_cache_of_the_compiler_is_not_reported(gpt2: Any, tmp_path: Path) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    recipe = {**PRETRAIN, "optim": {"steps": 2}, "run": {**PRETRAIN["run"], "compile": "on"}}
    Path("run.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    cache = tmp_path / "cache"

    def train(name: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gpt2cli", "pretrain", "run.yaml", "--name", name],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "TORCHINDUCTOR_CACHE_DIR": str(cache),
            },
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0 and "compiled" in done.stderr, done.stderr
        return done.stderr

    train("first")
    graphs = [path for path in (cache / "fxgraph").rglob("*") if path.is_file()]
    assert graphs, "the compiler has kept something"
    for path in graphs:
        path.write_bytes(b"damaged")
    said = train("second")
    assert "Traceback" not in said and "torch" not in said, said
