"""Processes that train one model together.

A step has `batch.accumulation` micro-batches, and rank r of W processes takes the micro-batches r, r + W,
r + 2 W, and so on. The gradients are summed over the processes once per step. Data order and dropout are
functions of the micro-batch's number, so they know nothing of ranks, and a run goes on with any number of
processes.
"""

import contextlib
import datetime
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpt2cli.errors import LostRankError, ResourceError, UsageError, is_out_of_memory

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
        """This process's share of the numbers 0 to n - 1."""
        return range(self.rank, n, self.world)

    def deal(self, items: Iterable[T]) -> Iterator[tuple[T, bool]]:
        """Items, the same on all processes, in rounds of one each: this process's item, and whether it is its
        own. Where the last round has too few, the others get its last item: all have as many rounds.
        """
        rest = iter(items)
        while found := list(itertools.islice(rest, self.world)):
            yield found[min(self.rank, len(found) - 1)], self.rank < len(found)

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
        """Each value's maximum over the processes: a signal that reaches one reaches all."""
        if self.world == 1:
            return values
        return tuple(max(column) for column in zip(*self._gather(values), strict=True))

    def reduce(self, gradients: Sequence[Tensor]) -> None:
        """Sum each gradient over the processes, in place."""
        if self.world > 1:
            with or_lost():
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
        with or_lost():
            torch.distributed.broadcast_object_list(told, group=self.control)
        return told[0]

    def close(self) -> None:
        """Leave the process group: what follows is this process's alone."""
        if self.world > 1 and torch.distributed.is_initialized():
            with or_lost():
                torch.distributed.barrier(group=self.control)
            torch.distributed.destroy_process_group()

    def _gather(self, value: Any) -> list[Any]:
        rows: list[Any] = [None] * self.world
        with or_lost():
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
        _require_gpus(local_world, torch.cuda.device_count())
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = os.environ.get(STORE)
    with or_lost() if store else _or_unmet():
        torch.distributed.init_process_group(
            backend,
            init_method=f"file://{store}" if store else "env://",
            rank=rank,
            world_size=world,
            timeout=GRADIENTS,
        )
        control = torch.distributed.new_group(backend="gloo", timeout=CONTROL)
    return Ranks(rank, world, local, local_world, control)


def _require_gpus(n_processes: int, n_gpus: int) -> None:
    if n_processes > n_gpus:
        raise UsageError(
            f"{n_processes} processes on this machine, which has {n_gpus} GPUs",
            "each takes one; export CUDA_VISIBLE_DEVICES= lets all train on the CPU",
            f"--processes {n_gpus}",
        )


@contextlib.contextmanager
def or_lost(certain: bool = True) -> Iterator[None]:
    """Turn torch.distributed's errors, kinds of RuntimeError, into LostRankError. Unless it is `certain` that
    no others can occur in the block, they are known by their class or origin.
    """
    try:
        yield
    except RuntimeError as error:
        is_distributed = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if is_out_of_memory(error) or not (certain or is_distributed):
            raise
        raise LostRankError("another process of this training is gone", _first_line(error)) from error


@contextlib.contextmanager
def _or_unmet() -> Iterator[None]:
    """Translate rendezvous errors (MASTER_ADDR, MASTER_PORT)."""
    try:
        yield
    except RuntimeError as error:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        raise ResourceError(
            f"the processes cannot meet at {address}, port {port}",
            _first_line(error),
            f"export MASTER_PORT={port + 1}",
        ) from error
    except ValueError as error:
        raise UsageError(
            "RANK and WORLD_SIZE are set, but not all that several processes need to meet",
            _first_line(error),
            "unset RANK WORLD_SIZE",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
