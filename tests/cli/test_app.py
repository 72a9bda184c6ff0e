"""The program itself: instant help, one way from an error to an exit code, quiet pipes."""

import errno
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from gpt2cli import errors
from gpt2cli.cli import app
from gpt2cli.errors import Gpt2Error, LostRankError
from gpt2cli.training import run_record

Gpt2 = Callable[..., Any]
HEAVY = ("torch", "numpy", "pydantic", "yaml", "tiktoken", "matplotlib", "httpx2")
REPOSITORY = Path(__file__).resolve().parents[2]


def test_help_imports_nothing_heavy_and_lists_nothing_to_compute_with() -> None:
    program = (
        "import sys; from gpt2cli.cli.app import run\n"
        "for words in ('--help', 'recipes', 'recipes show verdict', 'download --list'):\n"
        "    code = run(words.split())\n"
        f"    print(code, *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    helped, *listed = done.stderr.splitlines()
    assert helped == "0" and len(listed) == 3
    assert all(set(line.split()) <= {"0", "pydantic", "yaml"} for line in listed), "what recipes need"
    assert all(name in done.stdout for name in ("prepare", "pretrain", "generate", "recipes"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [([], 0, "Usage"), (["--version"], 0, "gpt2cli 0."), (["pretrain", "--help"], 0, "--dry-run")],
)
def test_what_goes_well(gpt2: Gpt2, arguments: list[str], code: int, said: str) -> None:
    done = gpt2(*arguments)
    assert done.code == code and said in done.out and not done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretrian"], "Did you mean 'pretrain'?"),
        (["pretrain"], "Missing argument"),
        (["pretrain", "verdict", "--nmae", "x"], "--name"),
        (["generate", "x", "--max-new-tokens", "many"], "--max-new-tokens"),
        (["pretrain", "verdit"], "fix: gpt2 pretrain verdict\n"),
    ],
)
def test_mistyped_words_are_usage_errors_with_a_way_on(gpt2: Gpt2, arguments: list[str], said: str) -> None:
    done = gpt2(*arguments)
    assert done.code == 2 and done.err.startswith("error: ") and said in done.err and "fix: " in done.err
    assert not done.out


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(recipe: str) -> None:
        raise error

    monkeypatch.setattr(run_record, "run_name_of", burst)


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Gpt2Error)]
)
def test_each_kind_of_error_has_its_code_and_its_lines(
    gpt2: Gpt2, kind: type[Gpt2Error], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(kind("what [/x] \x1b[31m", "because", "do this"), monkeypatch)
    done = gpt2("pretrain", "verdict")
    assert done.code == kind.exit_code
    said = ["error: what [/x] ␛[31m", "why: because", "fix: do this"]
    # Of several processes that train together, the one that is gone has said why.
    assert done.err.splitlines() == ([] if kind is LostRankError else said)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "/x: the disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "/y"), "/y: permission denied"),
        (MemoryError(), "out of memory"),
    ],
)
def test_what_the_system_refuses_is_exit_4(
    gpt2: Gpt2, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(error, monkeypatch)
    done = gpt2("pretrain", "verdict")
    assert done.code == 4 and said in done.err and "Traceback" not in done.err


def test_our_own_bug_leaves_its_traceback_in_a_file(gpt2: Gpt2, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(ZeroDivisionError("the bug"), monkeypatch)
    done = gpt2("pretrain", "verdict")
    assert done.code == 1 and "Traceback" not in done.err and done.err.count("\n") <= 4
    found = re.search(r"\S+crash-\S+\.log", done.err.replace("\n", ""))
    assert found and "ZeroDivisionError: the bug" in Path(found[0]).read_text()
    shown = gpt2("pretrain", "verdict", "--debug")
    assert shown.code == 1 and "Traceback" in shown.err


def test_ctrl_c_and_sigterm_have_their_codes(gpt2: Gpt2, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(KeyboardInterrupt(), monkeypatch)
    assert gpt2("pretrain", "verdict").code == 130
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert gpt2("prepare", "-", "--out", "y").code == 3, "an empty standard input holds no text"
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", "prepare", "-", "--out", "x"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(Path("x").glob("*")):  # it copies standard input there, which does not end
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_closed_pipe_is_quiet() -> None:
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m gpt2cli recipes show verdict | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("# ") and not done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "gpt2cli", "recipes"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert process.returncode == app.EXIT_SIGPIPE and not process.stderr


@pytest.mark.parametrize("arguments", ["recipes", "chat nowhere"])
def test_closed_streams_end_in_a_clean_exit_code(arguments: str) -> None:
    def outcome(streams: str) -> tuple[int, str, str]:
        line = f"{shlex.quote(sys.executable)} -m gpt2cli {arguments} {streams}"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    code, out, err = outcome("")
    assert outcome("2>&-") == (code, out, "")
    written = (4, "error: stdout or a file: it is closed")
    code, _, err = outcome(">&-")
    assert (code, err.splitlines()[0]) == (written if out else (3, "error: nowhere: no such model"))
    assert outcome(">&- 2>&-") == (code, "", "")
    if out:
        code, _, err = outcome("> /dev/full")
        assert code == 4 and "the disk is full" in err and "--name" not in err


def test_a_closed_stdin_matters_only_to_what_reads_it(
    gpt2: Gpt2, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    (tmp_path / "text.txt").write_text("a text of some length\n" * 9, encoding="utf-8")
    out = ("--tokenizer", "chars", "--block", "8", "--out")
    assert gpt2("prepare", tmp_path / "text.txt", *out, tmp_path / "tokens").code == 0
    done = gpt2("prepare", "-", *out, tmp_path / "none")
    assert done.code == 2 and "-: standard input is closed" in done.err and "fix: " in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "\n  pretrain"),
        (["recipes"], 0, "\nverdict "),
        (["pretrain", "no-such[/x]"], 2, "error: no-such[/x]: no such recipe\n"),
    ],
)
def test_ascii_and_twenty_columns_are_enough(arguments: list[str], code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpt2cli", *arguments],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "20", "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == code
    assert said in (done.stderr if code else done.stdout).decode("ascii")
    assert b"Traceback" not in done.stderr and b"\x1b" not in done.stdout + done.stderr


def test_every_command_in_the_readme_is_one_that_the_program_takes(
    gpt2: Gpt2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsed by the program itself, whose commands are kept from doing anything."""
    lines = re.findall(r"^\s*(?:\$ )?(gpt2 [^#\n]+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    lines += re.findall(r"`(gpt2 [^`\n]+)`", (REPOSITORY / "README.md").read_text())
    assert len(lines) >= 8
    parsed, program = [], typer.main.get_command(app.app)
    for words in [shlex.split(re.split(r" [|<>] ", line)[0]) for line in lines]:
        if len(words) < 2 or any(word.isupper() and len(word) > 2 for word in words):
            continue  # a synopsis, not a command line
        assert parses(program, words[1:] if len(words) > 2 else [words[1], "--help"]), words
        parsed.append(words[1])
    assert {"prepare", "pretrain", "generate", "recipes"} <= set(parsed)


def parses(program: Any, arguments: list[str]) -> bool:
    try:
        with program.make_context("gpt2", list(arguments)) as context:
            name, found, rest = program.resolve_command(context, [*context._protected_args, *context.args])
            found.make_context(name, rest, parent=context)
    except typer.Exit:
        return True
    except typer.TyperException:
        return False
    return True


def test_torch_is_pinned_to_two_threads() -> None:
    assert torch.get_num_threads() == 2, "bit-for-bit comparisons between processes need it"
