"""Measures the training step beside transformers: same shape, same precision, same optimizer.

    python benchmarks/training.py [--rounds 5] [--steps 4] [--batch 2] [--context 256]

Four contestants, each in a process of its own, take turns: ours as `gpt2 pretrain` runs it, ours
without the compiler, and transformers' GPT2LMHeadModel eager and under torch.compile. All use
bf16 autocast over fp32 weights, fused AdamW, clipping at 1.0; the figure is the
median over the rounds of our tokens/s over the better of the two.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import Peer, answer, described, machine

CONTESTANTS = ("gpt2cli", "gpt2cli eager", "transformers", "transformers compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a turn")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--size", default="124M")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write every measured number to this file")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        work(options)
        return
    print(table(measure(options)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    arguments = [word for name in ("steps", "batch", "context", "size", "precision", "threads", "dropout")
                 for word in (f"--{name}", str(getattr(options, name)))]  # fmt: skip
    peers = {name: Peer(__file__, "--contestant", name, *arguments) for name in CONTESTANTS}
    tokens = options.steps * options.batch * options.context
    speeds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    peak = {}
    for turn in range(-1, options.rounds):  # the first round warms up and is not counted
        for name in CONTESTANTS if turn % 2 else reversed(CONTESTANTS):
            reply = peers[name].ask()
            peak[name] = reply["peak_bytes"]
            if turn >= 0:
                speeds[name].append(tokens / reply["seconds"])
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
    for peer in peers.values():
        peer.close()
    best = [max(pair) for pair in zip(speeds["transformers"], speeds["transformers compiled"], strict=True)]
    ratios = {
        name: sorted(ours / theirs for ours, theirs in zip(speeds[name], best, strict=True))
        for name in CONTESTANTS
    }
    report = {
        "machine": machine(options.threads),
        "shape": f"{options.size}, {options.batch} x {options.context}, {options.precision}, "
        f"dropout {options.dropout}",
        "tokens_per_s": speeds,
        "ratio_to_best_transformers": ratios,
        "peak_bytes": peak,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def work(options: argparse.Namespace) -> None:
    """Answer every line with the seconds of some steps."""
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    step = (_ours if options.contestant.startswith("gpt2cli") else _theirs)(options)
    for _ in sys.stdin:
        started = time.perf_counter()
        for _ in range(options.steps):
            step()
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer({"seconds": seconds, "peak_bytes": peak})


def _ours(options: argparse.Namespace) -> Callable[[], object]:
    from types import SimpleNamespace

    import numpy as np
    import torch

    from gpt2cli.model.gpt2 import new_model
    from gpt2cli.recipe.schema import Batch, Data, Model, Optim, PretrainRecipe
    from gpt2cli.runtime import choose_attention, choose_runtime
    from gpt2cli.tokenizer.bpe import gpt2
    from gpt2cli.training.compiling import compile_blocks
    from gpt2cli.training.loop import take_step
    from gpt2cli.training.optim import make_optimizer
    from gpt2cli.training.pretraining import Pretraining
    from gpt2cli.training.state import Progress

    class RandomTokens:
        n_tokens = 100_000
        ids = np.random.default_rng(0).integers(0, 50257, n_tokens)

        def read(self, start: int, n: int) -> Any:
            return self.ids[start : start + n]

    recipe = PretrainRecipe(
        task="pretrain",
        data=Data(source="random"),
        model=Model(size=options.size, context=options.context, dropout=options.dropout),
        batch=Batch(micro_batch=options.batch),
        optim=Optim(steps=10**6),
    )
    compile = "off" if options.contestant.endswith("eager") else "on"
    runtime = choose_runtime("cpu", options.precision, options.threads, compile, training=True)
    attention = choose_attention("auto", runtime.device, options.context)
    model = new_model(recipe.model.config(50257), 0, attention)
    if runtime.compile:
        problem = compile_blocks(model, options.batch, runtime)
        assert problem is None, problem
    optimizer = make_optimizer(model, recipe.optim, runtime.device)
    data = SimpleNamespace(train=RandomTokens(), validation=RandomTokens(), tokenizer=gpt2())
    task = Pretraining(recipe, data)  # type: ignore[arg-type]
    scaler, progress = torch.amp.GradScaler("cpu", enabled=False), Progress()
    return lambda: take_step(model, task, optimizer, scaler, progress, recipe, runtime)


def _theirs(options: argparse.Namespace) -> Callable[[], object]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2cli.model.config import PRESETS

    preset = PRESETS[options.size]
    config = GPT2Config(
        n_layer=preset.n_layer,
        n_head=preset.n_head,
        n_embd=preset.n_embd,
        use_cache=False,
        resid_pdrop=options.dropout,
        embd_pdrop=options.dropout,
        attn_pdrop=options.dropout,
    )
    model = GPT2LMHeadModel(config).train()
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    plain = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(model) if options.contestant.endswith("compiled") else model

    def step() -> None:
        ids = torch.randint(0, 50257, (options.batch, options.context))
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def table(report: dict[str, Any]) -> str:
    lines = [
        f"training step, {report['shape']}",
        described(report["machine"]),
        "",
        "| contestant | tokens/s | ratio to the better transformers (range) | peak memory |",
        "|---|---|---|---|",
    ]
    for name in CONTESTANTS:
        ratios = report["ratio_to_best_transformers"][name]
        lines.append(
            f"| {name} | {statistics.median(report['tokens_per_s'][name]):.0f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
            f"| {report['peak_bytes'][name] / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
