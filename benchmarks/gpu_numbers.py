"""Checks of gpu.py in its own process: numbers against a CPU and fp64, launches, waits, tokens per second."""

import contextlib
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GiB = 1 << 30
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")
RECIPE = {
    "task": "pretrain",
    "seed": 1,
    "data": {"source": "tokens"},
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 128, "context": 64, "dropout": 0.0},
    "batch": {"micro_batch": 4},
    "optim": {"steps": 20, "lr": 1e-3, "warmup_steps": 2},
    "eval": {"every": 1000, "tokens": 512, "sample_tokens": 0},
    "run": {"precision": "fp32", "compile": "off"},
}
SHAPE_124M = ("model.n_layer=12", "model.n_head=12", "model.n_embd=768", "model.context=1024")


@dataclass(frozen=True)
class Scale:
    """How large the checks are."""

    steps: int  # of training that are compared
    timed: int  # that are timed
    shape: tuple[str, ...]  # of the model that is timed, as overrides
    rows: int  # of its batch
    decoded: str  # the size of the model that decodes, and its tokens
    n_tokens: int
    lora: str  # the size that is fine-tuned with adapters
    too_many: int  # rows that no memory holds
    few: tuple[str, ...]  # overrides of the tours


SCALES = {
    "cuda": Scale(20, 10, SHAPE_124M, 16, "124M", 256, "774M", 4096, ()),
    "cpu": Scale(
        *(3, 2, (), 4, "2x128", 32, "2x128", 1 << 16),
        ("optim.steps=3", "optim.warmup_steps=1", "eval.every=3"),
    ),
}


@dataclass(frozen=True)
class Bench:
    """Where the checks run, and the folder for what they write."""

    device: str
    folder: Path
    scale: Scale

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


class WrongFigureError(Exception):
    """A check has failed; its line has been printed."""


def tell(what: str, expected: object, seen: object, right: bool = True) -> None:
    """Print a line; raises WrongFigureError unless it is right."""
    print(f"  {'ok   ' if right else 'WRONG'} {what}: expected {expected}, seen {seen}", flush=True)
    if not right:
        raise WrongFigureError(what)


def at_most(what: str, limit: float, seen: float) -> None:
    tell(what, f"at most {limit:g}", f"{seen:.3g}", seen <= limit)


def pretraining(bench: Bench, *overrides: str, checkpoint: Path | None = None) -> Any:
    """A run on the story, set up."""
    from gpt2cli.data.token_dataset import open_dataset
    from gpt2cli.recipe.loader import load_recipe
    from gpt2cli.training.base_model import random_weights
    from gpt2cli.training.pretrain_task import PretrainTask
    from gpt2cli.training.setup import set_up_training

    recipe: Any = load_recipe("recipe.yaml", [f"run.device={bench.device}", *overrides]).recipe
    data = open_dataset(Path("tokens"))
    task = PretrainTask(recipe, data, random_weights(recipe, data.tokenizer))
    return set_up_training(task, recipe, checkpoint)


def losses(setup: Any, n: int) -> list[float]:
    from gpt2cli.training.loop import train_step

    return [train_step(setup).loss for _ in range(n)]


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@contextlib.contextmanager
def profiled() -> Any:
    """What ran: the profiler, whose `events()` are there once the block has ended."""
    from torch.profiler import ProfilerActivity, profile, supported_activities

    kinds = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & set(supported_activities())
    with profile(activities=kinds) as profiler:
        yield profiler


def count(profiler: Any, *names: str) -> int:
    return sum(event.name.startswith(names) for event in profiler.events())


def check_device(bench: Bench) -> None:
    import torch

    from gpt2cli.model.layers import attention_sdpa

    tell("torch", "2.7 or newer", torch.__version__)
    dtype = torch.float32
    if bench.on_gpu:
        tell("a CUDA device", True, torch.cuda.is_available(), torch.cuda.is_available())
        facts = torch.cuda.get_device_properties(0)
        tell(
            "device", "any", f"{facts.name}, {facts.major}.{facts.minor}, {facts.total_memory / GiB:.0f} GiB"
        )
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        tell("bf16 in hardware", "True from Ampere on", has_bf16, has_bf16 == (facts.major >= 8))
        dtype = torch.bfloat16 if has_bf16 else torch.float16
    q = torch.randn(1, 4, 128, 64, device=bench.device, dtype=dtype)
    with profiled() as profiler:
        attention_sdpa(q, q, q, None, 0.0)
    names = [event.name for event in profiler.events()]
    fused = [name for name in names if re.search("flash|fmha|efficient|cudnn", name, re.IGNORECASE)]
    tell("kernel of torch's attention", "flash, efficient or cuDNN's", (fused or names)[-1], bool(fused))


