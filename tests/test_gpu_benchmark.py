"""benchmarks/gpu.py in miniature on a CPU: its figures are right, and the first wrong one ends it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parents[1] / "benchmarks/gpu.py"


def run(*options: str) -> tuple[int, list[str]]:
    """The exit code, and the lines of stdout."""
    done = subprocess.run([sys.executable, PROGRAM, *options], capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout.splitlines() + done.stderr.splitlines()[-1:]


def test_all_is_as_expected_on_a_cpu() -> None:
    checks = ("device", "model", "loss", "resume", "nccl")
    code, lines = run("--device", "cpu", "--only", *checks)
    assert code == 0, lines
    assert [line.split()[0] for line in lines if line[:1].isalpha() and "(" in line] == list(checks)
    figures = [line for line in lines if line.startswith("  ")]
    assert len(figures) > 20 and all("expected" in line and "seen" in line for line in figures)


def test_the_first_wrong_figure_ends_it() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device on this machine")
    code, lines = run("--only", "device", "model")
    assert code == 1 and "stopped: device" in lines[-1]
    assert "WRONG" in lines[-2] and not [line for line in lines if line.startswith("model")]
