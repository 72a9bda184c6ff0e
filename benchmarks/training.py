"""Measures the training step beside transformers: same shape, same precision, same optimizer.

    python benchmarks/training.py [--shapes 2x256 4x256 1x1024] [--rounds 5] [--steps 2] [--curve 50]

Five contestants, each in a process of its own, take turns: ours as `gpt2 pretrain` runs it, ours
without the compiler, transformers' GPT2LMHeadModel eager and under torch.compile, and the bare
products of such a step, which no step can beat. Both models begin with the same weights, read the
same batches, and use bf16 products over fp32 weights, fused AdamW, clipping at 1.0. The figure is
the median over the rounds of our tokens/s over the better of theirs. `--curve` compares losses.
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
from random_models import config_of

THEIRS = ("transformers", "transformers compiled")
CONTESTANTS = ("gpt2cli", "gpt2cli eager", *THEIRS, "products alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["2x256", "4x256", "1x1024"], metavar="ROWSxTOKENS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a turn")
    parser.add_argument("--curve", type=int, default=0, help="steps whose losses are compared, first shape")
    parser.add_argument("--size", default="124M", help="or LAYERSxWIDTH, for a trial")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--activation-checkpointing", default="off", choices=("on", "off"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "cpu"), help="cpu, with --threads 1, for a busy machine"
    )
    parser.add_argument("--json", type=Path, help="also write every measured number to this file")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        work(options)
        return
    reports = []
    for shape in options.shapes:
        reports.append(measure(options, shape, 0 if reports else options.curve))
        print(table(reports[-1]), end="\n\n", flush=True)
        if options.json:
            options.json.write_text(json.dumps(reports, indent=2) + "\n")


def measure(options: argparse.Namespace, shape: str, n_curve: int) -> dict[str, Any]:
    arguments = [word for name in ("size", "precision", "threads", "clock", "dropout",
                                      "activation_checkpointing")
                 for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]  # fmt: skip
    peers = {
        name: Peer(__file__, "--contestant", name, "--shapes", shape, *arguments) for name in CONTESTANTS
    }
    rows, length = map(int, shape.split("x"))
    speeds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    peak, curves = {}, {}
    if n_curve:
        curves = {name: peers[name].ask(str(n_curve))["losses"] for name in ("gpt2cli", *THEIRS)}
    for turn in range(-1, options.rounds):  # the first round warms up and is not counted
        for name in CONTESTANTS if turn % 2 else reversed(CONTESTANTS):
            reply = peers[name].ask(str(options.steps))
            peak[name] = reply["peak_bytes"]
            if turn >= 0:
                speeds[name].append(options.steps * rows * length / reply["seconds"])
        print(f"{shape}: round {turn + 1} of {options.rounds}", file=sys.stderr)
    for peer in peers.values():
        peer.close()
    best = [max(pair) for pair in zip(*(speeds[name] for name in THEIRS), strict=True)]
    ratios = {
        name: sorted(ours / theirs for ours, theirs in zip(speeds[name], best, strict=True))
        for name in CONTESTANTS
    }
    return {
        "machine": machine(options.threads),
        "batch": shape,
        "shape": f"{options.size}, {shape}, {options.precision}, dropout {options.dropout}"
        + (", activation checkpointing" if options.activation_checkpointing == "on" else "")
        + (", in processor time" if options.clock == "cpu" else ""),
        "tokens_per_s": speeds,
        "ratio_to_best_transformers": ratios,
        "peak_bytes": peak,
        "losses": curves,
    }


def work(options: argparse.Namespace) -> None:
    """Answer every line, a number of steps, with the seconds and losses of that many."""
    import torch

    rows, length = map(int, options.shapes[0].split("x"))
    torch.set_num_threads(options.threads)
    task, recipe = _task(options, rows, length)
    maker = {"gpt2cli": _ours, "transformers": _theirs, "products": _products}[options.contestant.split()[0]]
    step = maker(options, task, recipe)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    for line in sys.stdin:
        started = clock()
        losses = [step() for _ in range(int(line))]
        seconds = clock() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer({"seconds": seconds, "losses": losses, "peak_bytes": peak})


def _task(options: argparse.Namespace, rows: int, length: int) -> tuple[Any, Any]:
    """Pretraining on the bundled story, and its recipe."""
    from importlib.resources import files
    from types import SimpleNamespace

    import numpy as np

    from gpt2cli.recipe.schema import PretrainRecipe
    from gpt2cli.recipe.sections import BatchConfig, DataConfig, ModelConfig, OptimConfig, RunConfig
    from gpt2cli.tokenizer.bpe import gpt2
    from gpt2cli.training.pretrain_task import PretrainTask

    shape = config_of(options.size)
    numbers = {name: getattr(shape, name) for name in ("n_layer", "n_head", "n_embd")}

    class Story:
        text = files("gpt2cli.bundled").joinpath("story.txt").read_text(encoding="utf-8")
        ids = np.array(gpt2().encode(text), dtype=np.int64)
        n_tokens = len(ids)

        def read(self, start: int, n: int) -> Any:
            return self.ids[start : start + n]

    recipe = PretrainRecipe(
        task="pretrain",
        data=DataConfig(source="story"),
        model=ModelConfig(**numbers, context=length, dropout=options.dropout),
        batch=BatchConfig(micro_batch=rows),
        optim=OptimConfig(steps=10**6, warmup_steps=20),
        run=RunConfig(activation_checkpointing=options.activation_checkpointing),
    )
    data = SimpleNamespace(train=Story(), validation=Story(), tokenizer=gpt2())
    return PretrainTask(recipe, data), recipe  # type: ignore[arg-type]


def _ours(options: argparse.Namespace, task: Any, recipe: Any) -> Callable[[], float]:
    from gpt2cli.training.loop import train_step
    from gpt2cli.training.setup import set_up_training

    compile = "off" if options.contestant.endswith("eager") else "on"
    run = {"device": "cpu", "precision": options.precision, "threads": options.threads, "compile": compile}
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update=run)})
    task.__dict__["identity"] = lambda: {}  # of files, which there are none of
    setup = set_up_training(task, recipe, None)
    assert setup.runtime.compile == (compile == "on"), setup.notices
    return lambda: train_step(setup).loss


def _theirs(options: argparse.Namespace, task: Any, recipe: Any) -> Callable[[], float]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2cli.checkpoints.folder import TRANSPOSED
    from gpt2cli.training.optimizer_step import learning_rate

    ours = task.config
    config = GPT2Config(
        n_layer=ours.n_layer,
        n_head=ours.n_head,
        n_embd=ours.n_embd,
        n_positions=ours.n_positions,
        use_cache=False,
        resid_pdrop=options.dropout,
        embd_pdrop=options.dropout,
        attn_pdrop=options.dropout,
    )
    model = GPT2LMHeadModel(config).train()
    state = task.fresh_model("sdpa").state_dict()
    model.load_state_dict({name: t.T if name.endswith(TRANSPOSED) else t for name, t in state.items()})
    if options.activation_checkpointing == "on":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    plain = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(model) if options.contestant.endswith("compiled") else model
    n_done = 0

    def step() -> float:
        nonlocal n_done
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optim, n_done)
        batch = task.batch(n_done, 0)
        targets = batch.targets.contiguous()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            loss = forward(input_ids=batch.input_ids, labels=targets, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        n_done += 1
        return loss.item()

    return step


def _products(options: argparse.Namespace, task: Any, recipe: Any) -> Callable[[], float]:
    """Each matrix times its input, and the two products of its backward; attention left out."""
    import torch

    from gpt2cli.runtime import DTYPES, choose_runtime

    choose_runtime("cpu", options.precision, options.threads, training=True)  # keeps freed memory, as ours
    config, dtype = task.config, DTYPES[options.precision]
    C, M = config.n_embd, config.mlp_width
    block = [(3 * C, C), (C, C), (M, C), (C, M)]
    shapes = block * config.n_layer + [(-(-config.vocab_size // 64) * 64, C)]
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    n = recipe.tokens_per_step
    inputs = {width: torch.randn(n, width).to(dtype) for width in {w.shape[1] for w in weights}}

    @torch.no_grad()
    def step() -> float:
        for w in weights:
            x = inputs[w.shape[1]]
            y = x @ w.T
            y @ w, y.T @ x
        return 0.0

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
    if curves := report["losses"]:
        ours, *theirs = curves.values()
        apart = [max(abs(a - b) for a, b in zip(x, y, strict=True)) for x, y in ((ours, theirs[0]), theirs)]
        lines.append(
            f"\nlosses of {len(ours)} steps, {ours[0]:.3f} to {ours[-1]:.3f}: ours and transformers at most "
            f"{apart[0]:.3f} apart, transformers eager and compiled {apart[1]:.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
