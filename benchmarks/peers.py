"""Owns how peers are measured fairly: one process each, taking turns, on a machine that is described."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


class Peer:
    """One contestant in a process of its own, which stays warm and idles while others run."""

    def __init__(self, script: str, *arguments: str) -> None:
        command = [sys.executable, script, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str = "") -> Any:
        """Send a line, wait for the line of JSON that answers it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def answer(value: Any) -> None:
    """What a contestant's process does with its result."""
    print(json.dumps(value), flush=True)


def machine(threads: int) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    import torch
    import transformers

    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    flags = next((line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": threads,
        "cpu_flags": sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma"))),
    }


def described(machine: dict[str, Any]) -> str:
    """The same as two lines of text."""
    return (
        f"torch {machine['torch']}, transformers {machine['transformers']}, {machine['threads']} threads\n"
        f"cpu flags: {' '.join(machine['cpu_flags'])}"
    )
