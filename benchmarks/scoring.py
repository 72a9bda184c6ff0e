"""Measures texts that are scored, not written: evaluate and classify beside transformers, same weights.

    python benchmarks/scoring.py [--rounds 5] [--size 124M] [--precisions fp32,bf16]
        [--windows 4] [--texts 300]

Evaluate: windows of 1,024 tokens that move by 512, each token counted once. transformers runs the loop of
its own guide to perplexity: a window at a time, labels of -100 where tokens do not count. Classify:
texts of 3 to 40 words, which both sides encode; transformers' text-classification pipeline runs as it is
by default, and in batches. Each contestant is a process of its own, they take turns, and the figure is
the median of the rounds' ratios. `--clock cpu --threads 1` is for a busy machine.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import Peer, answer, described, machine, spread, take_turns
from random_models import config_of, random_model, transformers_model

OURS, THEIRS, BATCHED = "gpt2cli", "transformers", "transformers, batches of 32"
EVALUATE, CLASSIFY = "evaluate", "classify"
CONTESTANTS = {EVALUATE: (OURS, THEIRS), CLASSIFY: (OURS, THEIRS, BATCHED)}
CONTEXT, STRIDE = 1024, 512
WORDS = ["prize", "call", "free", "now", "the", "cat", "sat", "on", "a", "mat", "won", "tomorrow", "noon"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="124M", help="or LAYERSxWIDTH, for a trial")
    parser.add_argument("--precisions", default="fp32,bf16", help="of evaluate")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--tasks", default=f"{EVALUATE},{CLASSIFY}")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "cpu"), help="cpu, with --threads 1, for a busy machine"
    )
    parser.add_argument("--json", type=Path, help="also write every measured number to this file")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        work(options)
        return
    report = {"machine": machine(options.threads), "load": os.getloadavg(), "results": []}
    jobs = [(EVALUATE, precision) for precision in options.precisions.split(",")] + [(CLASSIFY, "fp32")]
    for task, precision in jobs:
        if task in options.tasks.split(","):
            report["results"].append(contest(task, precision, options))
            show(report["results"][-1])
    print(described(report["machine"]))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def contest(task: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """The seconds of each contestant in each round, and theirs over ours."""
    names = ("size", "windows", "texts", "threads", "clock")
    words = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    words += ["--task", task, "--precision", precision]
    with tempfile.TemporaryDirectory() as folder:
        if task == CLASSIFY:
            write_random_classifier(Path(folder), options.size)
        peers = {
            name: Peer(__file__, *words, "--contestant", name, "--folder", folder)
            for name in CONTESTANTS[task]
        }
        [rounds] = take_turns(peers, ["again"], options.rounds).values()
        for peer in peers.values():
            peer.close()
    seconds = {name: [one["seconds"] for one in found] for name, found in rounds.items()}
    numbers = {name: found[0]["numbers"] for name, found in rounds.items()}
    ratios = {
        name: spread([b / a for a, b in zip(seconds[OURS], found, strict=True)])
        for name, found in seconds.items()
        if name != OURS
    }
    apart = max(abs(a - b) for found in numbers.values() for a, b in zip(found, numbers[OURS], strict=True))
    return {"task": task, "precision": precision, "seconds": seconds, "ratios": ratios, "apart": apart}


def show(result: dict[str, Any]) -> None:
    for name, ratio in result["ratios"].items():
        print(
            f"{result['task']} {result['precision']} against {name}: {ratio['median']:.2f}"
            f" ({ratio['lowest']:.2f} to {ratio['highest']:.2f}); results {result['apart']:.1e} apart",
            flush=True,
        )


def work(options: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    run = MAKERS[options.task, options.contestant](options)
    for _ in sys.stdin:
        start = clock()
        numbers = run()
        answer({"seconds": clock() - start, "numbers": numbers})


Run = Callable[[], list[float]]


def _our_evaluate(options: argparse.Namespace) -> Run:
    """As `gpt2 evaluate`; returns the loss."""
    from gpt2cli.evaluation.eval_text import EncodedText
    from gpt2cli.evaluation.perplexity import measure_perplexity, sliding_window_for
    from gpt2cli.generation.cpu.swap_linears import swap_for_many_rows
    from gpt2cli.runtime import choose_runtime

    runtime = choose_runtime("cpu", options.precision, options.threads)
    model = random_model(options.size)
    swap_for_many_rows(model.transformer, runtime.precision)
    ids = _text_ids(options)
    text = EncodedText(ids.numpy(), len(ids), len(ids))
    sliding = sliding_window_for(model.config, CONTEXT, STRIDE, None)

    def run() -> list[float]:
        *_, result = measure_perplexity(model, text, sliding, runtime)
        return [result.loss]

    return run


def _their_evaluate(options: argparse.Namespace) -> Run:
    """The loop of https://huggingface.co/docs/transformers/perplexity."""
    import torch

    from gpt2cli.runtime import DTYPES

    model = transformers_model(options.size).to(DTYPES[options.precision])
    ids = _text_ids(options)[None]  # (1, N)

    @torch.no_grad()
    def run() -> list[float]:
        nats, n_counted, before = 0.0, 0, 1
        for begin in range(0, ids.shape[1] - CONTEXT, STRIDE):
            end = begin + CONTEXT + 1
            inputs, targets = ids[:, begin : end - 1], ids[:, begin + 1 : end].clone()
            targets[:, : before - begin - 1] = -100
            n = int((targets != -100).sum())
            # Shifted labels are the guide's own way to count each target of a window.
            nats += model(inputs, labels=targets, shift_labels=targets).loss.float().item() * n
            n_counted, before = n_counted + n, end
        return [nats / n_counted]

    return run


