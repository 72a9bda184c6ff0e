"""What befalls one of several processes: one message that names it, its exit code, and none left behind."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranked import are_gone, children_of, environment_of, finished, recipe_of, running, until_step

pytestmark = pytest.mark.peers
LONG = ("optim.steps=100000", "eval.every=200000", "eval.sample_tokens=0")
RUN = Path("runs/cut")


@contextlib.contextmanager
def started(folder: Path, *overrides: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A run of two processes that has come to step 3, and their ids by rank."""
    task, recipe = recipe_of("pretrain", folder)
    with running(task, recipe, "--name", "cut", "--processes", "2", *LONG, *overrides) as process:
        until_step(RUN, 3)
        yield process, ranks_of(process.pid)


def ranks_of(launcher: int) -> list[int]:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        by_rank = {word: pid for pid in children_of(launcher) for word in environment_of(pid)}
        if "RANK=0" in by_rank and "RANK=1" in by_rank:  # both have their own environment
            return [by_rank["RANK=0"], by_rank["RANK=1"]]
        time.sleep(0.02)
    raise TimeoutError("the launcher started no two processes")


def ended(process: subprocess.Popen[str], pids: list[int], code: int) -> str:
    """Its stderr, once nothing of it runs any more."""
    _, err = process.communicate(timeout=240)
    assert process.returncode == code and are_gone(pids), err
    assert err.count("error:") <= 1 and "Traceback" not in err, err
    return err


def test_a_file_that_rank_0_cannot_write(tmp_path: Path) -> None:
    with started(tmp_path, "checkpoint.every=40") as (process, pids):
        resource.prlimit(pids[0], resource.RLIMIT_FSIZE, (20_000, 20_000))  # less than the weights
        assert "error: rank 0: " in ended(process, pids, 4)


def test_a_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", small]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        task, recipe = recipe_of("pretrain", tmp_path)
        with running(task, recipe, "--name", small / "cut", "--processes", "2", *LONG) as process:
            until_step(small / "cut", 3)
            pids = ranks_of(process.pid)
            with open(small / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(4096))
            err = ended(process, pids, 4)
            assert "error: rank 0: " in err and "the disk" in err
    finally:
        subprocess.run(["umount", small], check=True)


def test_out_of_memory_on_rank_1(tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    batch = ("batch.micro_batch=2048", "model.dropout=0")
    with running(task, recipe, "--name", "cut", "--processes", "2", *LONG, *batch) as process:
        pids = ranks_of(process.pid)
        deadline = time.monotonic() + 240
        while not (RUN / "ranks/rank-1.log").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        in_use = int(Path(f"/proc/{pids[1]}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pids[1], resource.RLIMIT_AS, (in_use + (16 << 20),) * 2)
        assert "error: rank 1: out of memory" in ended(process, pids, 4)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_interrupt_of_one_saves_once(rank: int, tmp_path: Path) -> None:
    with started(tmp_path) as (process, pids):
        os.kill(pids[rank], signal.SIGINT)
        assert "--resume --processes 2" in ended(process, pids, 130)
    assert len(list((RUN / "checkpoints").iterdir())) == 1


def test_a_second_interrupt_ends_one_that_hangs(tmp_path: Path) -> None:
    with started(tmp_path) as (process, pids):
        os.kill(pids[1], signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        time.sleep(1)  # two signals at once are one
        process.send_signal(signal.SIGINT)
        ended(process, pids, 130)


def test_a_killed_launcher_leaves_a_checkpoint_and_no_process(tmp_path: Path) -> None:
    with started(tmp_path) as (process, pids):
        process.kill()
        assert are_gone(pids)
    (checkpoint,) = (RUN / "checkpoints").iterdir()
    steps = f"optim.steps={int(checkpoint.name.removeprefix('step-')) + 2}"
    task, recipe = recipe_of("pretrain", tmp_path)
    finished(task, recipe, "--name", "cut", "--processes", "2", "--resume", *LONG, steps)


def test_a_launcher_killed_at_once_leaves_no_process(tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    with running(task, recipe, "--name", "cut", "--processes", "2", *LONG) as process:
        pids = ranks_of(process.pid)
        process.kill()
        assert are_gone(pids, 40)  # torch is imported before they look


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """By the address of the environment, as torchrun sets it; --processes needs none."""
    task, recipe = recipe_of("pretrain", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        err = finished(task, recipe, env=place | {"RANK": "0", "WORLD_SIZE": "2"}, code=4)
        assert err.count("error: rank 0: ") == 1 and port in err and f"MASTER_PORT={int(port) + 1}" in err
        finished(task, recipe, "--processes", "2", env=place)


def test_a_rank_without_an_address(tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    err = finished(task, recipe, env={"RANK": "0", "WORLD_SIZE": "2"}, code=2)
    assert "MASTER_ADDR" in err and "unset RANK WORLD_SIZE" in err
