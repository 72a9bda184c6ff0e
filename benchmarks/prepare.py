"""`gpt2 prepare` against bare tiktoken: the same text, the same cores, in alternating rounds.

    python benchmarks/prepare.py                    # 48 MB of synthetic English-like text
    python benchmarks/prepare.py TEXT.txt --repeat 20
    python benchmarks/prepare.py --peak 10 1000     # and its peak memory for 10 MB and for 1 GB

Bare tiktoken gets the text in memory, already cut into pieces of the size it likes best, writes
nothing and hashes nothing: `encode_ordinary_batch` (lists, its documented parallel call) and
`encode_to_numpy` in a thread pool (the fastest way there is). `prepare` does all of its work,
from opening the file to the manifest. The figure to look at is the median of the rounds' ratios.
Peak memory is that of a `gpt2 prepare` process, as the operating system has counted it.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import tiktoken
from peers import described, machine, spread

from gpt2cli.data.manifest import PrepareSettings
from gpt2cli.data.prepare import prepare
from gpt2cli.tokenizer.base import END_OF_TEXT
from gpt2cli.tokenizer.bpe import PATTERN, gpt2

PIECE = 1 << 20
OURS, LISTS, ARRAYS = "prepare", "tiktoken encode_ordinary_batch", "tiktoken encode_to_numpy, threads"
# Starts a command and prints its peak memory. Linux counts what the parent held in its child's peak,
# so the parent is one that holds next to nothing.
START = """
import os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(pid, 0)
print(used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", nargs="?", type=Path, help="a UTF-8 text; default: synthetic")
    parser.add_argument("--repeat", type=int, default=1, help="take the text so many times over")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--mb", type=int, default=48, help="how much of the synthetic text")
    parser.add_argument("--peak", type=int, nargs="+", default=[], metavar="MB", help="peak memory for these")
    parser.add_argument("--json", type=Path, help="also write every measured number to this file")
    arguments = parser.parse_args()
    text = (
        arguments.text.read_bytes().decode("utf-8") if arguments.text else synthetic(arguments.mb * 10**6)
    ) * arguments.repeat
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "machine": machine(arguments.workers),
            **measure(text, Path(folder), arguments.rounds, arguments.workers),
            "peak_bytes": {
                n_mb: peak_bytes(n_mb, Path(folder), arguments.workers) for n_mb in arguments.peak
            },
        }
    print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(text: str, folder: Path, rounds: int, workers: int) -> dict[str, Any]:
    """MB/s of each way, a round, and prepare's ratios to each bare one."""
    source, out = folder / "text.txt", folder / "out"
    source.write_bytes(text.encode("utf-8"))
    n_bytes = source.stat().st_size
    pieces = cut(text)
    bpe = gpt2()
    ranks = {token: i for i, token in enumerate(bpe.tokens[:-1])}
    encoding = tiktoken.Encoding(
        "bare", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256}
    )

    def ours() -> None:
        shutil.rmtree(out, ignore_errors=True)
        settings = PrepareSettings("gpt2", ("text",), 0.01, 1, 100_000_000)
        for _ in prepare([source], out, settings, workers=workers):
            pass

    def bare_lists() -> None:
        encoding.encode_ordinary_batch(pieces, num_threads=workers)

    def bare_arrays() -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda piece: encoding.encode_to_numpy(piece, disallowed_special=()), pieces))

    ways = {OURS: ours, LISTS: bare_lists, ARRAYS: bare_arrays}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {
        "mb": round(n_bytes / 1e6, 1),
        "workers": workers,
        "rounds": rounds,
        "mb_per_second": {name: [n_bytes / 1e6 / t for t in times] for name, times in seconds.items()},
        "ratio": {
            name: spread([bare / own for bare, own in zip(seconds[name], seconds[OURS], strict=True)])
            for name in (LISTS, ARRAYS)
        },
    }


def peak_bytes(n_mb: int, folder: Path, workers: int) -> int:
    """Of `gpt2 prepare` over so much text, in a process of its own."""
    source, paragraph = folder / f"{n_mb}.txt", synthetic(1).encode()
    with open(source, "wb") as file:
        while file.tell() < n_mb * 10**6:
            file.write(paragraph)
    command = [sys.executable, "-m", "gpt2cli", "prepare", str(source), "--out", str(folder / f"{n_mb}")]
    command = [sys.executable, "-I", "-S", "-c", START, *command, "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    source.unlink()
    return int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)


def table(report: dict[str, Any]) -> str:
    lines = [
        f"prepare, {report['mb']} MB, {report['workers']} workers",
        described(report["machine"]),
        "",
        "| what | MB/s | prepare over it (range) |",
        "|---|---|---|",
    ]
    for name, speeds in report["mb_per_second"].items():
        ratio = report["ratio"].get(name)
        told = f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})" if ratio else ""
        lines.append(f"| {name} | {statistics.median(speeds):.1f} | {told} |")
    lines += [""] if report["peak_bytes"] else []
    lines += [
        f"peak memory for {n_mb} MB of text: {n_bytes / 1e6:.0f} MB"
        for n_mb, n_bytes in report["peak_bytes"].items()
    ]
    return "\n".join(lines)


def cut(text: str) -> list[str]:
    """Pieces of about PIECE characters, cut before spaces."""
    pieces, start = [], 0
    while start < len(text):
        end = text.rfind(" ", start + 1, start + PIECE) if start + PIECE < len(text) else len(text)
        pieces.append(text[start:end])
        start = end
    return pieces


def synthetic(n_bytes: int = 48_000_000) -> str:
    """Sentences of made-up words with English-like lengths and a long-tailed frequency."""
    draw = random.Random(1)
    syllables = [
        first + vowel for first in "bcdfghlmnprstvw" for vowel in ("a", "e", "i", "o", "ou", "ing", "er")
    ]
    words = ["".join(draw.choices(syllables, k=draw.choice((1, 1, 2, 2, 3)))) for _ in range(20_000)]
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    paragraph = (
        ". ".join(
            " ".join(draw.choices(words, cum_weights=weights, k=12)).capitalize() for _ in range(40_000)
        )
        + ".\n"
    )
    return paragraph * (n_bytes // len(paragraph) + 1)


if __name__ == "__main__":
    main()
