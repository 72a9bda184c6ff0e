"""A 124M folder until it is ready: ours against reading and hashing alone, and against from_pretrained.

    python benchmarks/loading.py [--rounds 9] [--model FOLDER | --size 124M] [--json loading.json]

Each measurement is a process of its own, after its imports, the kinds in turn. from_pretrained maps
the file and returns before it has read it, so all are also timed until they have computed logits.
Ours is measured twice: when the folder is loaded for the first time, and when its hash is remembered.
Ours loads the tokenizer too.

A virtual machine may give freed memory back to its host, and getting it again can cost ten times what
the load costs. It depends on what ran a second before, so each process first takes and frees more
memory than a model needs. --memory as-is leaves that out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import described, machine, spread
from random_models import write_settled_folder

THREADS = 2
BEGIN = f"import sys, time, json, torch; torch.set_num_threads({THREADS}); folder = sys.argv[1]\n"
MEMORY = {"warm": "torch.ones(300_000_000)\n", "as-is": ""}  # 1.2 GB
START = "start = time.perf_counter()\n"
LOGITS = "loaded = time.perf_counter() - start\nwith torch.inference_mode(): model(torch.arange(8)[None])\n"
END = "print(json.dumps([loaded, time.perf_counter() - start]))"
# {kind: its imports, what is measured}
HASH = (
    "import hashlib\n",
    "data = open(folder + '/model.safetensors', 'rb').read(); hashlib.sha256(data).hexdigest()\n"
    "loaded = time.perf_counter() - start\n",
)
OURS = "from pathlib import Path; from gpt2cli.checkpoints.folder import load_model\n"
THEIRS = (
    "from transformers import GPT2LMHeadModel\n",
    f"model = GPT2LMHeadModel.from_pretrained(folder)\n{LOGITS}",
)
FIRST, AGAIN, BARE, PEER = "gpt2cli, first", "gpt2cli, again", "read and hash", "transformers"
KINDS = {
    BARE: HASH,
    FIRST: (OURS, f"model = load_model(Path(folder)).model\n{LOGITS}"),
    AGAIN: (OURS, f"model = load_model(Path(folder), remembered=True).model\n{LOGITS}"),
    PEER: THEIRS,
}
RATIOS = ((FIRST, BARE, 0), (AGAIN, PEER, 0), (AGAIN, PEER, 1), (FIRST, PEER, 0), (FIRST, PEER, 1))
MOMENTS = ("ready", "first logits")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", type=Path, help="a model folder; without it one is made")
    parser.add_argument("--size", default="124M", help="of the folder that is made")
    parser.add_argument("--memory", choices=MEMORY, default="warm")
    parser.add_argument("--json", type=Path, help="also write every measured number to this file")
    options = parser.parse_args()
    report = {"machine": machine(THREADS), "rounds": options.rounds, "memory": options.memory}
    print(described(report["machine"]))
    with tempfile.TemporaryDirectory() as place:
        folder = options.model or write_settled_folder(Path(place) / "model", options.size)
        codes = {
            kind: BEGIN + imports + MEMORY[options.memory] + START + measured + END
            for kind, (imports, measured) in KINDS.items()
        }
        times = measure_all(codes, folder, Path(place) / "home", options.rounds)
    report |= {"seconds": times, "ratios": compare(times)}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def measure_all(codes: dict[str, str], folder: Path, home: Path, rounds: int) -> dict[str, list[list[float]]]:
    """{kind: a pair of seconds a round}; what comes before the first round is not counted."""
    for kind in (AGAIN, PEER):
        measure(codes[kind], folder, home)
    assert (home / "verified").is_dir()
    times: dict[str, list[list[float]]] = {kind: [] for kind in codes}
    turn = list(codes.items())
    for number in range(rounds):
        for kind, code in turn[number % len(turn) :] + turn[: number % len(turn)]:
            times[kind].append(measure(code, folder, home))
    return times


def measure(code: str, folder: Path, home: Path) -> list[float]:
    environment = {
        **os.environ,
        "GPT2_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


def compare(times: dict[str, list[list[float]]]) -> dict[str, dict[str, float]]:
    for kind, pairs in times.items():
        loaded, logits = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{kind:15} ready {loaded:.3f} s, first logits {logits:.3f} s")
    found = {}
    for ours, theirs, column in RATIOS:
        name = f"{ours} / {theirs}, {MOMENTS[column]}"
        ratio = spread([a[column] / b[column] for a, b in zip(times[ours], times[theirs], strict=True)])
        found[name] = ratio
        print(f"{name}: {ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})")
    return found


if __name__ == "__main__":
    main()
