"""Processes that train one model together.

A step has `batch.accumulation` micro-batches, and rank r of W processes takes the micro-batches r, r + W,
r + 2 W, and so on. The gradients are summed over the processes once a step. Data order and dropout are
functions of the micro-batch's number, so they know nothing of ranks, and a run goes on with any number
of processes.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpt2cli.errors import LostRankError

# Where the processes of --processes find one another; torchrun names an address and a port instead.
STORE = "GPT2_RANKS_STORE"
GRADIENTS = datetime.timedelta(minutes=10)  # a step is shorter
CONTROL = datetime.timedelta(hours=24)  # rank 0 may prepare a corpus, or sample, while the others wait

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. The default is a process alone: every method then
    gives back what it was given.
    """

    rank: int = 0
    world: int = 1
    local: int = 0  # of the processes on this machine
    local_world: int = 1
    control: Any = None  # the process group for everything but gradients; on CPUs

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reads options, writes and prints."""
        return self.rank == 0

    def share(self, n: int) -> range:
        """Of n things, numbered from 0, those that are this process's."""
        return range(self.rank, n, self.world)

    def add(self, *values: float) -> tuple[float, ...]:
        """Each value summed over the processes, in the order of their ranks: the same bits everywhere."""
        if self.world == 1:
            return values
        rows = self._gather(values)
        totals = list(rows[0])
        for row in rows[1:]:
            totals = [total + value for total, value in zip(totals, row, strict=True)]
        return tuple(totals)

    def most(self, *values: int) -> tuple[int, ...]:
        """Each value's maximum over the processes: what one of them has heard, all have."""
        if self.world == 1:
            return values
        return tuple(max(column) for column in zip(*self._gather(values), strict=True))

    def reduce(self, gradients: Sequence[Tensor]) -> None:
        """Sum each gradient over the processes, in place."""
        if self.world > 1:
            with _or_lost():
                for gradient in gradients:
                    torch.distributed.all_reduce(gradient)

    def collect(self, items: list[T]) -> list[T]:
        """The items of all processes, in the order of their ranks."""
        return items if self.world == 1 else [item for row in self._gather(items) for item in row]

    def tell(self, value: T) -> T:
        """The value of rank 0, on all. The others pass anything."""
        if self.world == 1:
            return value
        told = [value]
        with _or_lost():
            torch.distributed.broadcast_object_list(told, group=self.control)
        return told[0]

    def close(self) -> None:
        """Part from the others: what follows is this process's alone."""
        if self.world > 1 and torch.distributed.is_initialized():
            with _or_lost():
                torch.distributed.barrier(group=self.control)
            torch.distributed.destroy_process_group()

    def _gather(self, value: Any) -> list[Any]:
        rows: list[Any] = [None] * self.world
        with _or_lost():
            torch.distributed.all_gather_object(rows, value, group=self.control)
        return rows


ALONE = Ranks()


def join() -> Ranks:
    """The process among its ranks, by the environment that the launcher or torchrun sets; else alone."""
    world = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if world == 1:
        return ALONE
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = os.environ.get(STORE)
    with _or_lost():
        torch.distributed.init_process_group(
            backend,
            init_method=f"file://{store}" if store else "env://",
            rank=rank,
            world_size=world,
            timeout=GRADIENTS,
        )
        control = torch.distributed.new_group(backend="gloo", timeout=CONTROL)
    return Ranks(rank, world, local, local_world, control)


@contextlib.contextmanager
def _or_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors are its kinds
        what = str(error).partition("\n")[0][:200]
        raise LostRankError("another process of this training is gone", what) from error
