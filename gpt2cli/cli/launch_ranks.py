"""Several processes for one training: starting them, and what those beside the first do.

`--processes N` starts N processes of the same command on this machine; torchrun starts them itself, on
several machines too. Each finds the others by the environment (training/ranks.py).
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from gpt2cli.cli.signals import install, stop_on_signal
from gpt2cli.errors import Gpt2Error, LostRankError, UsageError
from gpt2cli.ui.console import printable, say

if TYPE_CHECKING:
    from gpt2cli.recipe.schema import Recipe
    from gpt2cli.training.ranks import Ranks

LOGS = "ranks"  # of a run: what the processes beside the first have said
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
GRACE = 10.0  # seconds for the others to notice that one is gone
SHORT_GRACE = 2.0  # after a second signal
LONGEST_TAIL = 4000  # bytes of a log that are shown


@dataclass(frozen=True)
class ToldRun:
    """What rank 0 tells the others once the data are ready."""

    run: Path
    overrides: list[str]
    checkpoint: Path | None


def is_one_of_several() -> bool:
    """Whether this process was started as one of several, here or by torchrun."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def naming_rank(error: Gpt2Error) -> Gpt2Error:
    """The error; of one of several processes with its rank, unless it is about what the user has typed."""
    if is_one_of_several() and not isinstance(error, UsageError):
        error.what = f"rank {os.environ['RANK']}: {error.what}"
    return error


def end_with_launcher() -> None:
    """Stop this process, as SIGTERM would, once the process that runs `launch` has ended for any reason.

    stdin is a pipe that is never written to; only that process holds its other end.
    """
    from gpt2cli.training.ranks import STORE

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)  # for the step and the save; a step of minutes is lost
        os._exit(128 + signal.SIGTERM)

    if STORE in os.environ:
        threading.Thread(target=watch, daemon=True).start()


