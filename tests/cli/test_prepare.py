"""`gpt2 prepare` as typed: exit codes, stdout for scripts, stderr for people."""

import gzip
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2cli.data.prepare import open_dataset

Gpt2 = Callable[..., Any]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("one", "two", "three"):
        (folder / f"{name}.txt").write_text(f"This is text {name}. " * 500)
    return folder


def test_the_folder_is_printed_and_a_second_time_nothing_is_done(gpt2: Gpt2, texts: Path) -> None:
    first = gpt2("prepare", texts, "--out", "out")
    assert (first.code, first.out) == (0, "out\n")
    assert "3 documents" in first.err
    assert "\x1b" not in first.err
    second = gpt2("prepare", f"{texts}/*.txt", "--out", "out")
    assert (second.code, second.out) == (0, "out\n")
    assert "Nothing to do" in second.err
    with open_dataset(Path("out")) as data:
        assert data.train.n_tokens > 1024


@pytest.mark.parametrize("tokenizer", ["gpt2", "chars", "bpe-300"])
def test_the_command_to_try_next_trains_on_the_folder(tokenizer: str, gpt2: Gpt2, tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("Every effort moves you on and on, and so it goes.\n" * 60)
    done = gpt2("prepare", "a b.txt", "--out", "my tokens", "--validation", "0.2", "--tokenizer", tokenizer,
                "--block", "64")  # fmt: skip
    (hint,) = [line for line in done.err.splitlines() if line.startswith("try it: ")]
    program, *words = shlex.split(hint.removeprefix("try it: "))
    tried = gpt2(*words, "--dry-run")
    assert program == "gpt2" and tried.code == 0, tried.err


def test_json_summary(gpt2: Gpt2, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"title": f"T{i}", "body": "word " * 50}) + "\n" for i in range(100))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    command = ("prepare", tmp_path / "a.jsonl.gz", "--text-field", "title", "--text-field", "body", "--json")
    done = gpt2(*command, "--out", "out", "--validation", "0.1", "--seed", "4", "--shard-tokens", "1000")
    assert done.code == 0
    summary = json.loads(done.out)
    with open_dataset(Path("out")) as data:
        assert summary["documents"] == 100
        assert (summary["train_tokens"], summary["validation_tokens"]) == (
            data.train.n_tokens,
            data.validation.n_tokens,
        )
        assert data.manifest.settings.seed == 4
        assert data.manifest.train[0].n_tokens == 1000
        assert data.tokenizer.decode(data.train.read(0, 12).tolist()).startswith("T0\n\nword word")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.txt", "--out", "o"], 3, "missing.txt: no such file"),
        (["*.none", "--out", "o"], 3, "no file matches"),
        (["/dev/zero", "--out", "o"], 3, "not a regular file"),
        (["texts", "--out", "o", "--validation", "1"], 2, "validation is 1.0"),
        (["texts", "--out", "o", "--tokenizer", "nope"], 2, "nope: no such tokenizer"),
        (["texts", "--out", "."], 2, "is not empty"),
        (["texts", "--out", "texts"], 2, "is not empty"),
        (["texts", "--out", "o", "--block", "100000"], 3, "fewer than one block of 100,000"),
        (["texts", "--out", "texts/one.txt"], 4, "cannot write here"),
        (["latin[/x].txt", "--out", "o"], 3, "latin[/x].txt: not UTF-8 at byte 1"),
        (["texts", "--validation-source", "texts/one.txt", "--out", "o"], 2, "named twice"),
        (["texts", "--validation", "0.1", "--validation-source", "y", "--out", "o"], 2, "validation sources"),
        (["texts"], 2, "--out"),
    ],
)
def test_exit_codes(arguments: list[str], code: int, message: str, gpt2: Gpt2, texts: Path) -> None:
    latin = Path("latin[/x].txt")
    latin.parent.mkdir()
    latin.write_bytes("héllo".encode("latin-1"))
    done = gpt2("prepare", *arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert len(done.err.splitlines()) <= 4
    assert "Traceback" not in done.err


def test_a_validation_text_of_ones_own(gpt2: Gpt2, texts: Path) -> None:
    """Repeatable; it takes the place of the default fraction."""
    for name in ("held", "more"):
        Path(f"{name}.txt").write_text(f"Held out: {name}.")
    held = ("--validation-source", "held.txt", "--validation-source", "mor*.txt")
    done = gpt2("prepare", texts, *held, "--tokenizer", "chars", "--out", "out", "--json")
    assert done.code == 0, done.err
    assert "fewer than one block" in done.err
    with open_dataset(Path("out")) as data:
        ids = data.validation.read(0, data.validation.n_tokens).tolist()
        assert data.tokenizer.decode(ids) == "Held out: held.<|endoftext|>Held out: more.<|endoftext|>"
        assert json.loads(done.out)["validation_tokens"] == len(ids)
        assert "Held" not in data.tokenizer.decode(data.train.read(0, data.train.n_tokens).tolist())


def test_line_ends_of_windows_are_told(gpt2: Gpt2) -> None:
    Path("dos.txt").write_bytes(b"one two\r\n" * 150_000)  # its last piece of text fills a chunk
    done = gpt2("prepare", "dos.txt", "--tokenizer", "chars", "--out", "out")
    assert done.code == 0
    assert done.err.count("150,000 line ends") == 1
    with open_dataset(Path("out")) as data:
        assert "\r" not in data.tokenizer.decode(range(data.tokenizer.n_vocab))


def test_text_that_changed_is_exit_3_and_force_redoes_it(gpt2: Gpt2, texts: Path) -> None:
    assert gpt2("prepare", texts, "--out", "out").code == 0
    (texts / "one.txt").write_text("Another text. " * 500)
    refused = gpt2("prepare", texts, "--out", "out")
    assert refused.code == 3
    assert "one.txt: changed since it was prepared" in refused.err
    assert "--force" in refused.err
    assert gpt2("prepare", texts, "--out", "out", "--seed", "9").code == 2
    assert gpt2("prepare", texts, "--out", "out", "--force").code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_and_the_same_command_continues(number: int, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpt2cli", "prepare", "big.jsonl", "--out", "out", "--workers", "1"]
    row = json.dumps({"text": "the boat went out to sea and came back again, 1,200 times. " * 20}) + "\n"
    (tmp_path / "big.jsonl").write_text(row * 60_000)  # 70 MB: some seconds
    # A new session: a Ctrl-C goes to the whole group, and the shell of this test ignores none.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "out" / "train-00000.bin").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, number)
    begin = time.monotonic()
    _, error = process.communicate(timeout=20)
    assert process.returncode == code
    assert time.monotonic() - begin < 3
    assert "Run the same command again to continue." in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert (tmp_path / "out" / "journal.json").exists()


def peak_mb(source: Path, out: Path, tokenizer: str = "gpt2") -> float:
    """Peak resident memory of `gpt2 prepare`, in a process of its own."""
    # VmHWM, not ru_maxrss: the latter begins with what the forking parent, here pytest, had.
    script = (
        "import sys; from gpt2cli.cli.app import run; code = run(sys.argv[1:]);"
        "print(code, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", script, "prepare", source, "--out", out, "--tokenizer", tokenizer]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, kilobytes = done.stdout.split("\n")[-2].split()
    assert code == "0"
    return int(kilobytes) / 1024


@pytest.mark.proofs
@pytest.mark.parametrize("tokenizer", ["gpt2", "chars"])
def test_memory_does_not_grow_with_the_text(tokenizer: str, tmp_path: Path) -> None:
    """On real text: it splinters the C library's heap, which made-up text was not seen to do."""
    folder = os.environ.get("GPT2_MIRROR")
    if not folder:
        pytest.skip("GPT2_MIRROR is not set: there is no real text of some size")
    text = b"".join(
        (Path(folder) / name).read_bytes() for name in ("tinyshakespeare.txt", "wikitext-2-test.txt")
    )
    peaks = []
    for times in (17, 100):  # 40 and 237 MB
        source = tmp_path / f"{times}.txt"
        source.write_bytes(text * times)
        peaks.append(peak_mb(source, tmp_path / f"out-{times}", tokenizer))
    assert peaks[1] < 600
    assert peaks[1] - peaks[0] < 50, peaks


def test_a_separator_that_splits_nothing_is_told_once(gpt2: Gpt2, texts: Path) -> None:
    missed = gpt2("prepare", texts, "--split-on", "\\n\\n", "--out", "out", "--block", "8")
    assert missed.code == 0 and missed.err.count("splits none of the texts") == 1
    (texts / "one.txt").write_text("a\\n\\nb " * 99)
    split = gpt2("prepare", texts, "--split-on", "\\n\\n", "--out", "other", "--block", "8")
    assert split.code == 0 and "splits none" not in split.err
