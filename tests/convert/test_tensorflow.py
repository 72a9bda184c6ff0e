"""TensorFlow itself, in one process: it writes for our reader, and reads what is written here."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_truth import require_truth, truth_of
from bundle_writer import write_bundle
from openai_checkpoint import COMMITTED, SMALLEST, TRUTH, tensorflow_process

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
)
MADE = COMMITTED / "gpt2"
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def tensorflow() -> Iterator[Ask]:
    with tensorflow_process() as ask:
        yield ask


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def test_four_thousand_random_tensors_in_several_blocks(tensorflow: Ask, tmp_path: Path) -> None:
    tensorflow("mixed", tmp_path, 11, 4_000)
    assert (tmp_path / "mixed.index").stat().st_size > 256 << 10, "one block holds it all"
    require_truth(tmp_path / "mixed", truth_of(tmp_path))


def test_tensorflow_reads_what_these_tests_write(tensorflow: Ask, tmp_path: Path) -> None:
    """Otherwise the absurd files of test_tensorflow_bundle.py might be refused for another reason."""
    rng = np.random.default_rng(3)
    arrays = {f"model/h{n}/w": rng.standard_normal((n, 3)).astype("f4") for n in range(40)}
    write_bundle(tmp_path / "model.ckpt", arrays, n_shards=3)
    tensorflow("read", tmp_path / "model.ckpt", tmp_path / "read.npz")
    found = arrays_in(tmp_path / "read.npz")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_what_is_written_is_read_back_by_tensorflow_bit_for_bit(tensorflow: Ask, tmp_path: Path) -> None:
    """Written in a process of its own, where TensorFlow must be silent."""
    out = tmp_path / "a [x]*?  b"
    command = [sys.executable, "-m", "gpt2cli", "convert", str(MADE), "--to", "tensorflow", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=200)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    phases = ("reading", "writing", "verifying")
    ours = (
        "model/",
        "source: ",
        "tensors: ",
        "SHA-256 ",
        "each tensor's source ",
        "perplexity ",
        "PASS",
        "read back: ",
        *phases,
    )
    strange = [line for line in done.stderr.splitlines() if not line.startswith(ours)]
    assert not strange, "TensorFlow said something"
    assert {path.name for path in out.iterdir()} == {
        *("checkpoint", "hparams.json", "encoder.json", "vocab.bpe", "conversion.json"),
        *("model.ckpt.index", "model.ckpt.data-00000-of-00001", "model.ckpt.meta"),
    }
    assert json.loads((out / "conversion.json").read_text())["read_back"] == {"tensors": 28, "equal": True}
    moved = out.rename(tmp_path / "moved")  # the path in the file called checkpoint is relative
    tensorflow("dump", moved, tmp_path / "dump.npz")
    truth, found = arrays_in(MADE / TRUTH), arrays_in(tmp_path / "dump.npz")
    assert found.keys() == truth.keys()
    for name, array in truth.items():
        assert found[name].dtype == np.float32 and np.array_equal(found[name], array), name
    for name in ("encoder.json", "vocab.bpe"):
        assert (moved / name).read_bytes() == (MADE / name).read_bytes()
    assert json.loads((moved / "hparams.json").read_text()) == SMALLEST
    graph = (moved / "model.ckpt.meta").read_bytes()
    assert truth["model/h0/mlp/c_fc/b"].tobytes() not in graph, "the weights are in the graph as well"


def test_a_disk_that_takes_no_more_is_a_matter_of_resources(tensorflow: Ask, tmp_path: Path) -> None:
    code, said = tensorflow("convert", 5_000, MADE, "--to", "tensorflow", "--out", tmp_path / "out")
    assert code == 4 and "cannot write the checkpoint" in said, said
    assert not list(tmp_path.iterdir())