def _text_ids(options: argparse.Namespace) -> Any:
    import torch

    n = CONTEXT + STRIDE * (options.windows - 1) + 1
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, config_of(options.size).vocab_size - 1, (n,), generator=generator)


def write_random_classifier(folder: Path, size: str) -> None:
    """A classifier's folder as ours and as transformers reads it."""
    import torch

    from gpt2cli.checkpoints.classifier import write_classifier
    from gpt2cli.checkpoints.folder import write_manifest
    from gpt2cli.model.gpt2 import GPT2Classifier
    from gpt2cli.tokenizer.bpe import gpt2

    body = random_model(size)
    model = GPT2Classifier(body.config, 2).eval()
    model.transformer = body.transformer
    torch.nn.init.normal_(model.score.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    write_manifest(folder, write_classifier(folder, model, ("ham", "spam"), gpt2(), 1024, ""))


def _our_classify(options: argparse.Namespace) -> Run:
    """As `gpt2 classify`; returns the probability of the second label of each text."""
    from gpt2cli.generation.label_texts import predict_labels
    from gpt2cli.generation.load import load_for_classifying

    loaded = load_for_classifying(str(options.folder), "cpu", "fp32", options.threads, lambda *told: None)
    texts = _texts(options)
    return lambda: [one.probabilities[1] for one in predict_labels(loaded, texts, str)]


def _their_classify(options: argparse.Namespace) -> Run:
    import torch
    from transformers import pipeline
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    pipe = pipeline("text-classification", str(options.folder), device=-1, dtype=torch.float32)
    texts, size = _texts(options), 32 if options.contestant == BATCHED else 1

    def run() -> list[float]:
        found = pipe(texts, batch_size=size, top_k=None)
        return [next(one["score"] for one in each if one["label"] == "spam") for each in found]

    return run


def _texts(options: argparse.Namespace) -> list[str]:
    chance = random.Random(1)
    return [" ".join(chance.choices(WORDS, k=chance.randint(3, 40))) for _ in range(options.texts)]


MAKERS = {
    (EVALUATE, OURS): _our_evaluate,
    (EVALUATE, THEIRS): _their_evaluate,
    (CLASSIFY, OURS): _our_classify,
    (CLASSIFY, THEIRS): _their_classify,
    (CLASSIFY, BATCHED): _their_classify,
}

if __name__ == "__main__":
    main()
