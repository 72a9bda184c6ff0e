"""Linear layers in fp32 for hundreds of rows: prompts, windows of a text, batches of texts.

`F.linear` goes to MKL, which on some processors leaves half of their speed unused: on an AMD Zen 5 it reached
214 GFLOPS where oneDNN reached 490, on a Zen 3 without AVX-512 oneDNN is a tenth slower. No list of
processors says which, so it is measured, once per machine, torch and number of threads, and remembered in
GPT2_HOME/measured. Without a home nothing is measured and `F.linear` computes everything: a choice that is
timed anew in each process could change the last digits, and with them a text, from run to run.
"""

import contextlib
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli import paths
from gpt2cli.errors import Gpt2Error
from gpt2cli.files import write_json
from gpt2cli.json_files import read_json_object
from gpt2cli.runtime import processor_digest

MANY = 256  # rows; below, reordering a weight costs more than it saves
LARGE = 1 << 19  # elements of a weight, 124M's smallest; smaller models are fast enough
ROWS, IN, OUT, ROUNDS = 512, 768, 3072, 7  # of the measurement, some 0.7 s on two cores
MARGIN = 1.1  # a smaller gain may be noise
# How a matmul can be computed: by torch; with a weight in oneDNN's layout, or brought there from rows of
# (N, K) or of (K, N) at each call.
MKL, BLOCKED, REORDERED, REORDERED_COLUMNS = "F.linear", "blocked", "reordered", "reordered columns"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) W^T + b, the weight (N, K) in fp32 and reordered here if that pays."""
    n_rows = x.numel() // weight.shape[1]
    if n_rows >= MANY and weight.numel() >= LARGE and weight.device.type == "cpu":
        way = REORDERED if weight.is_contiguous() else REORDERED_COLUMNS
        if way in faster_ways(torch.get_num_threads()):
            return blocked_linear(x, reorder(weight), bias)
    return F.linear(x, weight, bias)


def matmul_with(x: Tensor, n_rows: int) -> Callable[[Tensor], Tensor]:
    """A function that gives x W^T (M, N) for x (M, K) and one weight W (N, K) after another, all in fp32 and
    most of them with `n_rows` rows.

    If that pays, x is what is reordered, once: W (x in oneDNN's layout)^T is the transposed result.
    """
    M, K = x.shape
    if M >= MANY and n_rows * K >= LARGE and BLOCKED in faster_ways(torch.get_num_threads()):
        blocks = reorder(x)
        return lambda weight: blocked_linear(weight, blocks, None).t()
    return lambda weight: F.linear(x, weight)


def pays_to_keep_blocks(weight: Tensor) -> bool:
    """Whether a layer with this weight (N, K) is faster with it kept in oneDNN's layout."""
    if weight.dtype is not torch.float32 or weight.device.type != "cpu" or weight.numel() < LARGE:
        return False
    return BLOCKED in faster_ways(torch.get_num_threads())


def reorder(weight: Tensor) -> Tensor:
    """A copy of the weight (N, K) in oneDNN's layout, which only `blocked_linear` can read.

    oneDNN is told how many rows are to come; from 1 to 512 it made no difference.
    """
    blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    return blocks


def blocked_linear(x: Tensor, blocks: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., K) W^T + b with W from `reorder`."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")
    return y


@cache
def faster_ways(n_threads: int) -> frozenset[str]:
    """The ways that are faster than F.linear here: remembered, or else measured and stored.

    Empty where they cannot be stored, or torch is built without oneDNN.
    """
    if not paths.has_home() or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return frozenset()
    path = paths.gpt2_home() / "measured" / f"linear-{n_threads}-threads.json"
    facts = {"torch": torch.__version__, "processor": processor_digest(), "threads": n_threads}
    seconds = _remembered(path, facts)
    if seconds is None:
        seconds = measure()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {**facts, "seconds": seconds})
        except (OSError, Gpt2Error):
            return frozenset()
    return frozenset(way for way, taken in seconds.items() if taken * MARGIN < seconds[MKL])


@torch.no_grad()
def measure() -> dict[str, float]:
    """Seconds of one matmul in each way, the median of some rounds in which they take turns."""
    x, rows, columns = torch.ones(ROWS, IN), torch.ones(OUT, IN), torch.ones(IN, OUT).t()
    blocks = reorder(rows)
    ways: dict[str, Callable[[], Tensor]] = {
        MKL: lambda: F.linear(x, rows),
        BLOCKED: lambda: blocked_linear(x, blocks, None),
        REORDERED: lambda: blocked_linear(x, reorder(rows), None),
        REORDERED_COLUMNS: lambda: blocked_linear(x, reorder(columns), None),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, compute in ways.items():
            start = time.perf_counter()
            compute()
            seconds[way].append(time.perf_counter() - start)
    return {way: median(taken) for way, taken in seconds.items()}


def _remembered(path: Path, facts: dict[str, Any]) -> dict[str, float] | None:
    """The stored seconds, if they are of this machine."""
    with contextlib.suppress(OSError, Gpt2Error):  # missing or damaged: measured again
        stored = read_json_object(path)
        seconds = stored.pop("seconds", None)
        if stored == facts and isinstance(seconds, dict) and MKL in seconds:
            return {str(way): float(taken) for way, taken in seconds.items() if isinstance(taken, float)}
    return None
