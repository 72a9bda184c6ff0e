"""A background job: started with SIGINT ignored, no command ends at the terminal's Ctrl-C.

In processes of their own, because a process inherits what it ignores.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from speaking import save_model_that_says
from tiny_run import PRETRAIN, all_events, random_text, write_tokens


@pytest.fixture
def start() -> Any:
    """`start("chat", ...)` is a process of the program with SIGINT ignored; killed with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def call(*arguments: str | Path) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", "gpt2cli", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_training_goes_on_and_sigterm_saves_it(gpt2: Any, start: Any) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    Path("run.yaml").write_text(json.dumps(PRETRAIN), encoding="utf-8")
    process = start("pretrain", "run.yaml", "optim.steps=1000000", "log.every=1000000")
    run = Path("runs/run")

    def steps() -> int:
        metrics = run / "metrics.jsonl"
        return metrics.read_text(encoding="utf-8").count("StepDone") if metrics.exists() else 0

    wait_for(lambda: steps() > 3, process)
    process.send_signal(signal.SIGINT)
    reached = steps()
    wait_for(lambda: steps() > reached + 20, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and b"SIGTERM" in said and b"SIGINT" not in said
    *_, saved, stopped = all_events(run)
    assert (saved["event"], saved["step"]) == ("CheckpointSaved", stopped["step"])
    assert stopped["signal"] == signal.SIGTERM and (run / "last" / "model.safetensors").exists()


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_text_goes_on_and_sigterm_keeps_it(command: str, tmp_path: Path, start: Any) -> None:
    folder = save_model_that_says(tmp_path / "model", " word" * 20_000, n_positions=20_000)
    asked = ("generate", "go", "--model", folder) if command == "generate" else ("chat", folder)
    process = start(*asked, "-t", "0", "-n", "1000000", "--threads", "1")
    process.stdin.write(b"go\n")
    process.stdin.flush()
    text = process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    text += process.stdout.read(5 * 500)  # more than was under way when the signal came
    process.send_signal(signal.SIGTERM)
    rest, said = process.communicate(timeout=60)
    assert process.returncode == 143 and b"Traceback" not in said
    assert (text + rest).split() == [b"word"] * (len(text + rest) // 5)
