"""OpenAI's 124M, in shape: a checkpoint that TensorFlow made, fetched, converted and compared.

The weights are random, of a trained model's scale. Needs 3 GB of disk and a minute or two.
"""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from openai_checkpoint import GPT2_124M, make_checkpoint

from gpt2cli.checkpoints.folder import load_model

pytestmark = pytest.mark.proofs
WEIGHTS = 4 * 124_439_808  # bytes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorflow", reason="the extra tensorflow is not installed")
    return make_checkpoint(tmp_path_factory.mktemp("mirror") / "124M", GPT2_124M)


@pytest.fixture(scope="module")
def address(checkpoint: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(checkpoint.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


# A process's peak begins with what the one that started it had: here pytest. So a small one is between.
START = """
import resource, subprocess, sys
code = subprocess.call([sys.executable, "-c", sys.argv[1], *sys.argv[2:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
# With None there, an import fails as that of a package that is not installed.
GPT2 = """
import sys
sys.modules["tensorflow"] = None
from gpt2cli.cli.app import main
sys.exit(main())
"""


def peak_of(arguments: list[str], environment: dict[str, str]) -> int:
    """Bytes of memory that the program held at most, its children included."""
    done = subprocess.run(
        [sys.executable, "-c", START, GPT2, *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)


def test_downloaded_converted_and_equal(checkpoint: Path, address: str, tmp_path: Path) -> None:
    home = {"GPT2_HOME": str(tmp_path / "home")}
    peak = peak_of(["download", "124M", "--base-url", address], home)
    print(f"peak memory of download and convert: {peak / WEIGHTS:.2f} times the weights")
    assert peak < 1.5 * WEIGHTS
    model = tmp_path / "home/models/124M"
    receipt = json.loads((model / "conversion.json").read_text())
    assert receipt["parameters"] == {"count": 124_439_808, "size": "124M", "expected": 124_439_808}
    assert receipt["verification"]["passed"]

    truth = np.load(checkpoint / "truth.npz")
    ids = torch.randint(0, 50257, (2, 64), generator=torch.Generator().manual_seed(1))
    theirs, ours = filled_by_hand(truth), load_model(model).model
    with torch.inference_mode():
        # In fp32 two right programs differ by rounding, which grows with the logits; not in fp64.
        wanted, found = theirs.double()(ids).logits, ours.double()(ids)
    assert wanted.std() > 1
    difference = (wanted - found).abs().max().item()
    print(f"largest difference to transformers: {difference:.1e}")
    assert difference < 1e-4


def filled_by_hand(truth: np.lib.npyio.NpzFile) -> torch.nn.Module:
    """transformers' model with the weights put in by this test alone."""
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    kinds = {"weight": {"ln": "g", "": "w"}, "bias": {"ln": "b", "": "b"}}
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            if name in ("wte.weight", "wpe.weight"):
                source = f"model/{name[:3]}"
            else:
                *path, kind = name.replace("h.", "h", 1).split(".")
                source = "/".join(["model", *path, kinds[kind]["ln" if "ln_" in name else ""]])
            parameter.copy_(torch.from_numpy(truth[source].reshape(parameter.shape)))
    return model
