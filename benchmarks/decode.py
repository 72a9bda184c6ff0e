"""Measures cached decoding at batch 1 beside transformers.generate, at equal precision and weights.

    python benchmarks/decode.py [--rounds 7] [--size 124M] [--precisions fp32,bf16] [--starts 32,512]

A machine's speed swings from minute to minute, so only ratios count: each engine lives in a
process of its own, the two take turns within a round, and the result is the median of the
rounds' ratios. Weights are random; every token samples with temperature 0.8 and top-k 40.
Decode is the time from the first new token to the last; prefill is the time to the first.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import Peer, answer, described, machine

ENGINES = ("gpt2cli", "transformers")
Times = list[float]  # when each new token was there; the first entry is the start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--size", default="124M")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--starts", default="32,512")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="also write every measured number to this file")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options)
        return
    results = [
        result for precision in options.precisions.split(",") for result in _measure(options, precision)
    ]
    report = {
        "machine": machine(options.threads),
        "shape": f"GPT-2 {options.size}, {options.new_tokens} new tokens, batch 1",
        "results": results,
    }
    print(_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _measure(options: argparse.Namespace, precision: str) -> list[dict[str, Any]]:
    """Alternate the engines; one result a start."""
    shape = ["--precision", precision, "--size", options.size, "--threads", str(options.threads)]
    workers = {engine: Peer(__file__, "--worker", engine, *shape) for engine in ENGINES}
    results = []
    for start in map(int, options.starts.split(",")):
        rounds: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
        for n in range(-1, options.rounds):  # round -1 warms up and is not counted
            for engine in ENGINES if n % 2 else reversed(ENGINES):
                times = workers[engine].ask(f"{start} {options.new_tokens}")
                assert len(times) == options.new_tokens + 1, "the engine made another number of tokens"
                if n >= 0:
                    rounds[engine].append(
                        {
                            "prefill_s": times[1] - times[0],
                            "decode_tokens_per_s": (len(times) - 2) / (times[-1] - times[1]),
                            "whole_tokens_per_s": (len(times) - 1) / (times[-1] - times[0]),
                        }
                    )
        results.append({"precision": precision, "start": start, "rounds": rounds, **_ratios(rounds)})
        print(f"measured {precision} from {start}", file=sys.stderr)
    for worker in workers.values():
        worker.close()
    return results


def _ratios(rounds: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Ours over theirs, so that more is better: the median over the rounds, and the extremes."""
    found = {}
    for name in ("decode_tokens_per_s", "whole_tokens_per_s", "prefill_s"):
        pairs = zip(*(rounds[engine] for engine in ENGINES), strict=True)
        ratios = [o[name] / t[name] if name != "prefill_s" else t[name] / o[name] for o, t in pairs]
        found[f"ratio_{name}"] = {
            "median": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
    return found


def _work(options: argparse.Namespace) -> None:
    """Answer every line "start n" with the times of a run."""
    import torch

    torch.set_num_threads(options.threads)
    run = {"gpt2cli": _ours, "transformers": _theirs}[options.worker](options)
    for line in sys.stdin:
        start, n = map(int, line.split())
        answer(run(list(range(1000, 1000 + start)), n))


def _model(options: argparse.Namespace) -> Any:
    from gpt2cli.model.config import PRESETS
    from gpt2cli.model.gpt2 import GPT2LMHead, initialize

    model = GPT2LMHead(PRESETS[options.size])
    initialize(model, seed=0)
    return model.eval()


def _ours(options: argparse.Namespace) -> Callable[[list[int], int], Times]:
    from gpt2cli.generation.engine import generate
    from gpt2cli.generation.packing import pack_for_decoding
    from gpt2cli.generation.sampling import Decoding
    from gpt2cli.runtime import DTYPES

    model = pack_for_decoding(_model(options).to(DTYPES[options.precision]))
    decoding = Decoding(temperature=0.8, top_k=40, seed=0)

    def run(prompt: list[int], n: int) -> Times:
        start = time.perf_counter()
        return [start, *(time.perf_counter() for _ in generate(model, [prompt], decoding, n))]

    return run


def _theirs(options: argparse.Namespace) -> Callable[[list[int], int], Times]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, StoppingCriteria, StoppingCriteriaList

    from gpt2cli.model.config import to_hugging_face
    from gpt2cli.runtime import DTYPES
    from gpt2cli.weights.folder import TRANSPOSED

    ours = _model(options)
    model = GPT2LMHeadModel(GPT2Config(**to_hugging_face(ours.config, end_of_text=50256)))
    state = ours.state_dict().items()
    model.load_state_dict({name: t.T if name.endswith(TRANSPOSED) else t for name, t in state})
    model = model.to(DTYPES[options.precision]).eval()

    class Clock(StoppingCriteria):  # called after each token; never stops
        def __init__(self) -> None:
            self.times: Times = []

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def run(prompt: list[int], n: int) -> Times:
        clock, ids = Clock(), torch.tensor([prompt])
        start = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            do_sample=True,
            temperature=0.8,
            top_k=40,
            eos_token_id=None,
            pad_token_id=50256,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return [start, *clock.times]

    return run


def _table(report: dict[str, Any]) -> str:
    lines = [
        report["shape"],
        described(report["machine"]),
        "",
        "| precision | start | gpt2cli tok/s | transformers tok/s | ratio (range) | with prefill | prefill |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in report["results"]:
        speeds = [
            statistics.median(r["decode_tokens_per_s"] for r in result["rounds"][engine])
            for engine in ENGINES
        ]
        decode = result["ratio_decode_tokens_per_s"]
        lines.append(
            f"| {result['precision']} | {result['start']} | {speeds[0]:.1f} | {speeds[1]:.1f} "
            f"| {decode['median']:.2f} ({decode['lowest']:.2f} to {decode['highest']:.2f}) "
            f"| {result['ratio_whole_tokens_per_s']['median']:.2f} "
            f"| {result['ratio_prefill_s']['median']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
