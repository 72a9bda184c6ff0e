"""`gpt2 judge` in a process of its own: signals, terminals, pipes that close."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from judge_server import MODEL, Judge, judging

N = 6


def write(folder: Path) -> Path:
    records = [
        {"instruction": f"Name {i} things.", "input": "", "output": "x", "response": f"thing {i}"}
        for i in range(N)
    ]
    path = folder / "answers.json"
    path.write_text(json.dumps(records))
    return path


def command(path: Path, server: Judge, *arguments: str) -> list[str]:
    given = [str(path), "--base-url", server.base_url, "--judge-model", MODEL, "--parallel", "1"]
    return [sys.executable, "-m", "gpt2cli", "judge", *given, *arguments]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), **more}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_at_once_keeps_what_came_and_a_rerun_goes_on(
    tmp_path: Path, number: int, code: int
) -> None:
    path = write(tmp_path)
    with judging(*["ok"] * (3 + 2), "hang") as server:
        process = subprocess.Popen(
            command(path, server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        )
        until = time.monotonic() + 60
        while len(server.asked()) < 6 and time.monotonic() < until:
            assert process.poll() is None
            server.arrived.wait(0.05)
        began = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - began < 20  # the answer would have come after 60
        assert (process.returncode, out) == (code, b"")
        said = err.decode().splitlines()
        assert not any("Traceback" in line or "never retrieved" in line for line in said)
        assert said[-1] == f"2 of {N} scored, 4 not judged yet; run the same command again to go on"
        n_before = len(server.asked())
        again = subprocess.run(command(path, server), capture_output=True, env=environment(), timeout=60)
        assert again.returncode == 0 and f"coverage     {N} of {N} scored" in again.stdout.decode()
        assert len(server.asked()) - n_before == 4


def test_sigterm_amid_many_answers_is_no_crash(tmp_path: Path) -> None:
    records = [{"instruction": f"Name {i}.", "output": "x", "response": f"thing {i}"} for i in range(3000)]
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(records))
    with judging() as server:
        process = subprocess.Popen(
            [*command(path, server), "--parallel", "8"], stderr=subprocess.PIPE, env=environment(), text=True
        )
        until = time.monotonic() + 60
        while len(server.asked()) < 100 and time.monotonic() < until:
            server.arrived.wait(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "of 3,000 scored" in err.splitlines()[-1]
    assert not any(word in err for word in ("Traceback", "Warning", "never"))


def test_ctrl_c_is_heard_before_the_first_answer_too(tmp_path: Path) -> None:
    with judging() as server:
        server.listing = ["hang"]
        process = subprocess.Popen(
            command(write(tmp_path), server), stderr=subprocess.PIPE, env=environment(), text=True
        )
        assert process.stderr
        assert process.stderr.readline().startswith(f"judging {N} responses of ")
        until = time.monotonic() + 60
        while not server.requests and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=25)
        said = f"0 of {N} scored, {N} not judged yet; run the same command again to go on\n"
        assert (process.returncode, err) == (130, said)


def test_a_reader_that_leaves_is_no_error_and_ascii_is_enough(tmp_path: Path) -> None:
    path = write(tmp_path)
    with judging() as server:
        server.answer = lambda fields: {
            "reason": "naïve \x1b 😂",
            **dict.fromkeys(("relevance", "correctness", "clarity", "score"), 60),
        }
        plain = environment(PYTHONIOENCODING="ascii", COLUMNS="20")
        whole = subprocess.run(command(path, server), capture_output=True, env=plain, timeout=60)
        assert whole.returncode == 0 and b"na\\xefve \\u241b \\U0001f602" in whole.stdout
        assert whole.stdout.isascii() and b"\x1b" not in whole.stdout + whole.stderr
        reader = subprocess.Popen(
            command(path, server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=plain
        )
        assert reader.stdout and reader.stderr
        reader.stdout.close()
        assert reader.wait(timeout=60) == 128 + signal.SIGPIPE
        assert b"Traceback" not in reader.stderr.read()


def test_on_a_terminal_a_bar_tells_how_far_it_is_and_goes(tmp_path: Path) -> None:
    import pty

    path = write(tmp_path)
    with judging(*["ok"] * (3 + 2), "hang") as server:
        parent, child = pty.openpty()
        process = subprocess.Popen(
            command(path, server), stdout=subprocess.PIPE, stderr=child, env=environment(TERM="xterm")
        )
        os.close(child)
        shown = b""
        while f"2 of {N}".encode() not in shown:
            shown += os.read(parent, 4096)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        while True:
            try:
                shown += os.read(parent, 4096)
            except OSError:  # what Linux says when the other side has closed
                break
        os.close(parent)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert process.returncode == 130 and " left" in text
    assert text.rstrip().endswith("4 not judged yet; run the same command again to go on")