def check_model(bench: Bench) -> None:
    import torch

    from gpt2cli.generation.engine import decode_one, prefill
    from gpt2cli.model.config import GPT2Config
    from gpt2cli.model.gpt2 import GPT2LMHead, new_model
    from gpt2cli.model.layers import ATTENTION

    config = GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=64, vocab_size=500, initializer_range=0.1)
    reference = new_model(config, 1, "formula").eval()
    ids = torch.randint(0, 500, (2, 48), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = reference(ids)
        for attention in ATTENTION:
            model = GPT2LMHead(config, attention).eval()
            model.load_state_dict(reference.state_dict())
            model.to(bench.device)
            found = model(ids.to(bench.device))
            at_most(f"logits, {attention}, from those of a CPU", 1e-4, gap(found, wanted))
            cache = model.new_cache(2, 64)
            pieces = [model(part, cache) for part in ids.to(bench.device).split([11, 1, 5, 31], dim=1)]
            at_most(f"logits, {attention}, cached", 1e-4, gap(torch.cat(pieces, 1), wanted))
            rows = [ids[0].tolist(), ids[1, :29].tolist()]
            padded = prefill(model, model.new_cache(2, 64), rows)
            alone = [prefill(model, model.new_cache(1, 64), [row]) for row in rows]
            at_most(f"logits, {attention}, padded", 1e-4, gap(padded[0], torch.cat([a[0] for a in alone])))
            next_ids = torch.tensor([7, 9], device=bench.device)
            together = decode_one(model, padded[1], next_ids)
            single = [decode_one(model, a[1], next_ids[i : i + 1]) for i, a in enumerate(alone)]
            at_most(f"logits, {attention}, one step on", 1e-4, gap(together, torch.cat(single)))


def gap(one: Any, other: Any) -> float:
    return float((one.cpu().double() - other.cpu().double()).abs().max())


def check_loss(bench: Bench) -> None:
    import torch
    import torch.nn.functional as F

    from gpt2cli.training.fused_cross_entropy import cross_entropy_sum

    torch.manual_seed(3)
    hidden = torch.randn(5000, 128, device=bench.device, requires_grad=True)
    weight = (torch.randn(2003, 128, device=bench.device) * 0.2).requires_grad_()
    targets = torch.randint(0, 2003, (5000,), device=bench.device)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="sum")
    gradients = torch.autograd.grad(exact, (hidden, weight))
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-5)):
        name = str(dtype).removeprefix("torch.")
        loss = cross_entropy_sum(hidden, weight, targets, dtype)
        at_most(f"loss, {name}, relative to fp64", limit, abs(loss.item() / exact.item() - 1))
        found = torch.autograd.grad(loss, (hidden, weight))
        worst = max(float((a - b).norm() / b.norm()) for a, b in zip(found, gradients, strict=True))
        at_most(f"gradients, {name}, relative to fp64", limit, worst)
        with torch.no_grad():
            blind = cross_entropy_sum(hidden, weight, targets, dtype).item()
        at_most(f"loss without a gradient, {name}", max(limit / 10, 1e-5), abs(blind / exact.item() - 1))
    if not bench.on_gpu:
        return
    hidden = torch.randn(16384, 768, device="cuda", requires_grad=True)
    weight = torch.randn(50257, 768, device="cuda", requires_grad=True)
    targets = torch.zeros(16384, dtype=torch.long, device="cuda")
    with profiled() as profiler:
        cross_entropy_sum(hidden, weight, targets, torch.bfloat16).backward()
        torch.cuda.synchronize()
    at_most("launches of the loss of 16,384 positions", 1000, count(profiler, *LAUNCHES))
    overflow(bench)


def overflow(bench: Bench) -> None:
    """fp16: a loss scale that is far too large costs some steps, and no more."""
    import torch

    from gpt2cli.training.events import StepSkipped
    from gpt2cli.training.loop import train_step

    setup = pretraining(bench, "run.precision=fp16")
    setup.optimizer_step.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    events = [train_step(setup) for _ in range(40)]
    skipped = [isinstance(event, StepSkipped) for event in events]
    tell(
        "fp16, the first step at a scale of 2^40", "skipped", "skipped" if skipped[0] else "taken", skipped[0]
    )
    tell("fp16, the last step", "taken", "skipped" if skipped[-1] else "taken", not skipped[-1])
    at_most("fp16, its loss", events[0].loss, events[-1].loss)


