"""Measures decoding of several rows together beside transformers and CTranslate2, with the same weights.

    python benchmarks/batch.py [--rounds 5] [--size 124M] [--precisions bf16,int8] [--rows 8,32]
        [--engines gpt2cli,transformers,CTranslate2] [--start 64] [--new-tokens 48]

As decode.py does: random weights, a process for each engine, turns within a round, medians of the
rounds' ratios. All rows begin with `start` tokens and get the same number of new ones, sampled with
temperature 0.8 and top-k 40. A step is timed from the rows' first new tokens to their last, so that
prefill is not in it. transformers is measured in fp32 and bf16, CTranslate2 in fp32 and int8, which
are the precisions that each has on a CPU.
"""

import argparse
import os
from pathlib import Path

from engines import CTRANSLATE, ROWS, TRANSFORMERS, contest, show, those_there
from peers import machine

ENGINES = (ROWS, TRANSFORMERS, CTRANSLATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--size", default="124M", help="or LAYERSxWIDTH, for a trial")
    parser.add_argument("--precisions", default="bf16,int8")
    parser.add_argument("--rows", default="8,32")
    parser.add_argument("--start", type=int, default=64)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="also write every measured number to this file")
    options = parser.parse_args()
    engines, missing = those_there(options.engines.split(","))
    runs = [(n_rows, options.start, options.new_tokens) for n_rows in map(int, options.rows.split(","))]
    report = {
        "machine": machine(options.threads),
        "shape": f"GPT-2 {options.size}, {options.new_tokens} new tokens a row",
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
