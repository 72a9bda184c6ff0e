"""One thread against one per core, on idle cores and beside busy programs.

    python benchmarks/threads.py [--sizes 0.1M,10M,124M] [--work evaluate,train,generate] [--busy 0,2]

Each number of threads is measured in a process of its own, in turn with the others; `spinning` is GNU's
OpenMP as torch brings it, `sleeping` as `gpt2` sets it (`cores.let_threads_sleep`). A line has tokens per
second and the ratio to one thread; `--busy 2` starts two endless loops beside. The load says whether the
cores were idle: others' programs count as busy ones.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from peers import Peer, answer

from gpt2cli.cores import let_threads_sleep, usable_cores

SHAPES = {  # blocks, heads, width, context, vocabulary; rows and tokens per row of a batch
    "0.1M": ((2, 4, 64, 64, 96), (4, 64)),
    "1M": ((4, 4, 128, 128, 512), (4, 64)),
    "10M": ((6, 6, 384, 256, 96), (4, 128)),
    "124M": ((12, 12, 768, 1024, 50257), (2, 64)),
}
N_NEW = 24  # tokens of a continuation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="0.1M,10M,124M")
    parser.add_argument("--work", default="evaluate,train,generate")
    parser.add_argument("--busy", default="0,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        serve(*asked.worker.split())
        return
    kinds = ("1 spinning", f"{usable_cores()} spinning", f"{usable_cores()} sleeping")
    workers = {kind: Peer(__file__, "--worker", kind) for kind in kinds}
    for n_busy in map(int, asked.busy.split(",")):
        with busy(n_busy):
            for size in asked.sizes.split(","):
                for work in asked.work.split(","):
                    measure(workers, size, work, n_busy, asked.rounds, asked.seconds)


def measure(workers: dict[str, Peer], size: str, work: str, n_busy: int, rounds: int, seconds: float) -> None:
    for worker in workers.values():
        worker.ask(json.dumps({"size": size, "work": work}))
    rates: dict[str, list[float]] = {kind: [] for kind in workers}
    for _ in range(rounds):
        for kind, worker in workers.items():
            rates[kind].append(worker.ask(json.dumps({"seconds": seconds})))
    medians = {kind: statistics.median(found) for kind, found in rates.items()}
    cells = [f"{kind}: {rate:,.0f} ({rate / medians['1 spinning']:.2f})" for kind, rate in medians.items()]
    place = f"busy {n_busy}  {size:5} {work:9}"
    print(f"{place} {'  '.join(cells)}  load {os.getloadavg()[0]:.1f}", flush=True)


@contextlib.contextmanager
def busy(n: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def serve(threads: str, idle: str) -> None:
    """The worker: a line of JSON in, a line out."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.pop(name, None)
    if idle == "sleeping":
        let_threads_sleep()
    import torch

    torch.set_num_threads(int(threads))
    step, n_tokens = (lambda: None), 0
    for line in sys.stdin:
        request = json.loads(line)
        if "size" in request:
            step, n_tokens = prepared(request["size"], request["work"])
            step()
            answer("ready")
            continue
        began, n = time.perf_counter(), 0
        while n == 0 or time.perf_counter() - began < request["seconds"]:
            step()
            n += 1
        answer(n * n_tokens / (time.perf_counter() - began))


def prepared(size: str, work: str) -> tuple[Callable[[], None], int]:
    """A step of the work, and its tokens."""
    import torch
    from torch.nn import functional as F

    from gpt2cli.generation.cpu.swap_linears import swap_for_decoding
    from gpt2cli.generation.engine import generate
    from gpt2cli.generation.sampling import sampling_options
    from gpt2cli.model.config import GPT2Config
    from gpt2cli.model.gpt2 import new_model

    (n_layer, n_head, n_embd, context, n_vocab), (rows, T) = SHAPES[size]
    config = GPT2Config(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=context, vocab_size=n_vocab
    )
    model = new_model(config, 1, "sdpa")
    T = min(T, context - 1)
    ids = torch.randint(0, n_vocab, (rows, T + 1))  # (B, T + 1)

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    if work == "generate":
        swap_for_decoding(model.eval(), "fp32", "row")
        options = sampling_options(1)
        return lambda: list(generate(model, [[1, 2, 3, 4]], options, N_NEW)).clear(), N_NEW
    if work == "evaluate":
        return torch.inference_mode()(lambda: loss() and None), rows * T
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def train() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return train, rows * T


if __name__ == "__main__":
    main()