def leave(code: int) -> NoReturn:
    """End one of several processes: after a lost one an ordinary exit would abort, and hide its code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def launch(n: int) -> int:
    """Run this program's command in n processes until all have ended; returns the exit code.

    Rank 0 has the terminal. Signals go to all, once. Where one fails, the others end too, and the code
    is that of the first that failed for a reason of its own.
    """
    from gpt2cli.training.ranks import STORE

    command = [sys.executable, "-m", "gpt2cli", *sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="gpt2-ranks-") as folder:
        logs = [Path(folder) / f"rank-{rank}.log" for rank in range(n)]
        common = {STORE: str(Path(folder) / "store"), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
        # All are on this machine: gloo need not find its name in a network.
        common["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", LOOPBACK)
        running: dict[int, subprocess.Popen[bytes]] = {}
        ends_with_this, held = os.pipe()
        heard: list[int] = []  # signals to end

        def forward(number: int, frame: FrameType | None) -> None:
            # SIGUSR1 asks rank 0 for a checkpoint; it would end the others.
            heard.extend([number] if number != signal.SIGUSR1 else [])
            for process in [running[0]] if number == signal.SIGUSR1 else running.values():
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

        undo = install(forward, (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1))
        try:
            for rank, log in enumerate(logs):
                environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                with open(log, "wb") as file:
                    output: dict[str, Any] = {} if rank == 0 else {"stdout": file, "stderr": file}
                    # A group of their own: Ctrl-C at the terminal reaches them through this process alone.
                    running[rank] = subprocess.Popen(
                        command, env=environment, stdin=ends_with_this, process_group=0, **output
                    )
            return _wait(running, logs, heard)
        finally:
            for process in running.values():
                process.kill()
                process.wait()
            os.close(ends_with_this)
            os.close(held)
            undo()


def _wait(running: dict[int, subprocess.Popen[bytes]], logs: list[Path], heard: list[int]) -> int:
    codes: dict[int, int] = {}
    ends_at = None
    while len(codes) < len(running):
        for rank, process in running.items():
            if rank not in codes and (code := process.poll()) is not None:
                codes[rank] = code if code >= 0 else 128 - code
                if code and ends_at is None:
                    ends_at = time.monotonic() + GRACE
        if len(heard) > 1 and ends_at is None:  # one that waits for a hung one hears no signal
            ends_at = time.monotonic() + SHORT_GRACE
        if ends_at is not None and time.monotonic() > ends_at:
            for rank in running.keys() - codes.keys():
                running[rank].kill()
                codes[rank] = LostRankError.exit_code
        time.sleep(0.02)
    own = {rank: code for rank, code in codes.items() if code not in (0, LostRankError.exit_code)}
    if len(heard) > 1 and not own:
        say("stopped without saving: a process did not answer")
        return 128 + heard[0]
    rank = 0 if 0 in own or not own else next(iter(own))
    code = codes[rank]
    if code == 128 + signal.SIGKILL:
        say(f"rank {rank} was killed; the system does so where memory runs out")
    elif rank:  # rank 0 has said it itself
        tail = logs[rank].read_bytes()[-LONGEST_TAIL:].decode("utf-8", "replace").strip()
        ended = (
            ""
            if f"rank {rank}: " in tail
            else f"rank {rank} ended with code {code}" + (":\n" if tail else "")
        )
        say(ended + printable(tail))
    return code


def train_along(
    ranks: "Ranks",
    load: Callable[[list[str]], "Recipe"],
    open_task: Callable[[Any, bool, Path | None], AbstractContextManager[Any]],
    offline: bool,
) -> None:
    """Train as a process beside the first, which reads the options, writes and prints. What this one has
    to say goes into the run's folder.
    """
    from gpt2cli.training import loop
    from gpt2cli.training.setup import set_up_training

    told: ToldRun | None = ranks.tell(None)
    if told is None:
        return
    with (
        _output_in(told.run / LOGS / f"rank-{ranks.rank}.log"),
        open_task(load(told.overrides), offline, told.checkpoint) as (task, _),
        stop_on_signal("finishing this step") as stop,
    ):
        setup = set_up_training(task, task.recipe, told.checkpoint, ranks)
        for _ in loop.train(setup, save=Path, stop=stop):
            pass
        ranks.close()


def split_micro_batches(recipe: "Recipe", world: int, resume: bool = False) -> list[str]:
    """Overrides by which each of `world` processes gets as many micro-batches: smaller ones, where their
    number does not divide.

    A step keeps its samples, except that instruction tuning then puts other records of like length into a
    batch, so that such a run cannot `resume` with another split. Raises UsageError where none fits.
    """
    rows, n = recipe.batch.micro_batch, recipe.batch.accumulation
    if n % world == 0:
        return []
    is_by_length = recipe.task == "finetune-instruct"
    is_fixed = is_by_length and resume
    parts = next((k for k in range(2, rows + 1) if rows % k == 0 and n * k % world == 0), None)
    if parts is None or is_fixed:
        most = n if is_fixed else rows * n
        fitting = [str(count) for count in range(1, most + 1) if most % count == 0]
        raise UsageError(
            f"--processes {world} does not fit: a step has {n} micro-batches of {rows} rows",
            f"each process takes as many; {', '.join(fitting[:12])} would fit",
            f"batch.accumulation={world}",
        )
    change = "; with dropout, by other masks than alone" if recipe.model.dropout else ""
    change = "; records of like length meet otherwise than alone" if is_by_length else change
    say(f"note: micro-batches of {rows} rows are split into {parts}, for {world} processes{change}")
    return [f"batch.micro_batch={rows // parts}", f"batch.accumulation={n * parts}"]


@contextlib.contextmanager
def _output_in(log: Path) -> Iterator[None]:
    """Append stdout and stderr to a file, until the process ends or fails: then stderr is as before."""
    log.parent.mkdir(exist_ok=True)
    before = os.dup(2)
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
