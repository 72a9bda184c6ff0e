"""Measures decoding at batch 1 beside llama.cpp and transformers, at equal precision and weights.

    python benchmarks/decode.py [--rounds 7] [--size 124M] [--precisions fp32,bf16,int8] [--starts 64,960]
        [--engines compiled,eager,llama.cpp,transformers] [--prefill 512]

A machine's speed swings from minute to minute, so only ratios count: each engine lives in a
process of its own, they take turns within a round, and the result is the median of the rounds'
ratios. Weights are random; every token samples with temperature 0.8 and top-k 40. Decode is the
time from the first new token to the last; prefill is the time to the first. llama.cpp (through
llama-cpp-python) reads GGUF files of the same weights: f32, f16 and q8_0 for our fp32, bf16 and int8.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import Peer, answer, described, machine

OURS, EAGER, LLAMA, TRANSFORMERS = "compiled", "eager", "llama.cpp", "transformers"
ENGINES = (OURS, EAGER, LLAMA, TRANSFORMERS)
GGUF = {"fp32": "f32", "bf16": "f16", "int8": "q8_0"}
Times = list[float]  # when each new token was there; the first entry is the start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--size", default="124M")
    parser.add_argument("--precisions", default="fp32,bf16,int8")
    parser.add_argument("--starts", default="64,900,960")
    parser.add_argument(
        "--prefill", type=int, default=512, help="a prompt of that length, and two new tokens"
    )
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="also write every measured number to this file")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    parser.add_argument("--gguf", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options)
        return
    engines, missing = _those_there(options.engines.split(","))
    with tempfile.TemporaryDirectory() as folder:
        results = [
            result
            for precision in options.precisions.split(",")
            for result in _measure(options, precision, engines, Path(folder))
        ]
    report = {
        "machine": machine(options.threads),
        "shape": f"GPT-2 {options.size}, {options.new_tokens} new tokens, batch 1",
        "missing": missing,
        "results": results,
    }
    print(_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _those_there(wanted: list[str]) -> tuple[list[str], list[str]]:
    modules = {LLAMA: "llama_cpp", TRANSFORMERS: "transformers"}
    missing = [name for name in wanted if name in modules and not importlib.util.find_spec(modules[name])]
    return [name for name in wanted if name not in missing], missing


def _measure(
    options: argparse.Namespace, precision: str, engines: list[str], folder: Path
) -> list[dict[str, Any]]:
    """Alternate the engines; one result a start, and one for reading a prompt."""
    shape = ["--precision", precision, "--size", options.size, "--threads", str(options.threads)]
    if LLAMA in engines:
        shape += ["--gguf", str(folder / f"{GGUF[precision]}.gguf")]
        _write_gguf(options.size, GGUF[precision], folder)
    engines = [name for name in engines if precision != "int8" or name != TRANSFORMERS]
    workers = {engine: Peer(__file__, "--worker", engine, *shape) for engine in engines}
    results = []
    wanted = [(start, options.new_tokens) for start in map(int, options.starts.split(","))]
    for start, n_new in [*wanted, *([(options.prefill, 2)] if options.prefill else [])]:
        n_new = min(n_new, 1024 - start)
        rounds: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
        for n in range(-1, options.rounds):  # round -1 warms up and is not counted
            for engine in engines if n % 2 else reversed(engines):
                times = workers[engine].ask(f"{start} {n_new}")
                assert len(times) == n_new + 1, "the engine made another number of tokens"
                if n >= 0:
                    rounds[engine].append(
                        {
                            "prefill_s": times[1] - times[0],
                            "token_s": (times[-1] - times[1]) / (len(times) - 2),
                        }
                    )
        results.append({"precision": precision, "start": start, "rounds": rounds, **_ratios(rounds)})
        print(f"measured {precision} from {start}", file=sys.stderr)
    for worker in workers.values():
        worker.close()
    return results


def _ratios(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Each other engine's time over the first one's, so that more is better for the first."""
    first, *others = rounds
    found: dict[str, Any] = {}
    for other in others:
        for name in ("token_s", "prefill_s"):
            pairs = zip(rounds[first], rounds[other], strict=True)
            ratios = [theirs[name] / ours[name] for ours, theirs in pairs]
            found[f"{other} {name}"] = {
                "median": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
    return found


def _work(options: argparse.Namespace) -> None:
    """Answer every line "start n" with the times of a run."""
    run = {OURS: _ours, EAGER: _ours, LLAMA: _llama, TRANSFORMERS: _transformers}[options.worker](options)
    for line in sys.stdin:
        start, n = map(int, line.split())
        answer(run(list(range(1000, 1000 + start)), n))


def _model(options: argparse.Namespace) -> Any:
    import torch

    from gpt2cli.model.config import PRESETS
    from gpt2cli.model.gpt2 import new_model

    torch.set_num_threads(options.threads)
    return new_model(PRESETS[options.size], seed=0).eval()


def _ours(options: argparse.Namespace) -> Callable[[list[int], int], Times]:
    from gpt2cli.generation.compiled import build_package, find_package, use_package
    from gpt2cli.generation.engine import generate
    from gpt2cli.generation.packing import pack_for_decoding
    from gpt2cli.generation.sampling import Decoding

    is_compiled = options.worker == OURS
    model = pack_for_decoding(_model(options), options.precision, "compiled" if is_compiled else "row")
    if is_compiled:
        package = find_package(model.config, options.precision)
        package = package or build_package(model.config, options.precision)
        use_package(model, options.precision, package)
    decoding = Decoding(temperature=0.8, top_k=40, seed=0)

    def run(prompt: list[int], n: int) -> Times:
        start = time.perf_counter()
        return [start, *(time.perf_counter() for _ in generate(model, [prompt], decoding, n))]

    return run


def _transformers(options: argparse.Namespace) -> Callable[[list[int], int], Times]:
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


def _llama(options: argparse.Namespace) -> Callable[[list[int], int], Times]:
    from llama_cpp import Llama

    threads = options.threads
    model = Llama(
        options.gguf, n_ctx=1024, n_batch=1024, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def sample() -> int:
        return int(model.sample(top_k=40, top_p=1.0, min_p=0.0, temp=0.8, repeat_penalty=1.0))

    def run(prompt: list[int], n: int) -> Times:
        model.reset()
        times = [time.perf_counter()]
        ids = prompt
        for _ in range(n):
            model.eval(ids)
            ids = [sample()]
            times.append(time.perf_counter())
        return times

    return run


def _write_gguf(size: str, dtype: str, folder: Path) -> None:
    """The same random weights as llama.cpp reads them."""
    from gpt2cli.model.config import PRESETS
    from gpt2cli.model.gpt2 import new_model
    from gpt2cli.tokenizer.bpe import gpt2
    from gpt2cli.weights.folder import TRANSPOSED, stored_shapes
    from gpt2cli.weights.gguf import write_gguf
    from gpt2cli.weights.source import RawTensors, Source, SourceTensor

    model = new_model(PRESETS[size], seed=0)
    state = model.state_dict()

    def stored(name: str) -> Any:
        return state[name].T if name.endswith(TRANSPOSED) else state[name]

    tensors = {
        name: SourceTensor(name, shape, False, lambda name=name: stored(name))
        for name, shape in stored_shapes(model.config).items()
    }
    raw = RawTensors(list(tensors), lambda name: stored(name).numpy())
    source = Source(folder, "gpt2cli", model.config, gpt2(), tensors, raw, ())
    write_gguf(folder / f"{dtype}.gguf", source, dtype, size)


def _table(report: dict[str, Any]) -> str:
    """A line a start; the last of each precision, with two new tokens, is there for its prefill."""
    lines = [
        report["shape"],
        described(report["machine"]),
        *(f"not there, so not measured: {name}" for name in report["missing"]),
        "",
        "| precision | start | engine | ms a token | over ours (range) | prefill s | over ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in report["results"]:
        for engine, rounds in result["rounds"].items():
            token, prefill = (statistics.median(r[name] for r in rounds) for name in ("token_s", "prefill_s"))
            of_token, of_prefill = (result.get(f"{engine} {name}") for name in ("token_s", "prefill_s"))
            ratio = (
                f"{of_token['median']:.2f} ({of_token['lowest']:.2f} to {of_token['highest']:.2f})"
                if of_token
                else ""
            )
            lines.append(
                f"| {result['precision']} | {result['start']} | {engine} | {token * 1e3:.2f} | {ratio} "
                f"| {prefill:.3f} | {of_prefill['median'] if of_prefill else 1:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
