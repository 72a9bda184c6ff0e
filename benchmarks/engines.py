"""A decoding engine as a process of its own, and the contest between several; decode.py and batch.py use it.

    python benchmarks/engines.py compiled --precision bf16 --size 124M --threads 2

It answers every line "rows start n" on stdin with the times of a run: that many rows of `start`
tokens, and n new ones each, sampled with temperature 0.8 and top-k 40. `prefill_s` is the time until
each row has its first new token, `token_s` that of each further step. All engines are timed in the
same way: they say when a step is done, and go on.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers import Peer, answer, described, spread, take_turns
from random_models import (
    CTRANSLATE2,
    GGUF,
    transformers_model,
    write_ctranslate2,
    write_gguf_file,
    write_model_folder,
)

COMPILED, EAGER, ROWS = "compiled", "eager", "gpt2cli"  # ours: the last for several rows together
LLAMA, TRANSFORMERS, CTRANSLATE = "llama.cpp", "transformers", "CTranslate2"
USES = {COMPILED: "compiled", EAGER: "row", ROWS: "rows"}
MODULES = {LLAMA: "llama_cpp", TRANSFORMERS: "transformers", CTRANSLATE: "ctranslate2"}
PRECISIONS = {LLAMA: tuple(GGUF), TRANSFORMERS: ("fp32", "bf16"), CTRANSLATE: tuple(CTRANSLATE2)}
WRITERS = {LLAMA: write_gguf_file, CTRANSLATE: write_ctranslate2} | dict.fromkeys(USES, write_model_folder)

TEMPERATURE, TOP_K = 0.8, 40
Times = list[float]  # when each step was done; the first entry is the start
Run = Callable[[list[list[int]], int], Times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("engine", choices=MAKERS)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--size", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--file", help="the model as this engine reads it; transformers makes its own")
    options = parser.parse_args()
    run = MAKERS[options.engine](options)
    for line in sys.stdin:
        n_rows, start, n = map(int, line.split())
        times = run([list(range(1000 + 1000 * row, 1000 + 1000 * row + start)) for row in range(n_rows)], n)
        assert len(times) == n + 1, "the engine made another number of tokens"
        answer({"prefill_s": times[1] - times[0], "token_s": (times[-1] - times[1]) / (n - 1)})


def those_there(wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """The engines that can be measured here, and those that are missing."""
    missing = [name for name in wanted if name in MODULES and not importlib.util.find_spec(MODULES[name])]
    return [name for name in wanted if name not in missing], missing


def contest(
    engines: Sequence[str],
    precision: str,
    runs: Sequence[tuple[int, int, int]],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """A result for each run, (rows, start, n): the times of all engines that know the precision.

    Ratios are each other engine's time over the first one's: more is better for the first.
    """
    shape = ["--precision", precision, "--size", options.size, "--threads", str(options.threads)]
    engines = [name for name in engines if precision in PRECISIONS.get(name, (precision,))]
    with tempfile.TemporaryDirectory() as folder:
        files = {
            name: ["--file", str(write(Path(folder), options.size, precision))]
            for name, write in WRITERS.items()
            if name in engines
        }
        peers = {name: Peer(__file__, name, *shape, *files.get(name, ())) for name in engines}
        questions = [" ".join(map(str, run)) for run in runs]
        print(f"{precision}: {', '.join(engines)}", file=sys.stderr)
        replies = take_turns(peers, questions, options.rounds)
        for peer in peers.values():
            peer.close()
    return [
        {"precision": precision, "rows": rows, "start": start, "rounds": found, **_ratios(found)}
        for (rows, start, _), found in zip(runs, replies.values(), strict=True)
    ]


def show(report: dict[str, Any], path: Path | None) -> None:
    """Print a report of contests as a table; write it to a file if there is one."""
    lines = [
        report["shape"],
        described(report["machine"]),
        *(f"not there, so not measured: {name}" for name in report["missing"]),
        "",
        "| precision | rows | start | engine | ms a step | over ours (range) | prefill s | over ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in report["results"]:
        begin = f"| {result['precision']} | {result['rows']} | {result['start']} |"
        for engine, rounds in result["rounds"].items():
            token, prefill = (statistics.median(r[name] for r in rounds) for name in ("token_s", "prefill_s"))
            of_token, of_prefill = (
                f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})" if ratio else ""
                for ratio in (result.get(f"{engine} {name}") for name in ("token_s", "prefill_s"))
            )
            lines.append(
                f"{begin} {engine} | {token * 1e3:.2f} | {of_token} | {prefill:.3f} | {of_prefill} |"
            )
    print("\n".join(lines))
    if path:
        path.write_text(json.dumps(report, indent=2) + "\n")


def _ratios(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    first, *others = rounds
    return {
        f"{other} {name}": spread(
            [theirs[name] / ours[name] for ours, theirs in zip(rounds[first], rounds[other], strict=True)]
        )
        for other in others
        for name in ("token_s", "prefill_s")
    }


def _ours(options: argparse.Namespace) -> Run:
    import torch

    from gpt2cli.checkpoints.folder import load_model
    from gpt2cli.generation.cpu.aot_packages import build_package, find_package, use_package
    from gpt2cli.generation.cpu.swap_linears import swap_for_decoding
    from gpt2cli.generation.engine import generate
    from gpt2cli.generation.sampling import SamplingOptions

    torch.set_num_threads(options.threads)
    use, precision = USES[options.engine], options.precision
    model = swap_for_decoding(load_model(Path(options.file)).model, precision, use)
    if options.engine == COMPILED:
        package = find_package(model.config, precision) or build_package(model.config, precision)
        use_package(model, precision, package)
    decoding = SamplingOptions(temperature=TEMPERATURE, top_k=TOP_K, seed=0)

    def run(prompts: list[list[int]], n: int) -> Times:
        start = time.perf_counter()
        return [start, *(time.perf_counter() for _ in generate(model, prompts, decoding, n))]

    return run


def _transformers(options: argparse.Namespace) -> Run:
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    from gpt2cli.runtime import DTYPES

    torch.set_num_threads(options.threads)
    model = transformers_model(options.size).to(DTYPES[options.precision])

    class Clock(StoppingCriteria):  # called after each step; never stops
        def __init__(self) -> None:
            self.times: Times = []

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def run(prompts: list[list[int]], n: int) -> Times:
        clock, ids = Clock(), torch.tensor(prompts)
        start = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            eos_token_id=None,
            pad_token_id=50256,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return [start, *clock.times]

    return run


def _llama(options: argparse.Namespace) -> Run:
    from llama_cpp import Llama

    threads = options.threads
    model = Llama(
        options.file, n_ctx=1024, n_batch=1024, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def sample() -> int:
        return int(model.sample(top_k=TOP_K, top_p=1.0, min_p=0.0, temp=TEMPERATURE, repeat_penalty=1.0))

    def run(prompts: list[list[int]], n: int) -> Times:
        [ids] = prompts  # its high-level interface has one row
        model.reset()
        times = [time.perf_counter()]
        for _ in range(n):
            model.eval(ids)
            ids = [sample()]
            times.append(time.perf_counter())
        return times

    return run


def _ctranslate2(options: argparse.Namespace) -> Run:
    import ctranslate2

    model = ctranslate2.Generator(
        options.file,
        compute_type=CTRANSLATE2[options.precision],
        inter_threads=1,
        intra_threads=options.threads,
    )
    names = json.loads(Path(options.file, "vocabulary.json").read_bytes())
    nothing = [len(names)]  # an id that is not there: no row ends before its limit

    def run(prompts: list[list[int]], n: int) -> Times:
        tokens = [[names[token] for token in prompt] for prompt in prompts]
        times = [time.perf_counter()]

        def came(step: Any) -> bool:  # called for each row of each step
            if step.batch_id == 0:
                times.append(time.perf_counter())
            return False

        rows = model.generate_batch(
            tokens,
            max_length=n,
            end_token=nothing,
            include_prompt_in_result=False,
            sampling_topk=TOP_K,
            sampling_temperature=TEMPERATURE,
            callback=came,
        )
        assert [len(row.sequences_ids[0]) for row in rows] == [n] * len(prompts)
        return times

    return run


MAKERS = {
    **dict.fromkeys(USES, _ours),
    LLAMA: _llama,
    TRANSFORMERS: _transformers,
    CTRANSLATE: _ctranslate2,
}

if __name__ == "__main__":
    main()
