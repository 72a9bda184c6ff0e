"""From the command line to its first answer: help, the encoder, the first token, and what of it is torch.

    python benchmarks/startup.py [--rounds 7] [--model FOLDER | --size 124M] [--json startup.json]

Whole processes, the kinds in turn. A token is there when its text is: the time until the first byte
on stdout of a text that is streamed. `gpt2 compile` builds the compiled steps before the first round,
under GPT2_HOME or, without it, in a folder that is removed. The peer does with transformers what
`gpt2 generate` does: imports, from_pretrained, tokenizer, first token.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import described, machine, spread
from random_models import write_settled_folder

THREADS = 2
GENERATE = [sys.executable, "-m", "gpt2cli", "generate", "-n", "4", "--seed", "1", "--threads", str(THREADS)]
ENCODER = """
import time, tiktoken
from gpt2cli.tokenizer.bpe import gpt2
start = time.perf_counter()
gpt2().encode("Hello")
print(time.perf_counter() - start)
"""
THEIRS = f"""
import sys, torch
torch.set_num_threads({THREADS})
from transformers import GPT2LMHeadModel, GPT2TokenizerFast
model = GPT2LMHeadModel.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2])).eval()
tokenizer = GPT2TokenizerFast.from_pretrained(sys.argv[1])
ids = tokenizer("Hello", return_tensors="pt")
new = model.generate(**ids, max_new_tokens=1, do_sample=True, top_k=40, pad_token_id=50256)
print(repr(tokenizer.decode(new[0])), flush=True)
"""
HELP, TORCH, FP32, BF16 = "gpt2 --help", "import torch", "generate fp32", "generate bf16"
COMPILED = "generate bf16, compiled"
PEER32, PEER16 = "transformers fp32", "transformers bf16"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", type=Path, help="a model folder; without it one is made")
    parser.add_argument("--size", default="124M", help="of the folder that is made")
    parser.add_argument("--json", type=Path, help="also write every measured number to this file")
    options = parser.parse_args()
    report = {"machine": machine(THREADS), "rounds": options.rounds}
    print(described(report["machine"]))
    with tempfile.TemporaryDirectory() as place:
        folder = str(options.model or write_settled_folder(Path(place) / "model", options.size))
        environment = {
            **os.environ,
            "GPT2_HOME": os.environ.get("GPT2_HOME", f"{place}/home"),
            "HF_HUB_OFFLINE": "1",
        }
        generate = [*GENERATE, "--model", folder]
        commands = {
            HELP: [sys.executable, "-m", "gpt2cli", "--help"],
            TORCH: [sys.executable, "-c", "import torch; print()"],
            FP32: [*generate, "--precision", "fp32", "--compile", "off", "Hello"],
            BF16: [*generate, "--precision", "bf16", "--compile", "off", "Hello"],
            COMPILED: [*generate, "--precision", "bf16", "--compile", "auto", "Hello"],
            PEER32: [sys.executable, "-c", THEIRS, folder, "float32"],
            PEER16: [sys.executable, "-c", THEIRS, folder, "bfloat16"],
        }
        if not build(folder, [*generate, "--compile", "on", "--precision", "bf16", "Hello"], environment):
            report["missing"] = ["a compiled step: gpt2 compile failed"]
            del commands[COMPILED]
        times = measure_all(commands, environment, options.rounds)
    report |= {"seconds": times, "ratios": compare(times)}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def build(folder: str, generate: list[str], environment: dict[str, str]) -> bool:
    """Build the compiled step; `generate` shows that it is found. False where there is no compiler."""
    command = [sys.executable, "-m", "gpt2cli", "compile", folder, "--threads", str(THREADS)]
    built = subprocess.run([*command, "--precision", "bf16"], env=environment, stdout=subprocess.DEVNULL)
    if built.returncode:
        return False
    shown = subprocess.run(generate, env=environment, capture_output=True, text=True, check=True)
    assert not shown.stderr, shown.stderr  # it would say that it builds one, or goes on without
    return True


def measure_all(
    commands: dict[str, list[str]], environment: dict[str, str], rounds: int
) -> dict[str, list[float]]:
    """{kind: seconds a round}; the first round is not counted: it fills caches, ours and the disk's."""
    times: dict[str, list[float]] = {kind: [] for kind in ("encoder", *commands)}
    for number in range(rounds + 1):
        found = {"encoder": encoder(environment)}
        found |= {kind: first_byte(command, environment) for kind, command in commands.items()}
        for kind, seconds in found.items():
            times[kind] += [seconds] if number else []
    return times


def first_byte(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout and process.stderr
        came = process.stdout.read(1)
        seconds = time.perf_counter() - start
        errors = process.communicate()[1]
    assert came and process.returncode == 0, errors.decode()
    return seconds


def encoder(environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", ENCODER]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def compare(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    for kind, seconds in times.items():
        print(f"{kind:24} {statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})")
    found = {}
    pairs = ((FP32, PEER32), (BF16, PEER16), (COMPILED, PEER16), (FP32, TORCH), (COMPILED, TORCH))
    for ours, theirs in pairs:
        if ours not in times:
            continue
        ratio = spread([a / b for a, b in zip(times[ours], times[theirs], strict=True)])
        found[f"{ours} / {theirs}"] = ratio
        print(f"{ours} / {theirs}: {ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})")
    return found


if __name__ == "__main__":
    main()
