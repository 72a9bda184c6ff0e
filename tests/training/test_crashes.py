"""Killed at any moment: between each two system calls of a save, and at random times in a process."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lessons import write_lesson
from runs import command, losses, scratch_task, tiny, weights_of, write_recipe
from teaching import write_teaching

from gpt2cli import files, paths
from gpt2cli.checkpoints.folder import load_model
from gpt2cli.training.loop import train
from gpt2cli.training.run_dir import RunDir, newest_valid_checkpoint, save_checkpoint, sweep
from gpt2cli.training.setup import set_up_training
from gpt2cli.training.train_state import read_state

WATCHED = {
    "open",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
}


def die_at(n: int, act: Callable[[], object]) -> bool:
    """Run `act` in a fork that kills itself at its n-th call to the file system; False if it ended first."""
    child = os.fork()
    if child == 0:
        count = 0

        def step(event: str = "", arguments: object = ()) -> None:
            nonlocal count
            if event in WATCHED or event == "fsync":
                count += 1
                if count == n:
                    os.kill(os.getpid(), signal.SIGKILL)

        fsync = os.fsync

        def watched_fsync(descriptor: int) -> None:
            step("fsync")
            fsync(descriptor)

        os.fsync = watched_fsync
        sys.addaudithook(step)
        act()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("step", [9, 6], ids=["new", "replaced"])
def test_a_save_killed_between_any_two_calls_leaves_a_whole_checkpoint(step: int, tmp_path: Path) -> None:
    """Saves over a run that holds 3 and 6: step 9, so that 3 is pruned, or step 6 once more."""
    recipe, data = tiny(tmp_path, "optim.steps=9", "checkpoint.keep=2")
    run = RunDir(tmp_path / "run")
    session = set_up_training(scratch_task(recipe, data), recipe, None)
    run.folder.mkdir()
    for _ in train(session, save=lambda: save_checkpoint(run, session), stop=lambda: 0):
        if session.state.step == 8:
            break
    session.state.step = session.state.kept_step = step
    before = tmp_path / "before"
    shutil.copytree(run.folder, before, symlinks=True)

    n, ends = 1, set()
    while die_at(n, lambda: save_checkpoint(run, session)):
        sweep(run)  # what the next start does first
        checkpoint, problems = newest_valid_checkpoint(run)
        assert checkpoint is not None and not problems, f"call {n} left a damaged checkpoint"
        assert checkpoint.name >= "step-000006", f"call {n} lost a checkpoint"
        ends.add(read_state(checkpoint)[0].kept_step)
        for pointer in (run.folder / "best", run.folder / "last"):
            if pointer.is_symlink():
                load_model(pointer.resolve())
        load_model(paths.best_checkpoint(run.folder))
        assert not list(run.folder.rglob(f"{files.TEMPORARY}*"))
        shutil.rmtree(run.folder)
        shutil.copytree(before, run.folder, symlinks=True)
        n += 1
    assert n > 30, "the calls were not seen"
    assert len(ends) == 2 and step in ends, "it died both before and after the rename"
    assert newest_valid_checkpoint(run)[0] == run.checkpoints / f"step-{step:06d}"


# Each training command and the recipe of a run of a second or two.
LESSONS: dict[str, Callable[[Path], Path]] = {
    "pretrain": write_recipe,
    "finetune-classify": write_lesson,
    "finetune-instruct": write_teaching,
}


def kill_loop(task: str, folder: Path, kills: int, steps: int, seed: int) -> None:
    """Start, kill at a random moment, resume, until the run is through; then compare with a whole one."""
    recipe = LESSONS[task](folder)
    saving_always = ["checkpoint.every=1", f"optim.steps={steps}", "eval.every=20"]
    process = command(task, recipe, *saving_always, "--name", folder / "whole")
    assert process.wait(240) == 0, process.communicate()[1]
    rng, run = random.Random(seed), RunDir(folder / "cut")
    killed = 0
    while killed < kills and not (run.checkpoints / f"step-{steps:06d}").exists():
        resume = ["--resume"] if run.record.exists() else []
        process = command(task, recipe, *([] if resume else saving_always), "--name", run.folder, *resume)
        first = paths.checkpoints(run.folder)[-1:]
        # The start takes seconds in which nothing is saved; most kills should hit the saving.
        deadline = time.monotonic() + 60
        while paths.checkpoints(run.folder)[-1:] == first and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(rng.random() * 0.25)
        process.kill()
        process.communicate()
        killed += 1
        checkpoint, problems = newest_valid_checkpoint(run)
        assert checkpoint is not None and not problems
    assert killed > kills // 2, "the run was through before it could be killed often"
    process = command(task, recipe, "--name", run.folder, "--resume")
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert not list(run.folder.rglob(f"{files.TEMPORARY}*")), "an orphan outlived the next start"
    assert losses(run.folder) == losses(folder / "whole")
    assert weights_of(run.folder) == weights_of(folder / "whole")


@pytest.mark.parametrize("task", LESSONS)
def test_killed_at_random_and_resumed_it_ends_in_the_same_bits(task: str, tmp_path: Path) -> None:
    kill_loop(task, tmp_path, kills=2, steps=40, seed=1)


@pytest.mark.proofs
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", LESSONS)
def test_fifty_kills(task: str, tmp_path: Path) -> None:
    kill_loop(task, tmp_path, kills=50, steps=400, seed=1)
