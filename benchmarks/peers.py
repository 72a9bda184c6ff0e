"""Owns how peers are measured fairly: one process each, taking turns, on a machine that is described."""

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "tiktoken", "llama-cpp-python", "ctranslate2")


class Peer:
    """One contestant in a process of its own, which stays warm and idles while others run."""

    def __init__(self, script: str, *arguments: str) -> None:
        self._command = [sys.executable, script, *arguments]
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, question: str = "") -> Any:
        """Send a line, wait for the line of JSON that answers it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(f"it ended without an answer: {' '.join(self._command)}")
        return json.loads(reply)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def answer(value: Any) -> None:
    """What a contestant's process does with its result."""
    print(json.dumps(value), flush=True)


def take_turns(
    peers: dict[str, Peer], questions: Sequence[str], rounds: int
) -> dict[str, dict[str, list[Any]]]:
    """{question: {peer: an answer a round}}; a round asks all peers every question, in alternating order.

    The first round warms up and is not counted.
    """
    found: dict[str, dict[str, list[Any]]] = {
        question: {name: [] for name in peers} for question in questions
    }
    for n in range(-1, rounds):
        for question in questions:
            for name in peers if n % 2 else reversed(peers):
                reply = peers[name].ask(question)
                if n >= 0:
                    found[question][name].append(reply)
        print(f"round {n + 1} of {rounds}", file=sys.stderr)
    return found


def spread(ratios: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def machine(threads: int) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    values = {
        key.strip(): value.strip()
        for key, value in (line.split(":", 1) for line in text.splitlines() if ":" in line)
    }
    flags = values.get("flags", "").split()
    return {
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "threads": threads,
        "cpu": values.get("model name", platform.machine()),
        "cpu_flags": sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma"))),
    }


def described(machine: dict[str, Any]) -> str:
    """The same as two lines of text."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['threads']} threads, Python {machine['python']}, {versions}\n"
        f"{machine['cpu']}; {' '.join(machine['cpu_flags'])}"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
