"""A 124M folder until it is ready: ours against reading and hashing alone, and against from_pretrained.

Each measurement is a process of its own, after its imports, the kinds in turn. from_pretrained maps
the file and returns before it has read it, so both are also timed until they have computed logits.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 7
BEGIN = "import sys, time, json, torch; torch.set_num_threads(2); folder = sys.argv[1]\n"
LOGITS = "loaded = time.perf_counter() - start\nwith torch.inference_mode(): model(torch.arange(8)[None])\n"
END = "print(json.dumps([loaded, time.perf_counter() - start]))"
KINDS = {
    "read and hash": BEGIN
    + "import hashlib; start = time.perf_counter()\n"
    + "data = open(folder + '/model.safetensors', 'rb').read(); hashlib.sha256(data).hexdigest()\n"
    + "loaded = time.perf_counter() - start\n"
    + END,
    "gpt2cli": BEGIN
    + "from pathlib import Path; from gpt2cli.weights.folder import load_model\n"
    + "start = time.perf_counter(); model = load_model(Path(folder)).model\n"
    + LOGITS
    + END,
    "transformers": BEGIN
    + "from transformers import GPT2LMHeadModel\n"
    + "start = time.perf_counter(); model = GPT2LMHeadModel.from_pretrained(folder)\n"
    + LOGITS
    + END,
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        times: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
        for _ in range(ROUNDS):
            for kind, code in KINDS.items():
                times[kind].append(measure(code, folder))
    for kind, pairs in times.items():
        loaded, logits = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{kind:15} ready {loaded:.3f} s, first logits {logits:.3f} s (medians of {ROUNDS})")
    for kind in ("read and hash", "transformers"):
        for moment, column in (("ready", 0), ("first logits", 1)):
            if kind == "transformers" or column == 0:
                ratios = [a[column] / b[column] for a, b in zip(times["gpt2cli"], times[kind], strict=True)]
                print(f"gpt2cli / {kind}, {moment}: {statistics.median(ratios):.2f}")


def make_model(folder: Path) -> None:
    from gpt2cli.model.config import PRESETS
    from gpt2cli.model.gpt2 import new_model
    from gpt2cli.tokenizer.bpe import gpt2
    from gpt2cli.weights.folder import write_manifest, write_model

    write_manifest(folder, write_model(folder, new_model(PRESETS["124M"], 1), gpt2(), ""))


def measure(code: str, folder: str) -> list[float]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, folder], env=environment, capture_output=True, text=True, check=True
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
