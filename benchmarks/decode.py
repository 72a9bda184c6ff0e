"""Measures decoding at batch 1 beside llama.cpp and transformers, at equal precision and weights.

    python benchmarks/decode.py [--rounds 7] [--size 124M] [--precisions fp32,bf16,int8]
        [--starts 64,900,960] [--engines compiled,eager,llama.cpp,transformers] [--prefill 512]

A machine's speed swings from minute to minute, so only ratios count: each engine lives in a
process of its own, they take turns within a round, and the result is the median of the rounds'
ratios. Weights are random; every token samples with temperature 0.8 and top-k 40. Decode is the
time from the first new token to the last; prefill is the time to the first. llama.cpp (through
llama-cpp-python) reads GGUF files of the same weights: f32, f16 and q8_0 for our fp32, bf16 and int8.
"""

import argparse
import os
from pathlib import Path

from engines import COMPILED, EAGER, LLAMA, TRANSFORMERS, contest, show, those_there
from peers import machine

ENGINES = (COMPILED, EAGER, LLAMA, TRANSFORMERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--size", default="124M", help="or LAYERSxWIDTH, for a trial")
    parser.add_argument("--precisions", default="fp32,bf16,int8")
    parser.add_argument("--starts", default="64,900,960")
    parser.add_argument(
        "--prefill", type=int, default=512, help="a prompt of that length, and two new tokens"
    )
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="also write every measured number to this file")
    options = parser.parse_args()
    engines, missing = those_there(options.engines.split(","))
    runs = [
        (1, start, min(options.new_tokens, 1024 - start)) for start in map(int, options.starts.split(","))
    ]
    runs += [(1, options.prefill, 2)] if options.prefill else []
    report = {
        "machine": machine(options.threads),
        "shape": f"GPT-2 {options.size}, {options.new_tokens} new tokens, batch 1",
        "missing": missing,
        "results": [
            result
            for precision in options.precisions.split(",")
            for result in contest(engines, precision, runs, options)
        ],
    }
    show(report, options.json)


if __name__ == "__main__":
    main()
