"""Several processes train as one: the same bits, the same promises. Over gloo, with one thread each."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranked import (
    assert_same_bits,
    children_of,
    environment_of,
    finished,
    is_alive,
    of_run,
    recipe_of,
    steps_done,
    until_step,
)
from runs import command, losses

from gpt2cli.cli.launch_ranks import split_micro_batches
from gpt2cli.errors import UsageError
from gpt2cli.recipe.loader import load_recipe
from gpt2cli.training.ranks import ALONE, Ranks

KINDS = [
    "pretrain",
    "pretrain bf16",
    "classify",
    "classify lora",
    "instruct",
    "instruct packed",
    "instruct lora",
]


@pytest.mark.parametrize(
    "kind", ["pretrain", *(pytest.param(kind, marks=pytest.mark.peers) for kind in KINDS[1:])]
)
def test_two_processes_are_two_micro_batches_bit_for_bit(kind: str, tmp_path: Path) -> None:
    task, recipe = recipe_of(kind, tmp_path)
    finished(task, recipe, "--name", "alone")
    finished(task, recipe, "--name", "two", "--processes", "2")
    assert_same_bits("alone", "two")
    # Nothing but what a single process writes, and the log of the second.
    names = [{path.name for path in Path(f"runs/{name}").iterdir()} for name in ("two", "alone")]
    assert names[0] - names[1] == {"ranks"} and [path.name for path in Path("runs/two/ranks").iterdir()] == [
        "rank-1.log"
    ]


@pytest.mark.peers
@pytest.mark.parametrize("worlds", [(2, 1), (1, 2), (2, 4, 1)])
def test_a_run_goes_on_with_another_number_of_processes(worlds: tuple[int, ...], tmp_path: Path) -> None:
    """With four, micro-batches are split, and the sums differ in their last bits."""
    task, recipe = recipe_of("pretrain", tmp_path)
    finished(task, recipe, "--name", "whole", "model.dropout=0", "optim.steps=6", "optim.schedule=constant")
    for number, world in enumerate(worlds, 1):
        steps = f"optim.steps={6 * number // len(worlds)}"
        more = ["--resume"] if number > 1 else []
        constant = ("model.dropout=0", "optim.schedule=constant", steps)
        finished(task, recipe, "--name", "parts", "--processes", str(world), *more, *constant)
    found, whole = losses(Path("runs/parts")), losses(Path("runs/whole"))
    assert found.keys() == whole.keys() and found == pytest.approx(whole, abs=1e-4)
    (first, _), (second, _) = of_run("parts"), of_run("whole")
    if 4 not in worlds:
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.peers
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_once_and_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    long = ("optim.steps=2000", "eval.every=5000", "eval.sample_tokens=0")
    process = command(task, recipe, "--name", "cut", "--processes", "2", *long)
    until_step(Path("runs/cut"), 5)
    children = children_of(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "--resume --processes 2" in err
    assert len(children) == 2 and not any(map(is_alive, children))
    (checkpoint,) = Path("runs/cut/checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    finished(task, recipe, "--name", "cut", "--processes", "2", "--resume", *long, f"optim.steps={step + 3}")
    finished(task, recipe, "--name", "whole", *long, f"optim.steps={step + 3}")
    assert losses(Path("runs/cut")).keys() == losses(Path("runs/whole")).keys()


@pytest.mark.peers
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_is_named(rank: int, tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    process = command(
        task, recipe, "--name", "cut", "--processes", "2", "optim.steps=2000", "eval.every=5000"
    )
    until_step(Path("runs/cut"), 3)
    children = children_of(process.pid)
    (victim,) = [pid for pid in children if f"RANK={rank}" in environment_of(pid)]
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL and f"rank {rank}" in err
    assert "Traceback" not in err and not any(map(is_alive, children))


@pytest.mark.parametrize(
    "n_kills", [pytest.param(3, marks=pytest.mark.peers), pytest.param(30, marks=pytest.mark.proofs)]
)
def test_random_kills_of_random_ranks_change_nothing(n_kills: int, tmp_path: Path) -> None:
    """After each kill the run is resumed; in the end it is the run that nothing disturbed."""
    task, recipe = recipe_of("pretrain", tmp_path)
    n_steps, draw = 60 * n_kills, random.Random(7)
    long = (f"optim.steps={n_steps}", "checkpoint.every=10", "eval.every=1000", "eval.sample_tokens=0")
    finished(task, recipe, "--name", "whole", *long)
    for number in range(n_kills):
        more = ["--resume"] if (Path("runs/cut") / "run.json").exists() else []
        process = command(task, recipe, "--name", "cut", "--processes", "2", *more, *long)
        children = []
        while process.poll() is None and len(children) < 2:
            children = children_of(process.pid)
            time.sleep(0.02)
        if number % 3:  # else while it starts
            with contextlib.suppress(AssertionError):
                until_step(Path("runs/cut"), steps_done(Path("runs/cut")) + draw.randrange(20))
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(children), signal.SIGKILL)
        process.communicate(timeout=60)
        assert not any(map(is_alive, children))
    more = ["--resume"] if (Path("runs/cut") / "run.json").exists() else []
    finished(task, recipe, "--name", "cut", "--processes", "2", *more, *long)
    (first, _), (second, _) = of_run("cut"), of_run("whole")
    assert losses(Path("runs/cut")) == losses(Path("runs/whole"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.peers
def test_one_error_with_its_exit_code(tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    err = finished(task, recipe, "data.source=/nowhere.txt", "--processes", "2", code=3)
    assert err.count("error:") == 1 and "/nowhere.txt" in err
    err = finished(task, recipe, "optim.lr=1e30", "optim.min_lr=1e29", "--processes", "2", code=6)
    assert err.count("error:") == 1 and "diverged" in err and not Path("runs/r/last").exists()


@pytest.mark.peers
def test_torchrun_starts_the_same(tmp_path: Path) -> None:
    task, recipe = recipe_of("pretrain", tmp_path)
    finished(task, recipe, "--name", "alone")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "gpt2cli", task, recipe, "--name", "two"], capture_output=True, timeout=240
    )
    assert done.returncode == 0, done.stderr.decode()
    assert_same_bits("alone", "two")


@pytest.mark.peers
def test_two_agents_are_two_machines(tmp_path: Path) -> None:
    """Two torchruns on this machine that meet as two machines do."""
    task, recipe = recipe_of("pretrain", tmp_path)
    finished(task, recipe, "--name", "alone")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", port]
    both = [
        subprocess.Popen(
            [*torchrun, "--node-rank", node, "-m", "gpt2cli", task, recipe, "--name", "two"],
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
            stderr=subprocess.PIPE,
        )
        for node in "01"
    ]
    for process in both:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err.decode()
    assert_same_bits("alone", "two")


def test_micro_batches_are_split_to_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, path = recipe_of("pretrain", tmp_path)
    recipe = load_recipe(str(path), ["batch.micro_batch=4", "batch.accumulation=3"]).recipe
    assert split_micro_batches(recipe, 3) == []
    assert split_micro_batches(recipe, 4) == ["batch.micro_batch=1", "batch.accumulation=12"]
    said = capfd.readouterr().err
    assert "split into 4" in said and "dropout" in said
    with pytest.raises(UsageError, match="--processes 5 does not fit") as caught:
        split_micro_batches(recipe, 5)
    assert "1, 2, 3, 4, 6, 12 would fit" in caught.value.why
    load_recipe(str(path), [caught.value.fix])


def test_a_resumed_instruction_run_keeps_its_batches(tmp_path: Path) -> None:
    _, path = recipe_of("instruct", tmp_path)
    recipe = load_recipe(str(path), ["batch.micro_batch=4", "batch.accumulation=1"]).recipe
    assert split_micro_batches(recipe, 2) == ["batch.micro_batch=2", "batch.accumulation=2"]
    with pytest.raises(UsageError, match="--processes 2 does not fit"):
        split_micro_batches(recipe, 2, resume=True)


def test_all_have_as_many_rounds() -> None:
    dealt = [list(Ranks(rank, 3).deal("abcd")) for rank in range(3)]
    assert dealt == [[("a", True), ("d", True)], [("b", True), ("d", False)], [("c", True), ("d", False)]]
    assert list(ALONE.deal("ab")) == [("a", True), ("b", True)] and list(Ranks(0, 2).deal("")) == []


def test_alone_everything_is_as_it_is() -> None:
    assert list(ALONE.share(3)) == [0, 1, 2] and list(Ranks(1, 2).share(5)) == [1, 3]
    assert ALONE.add(1.5, 2) == (1.5, 2) and ALONE.most(0, 1) == (0, 1)
    assert ALONE.collect([1]) == [1] and ALONE.tell("x") == "x"