def check_steps(bench: Bench) -> None:
    n = bench.scale.steps
    wanted = losses(pretraining(bench), n)
    setup = pretraining(bench, "run.activation_checkpointing=on")
    at_most(f"losses of {n} steps with activation checkpointing", 1e-3, apart(losses(setup, n), wanted))
    setup = pretraining(bench, "run.compile=on")
    tell("compiled", "without a notice", "; ".join(setup.notices) or "none", setup.runtime.compile)
    at_most(f"losses of {n} steps, compiled", 2e-3, apart(losses(setup, n), wanted))
    tell("the losses fall", f"below {wanted[0]:.2f}", f"{wanted[-1]:.2f}", wanted[-1] < wanted[0])


def check_resume(bench: Bench) -> None:
    from gpt2cli.training.run_dir import RunDir, save_checkpoint

    run = RunDir(bench.folder / "runs/resumed")
    run.folder.mkdir(parents=True)
    first = pretraining(bench)
    losses(first, 3)
    checkpoint = save_checkpoint(run, first)
    wanted = losses(first, 3)
    found = losses(pretraining(bench, checkpoint=checkpoint), 3)
    at_most("losses after a resume", 1e-4 if bench.on_gpu else 0.0, apart(found, wanted))


def check_step(bench: Bench) -> None:
    import torch

    from gpt2cli.training.estimate import estimate_memory
    from gpt2cli.training.loop import train_step

    precision = "run.precision=auto" if bench.on_gpu else "run.precision=fp32"
    compile = "run.compile=on" if bench.on_gpu else "run.compile=off"
    setup = pretraining(
        bench, *bench.scale.shape, f"batch.micro_batch={bench.scale.rows}", precision, compile
    )
    losses(setup, 3)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    events: list[Any] = [train_step(setup) for _ in range(bench.scale.timed)]
    speed = statistics.median(event.n_tokens / event.seconds for event in events)
    tell("tokens per second", "350,000 to 460,000 for 124M on an H100", f"{speed:,.0f}", speed > 0)
    if not bench.on_gpu:
        return
    mfu = statistics.median(event.mfu or 0.0 for event in events)
    tell("MFU", "0.3 to 0.37, at least 0.2; 0 on an unknown device", f"{mfu:.2f}", not mfu or mfu >= 0.2)
    parts = estimate_memory(
        *(setup.model.config, bench.scale.rows, setup.runtime.dtype.itemsize),
        n_trainable=sum(p.numel() for p in setup.model.parameters()),
        n_outputs=events[0].n_tokens,
        device="cuda",
    )
    at_most("peak memory in GiB", 1.25 * sum(parts.values()) / GiB, torch.cuda.max_memory_allocated() / GiB)
    with profiled() as profiler:
        train_step(setup)
    n_waits = count(profiler, "cudaStreamSynchronize")
    tell("waits of the host per step", 1, n_waits, n_waits == 1)
    at_most("launches per step", 3000, count(profiler, *LAUNCHES))


def check_decode(bench: Bench) -> None:
    import torch
    from random_models import random_model

    from gpt2cli.generation.engine import generate
    from gpt2cli.generation.sampling import SamplingOptions

    n = bench.scale.n_tokens
    model = random_model(bench.scale.decoded).to(bench.device, torch.bfloat16)
    with torch.inference_mode():
        logits = model(torch.zeros(1, 8, dtype=torch.long, device=bench.device))
        exact = model.float()(torch.zeros(1, 8, dtype=torch.long, device=bench.device))
    tell("logits of a model in bf16", "torch.float32", logits.dtype, logits.dtype is torch.float32)
    at_most("their distance from fp32", 0.2, gap(logits, exact))
    model.to(torch.bfloat16)
    for options in (SamplingOptions(temperature=0), SamplingOptions()):
        times = []
        for _ in generate(model, [[11] * 64], options, n):
            times.append(time.perf_counter())
        speed = (len(times) - 1) / (times[-1] - times[0])
        least = 150 if bench.on_gpu else 0
        way = "sampled" if options.temperature else "greedy"
        tell(f"{way} tokens per second", "500 to 650 on an H100", f"{speed:,.0f}", speed > least)


def check_nccl(bench: Bench) -> None:
    import torch
    from torch import distributed

    backend = "nccl" if bench.on_gpu else "gloo"
    place = f"file://{bench.folder / 'ranks'}"
    distributed.init_process_group(backend, init_method=place, rank=0, world_size=1)
    numbers = torch.arange(1000.0, device=bench.device)
    distributed.all_reduce(numbers)
    same = bool((numbers.cpu() == torch.arange(1000.0)).all())
    distributed.destroy_process_group()
    tell(f"a sum over one process with {backend}", "the same numbers", same, same)
