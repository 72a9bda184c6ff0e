"""SIGUSR1 in the middle of a training: a checkpoint, and on it goes."""

import json
import signal
import time
from pathlib import Path

from runs import command, write_recipe

PATIENCE = 60.0  # seconds


def test_sigusr1_saves_and_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    never = ("checkpoint.every=1000000", "eval.every=1000000", "optim.steps=100000")
    process = command("pretrain", write_recipe(tmp_path), *never, "--name", run)
    try:
        until(lambda: n_steps(run) > 3)
        process.send_signal(signal.SIGUSR1)
        until(lambda: (run / "last").is_dir())
        saved = json.loads((run / "last" / "train_state.json").read_text())["progress"]["step"]
        until(lambda: n_steps(run) > saved)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE) == 129
        assert (run / "checkpoints" / f"step-{saved:06d}").is_dir()
    finally:
        process.kill()
        process.communicate()


def until(is_so: object) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def n_steps(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count("StepDone") if metrics.exists() else 0
