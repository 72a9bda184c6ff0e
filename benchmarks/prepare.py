"""`gpt2 prepare` against bare tiktoken: the same text, the same cores, in alternating rounds.

    python benchmarks/prepare.py                    # 48 MB of synthetic English-like text
    python benchmarks/prepare.py TEXT.txt --repeat 20

Bare tiktoken gets the text in memory, already cut into pieces of the size it likes best, writes
nothing and hashes nothing: `encode_ordinary_batch` (lists, its documented parallel call) and
`encode_to_numpy` in a thread pool (the fastest way there is). `prepare` does all of its work,
from opening the file to the manifest. The figure to look at is the median of the rounds' ratios.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tiktoken

from gpt2cli.data.tokens import Settings, prepare
from gpt2cli.tokenizer.bpe import PATTERN, gpt2
from gpt2cli.tokenizer.protocol import END_OF_TEXT

PIECE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", nargs="?", type=Path, help="a UTF-8 text; default: synthetic")
    parser.add_argument("--repeat", type=int, default=1, help="take the text so many times over")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    text = (arguments.text.read_bytes().decode("utf-8") if arguments.text else synthetic()) * arguments.repeat
    with tempfile.TemporaryDirectory() as folder:
        result = measure(text, Path(folder), arguments.rounds, arguments.workers)
    print(f"{'':34s}{'MB/s':>8s}{'prepare / it':>14s}", file=sys.stderr)
    for name, speed in result["mb_per_second"].items():
        print(f"{name:34s}{speed:8.1f}{result['ratio'].get(name, 1.0):14.2f}", file=sys.stderr)
    print(json.dumps(result, indent=2))


def measure(text: str, folder: Path, rounds: int, workers: int) -> dict[str, object]:
    """MB/s of each way (medians), and the medians of prepare's ratio to each bare one."""
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
        settings = Settings("gpt2", ("text",), 0.01, 1, 100_000_000)
        for _ in prepare([source], out, settings, workers=workers):
            pass

    def bare_lists() -> None:
        encoding.encode_ordinary_batch(pieces, num_threads=workers)

    def bare_arrays() -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda piece: encoding.encode_to_numpy(piece, disallowed_special=()), pieces))

    ways = {
        "prepare": ours,
        "tiktoken encode_ordinary_batch": bare_lists,
        "tiktoken encode_to_numpy, threads": bare_arrays,
    }
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
        "mb_per_second": {name: n_bytes / 1e6 / statistics.median(times) for name, times in seconds.items()},
        "ratio": {
            name: statistics.median(bare / own for bare, own in zip(times, seconds["prepare"], strict=True))
            for name, times in seconds.items()
            if name != "prepare"
        },
    }


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
    weights = [1 / (rank + 3) for rank in range(len(words))]
    paragraph = (
        ". ".join(" ".join(draw.choices(words, weights, k=12)).capitalize() for _ in range(40_000)) + ".\n"
    )
    return paragraph * (n_bytes // len(paragraph) + 1)


if __name__ == "__main__":
    main()
