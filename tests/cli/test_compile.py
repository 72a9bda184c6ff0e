"""`gpt2 compile`, and what `--compile` makes of a package. The compiler itself is stood in for."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from speaking import save_model_that_says

from gpt2cli.cli import app
from gpt2cli.cli.compile import compile
from gpt2cli.errors import Gpt2Error
from gpt2cli.generation.cpu import aot_packages
from gpt2cli.generation.cpu.aot_packages import BuildError
from gpt2cli.model.config import GPT2Config

EMPTY = "the prompt is empty: starting from <|endoftext|>\n"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    return save_model_that_says(tmp_path / "model", "well said")


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precisions that were built; each leaves a file, and is found from then on."""
    made: list[str] = []

    def build(config: GPT2Config, precision: str) -> Path:
        made.append(precision)
        (tmp_path / precision).write_text("code")
        return tmp_path / precision

    def find(config: GPT2Config, precision: str) -> Path | None:
        return tmp_path / precision if (tmp_path / precision).exists() else None

    monkeypatch.setattr(aot_packages, "build_package", build)
    monkeypatch.setattr(aot_packages, "find_package", find)
    monkeypatch.setattr(aot_packages, "can_build", lambda: True)
    return made


@pytest.fixture
def compile_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    program = typer.Typer()
    program.command()(compile)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            program(args=[str(folder), "--threads", "1", *arguments], standalone_mode=False)
        except Gpt2Error as error:
            app.print_error(error)
            code = error.exit_code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def say(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = app.run(["generate", "", "-m", str(folder), "-t", "0", "--threads", "1", *arguments])
        captured = capsys.readouterr()
        return (code, captured.out, captured.err.replace(EMPTY, ""))

    return run


def test_each_precision_is_built_once_and_its_path_printed(
    compile_it: Run, builds: list[str], tmp_path: Path
) -> None:
    code, out, err = compile_it("--precision", "int8", "--precision", "fp32", "--precision", "int8")
    assert (code, out) == (0, f"{tmp_path / 'int8'}\n{tmp_path / 'fp32'}\n")
    lines = err.splitlines()
    assert lines[0].startswith("compiling the step of 1 blocks of 32 in int8, once, about ")
    assert lines[1].startswith("compiled 1 blocks of 32 in int8: ") and len(lines) == 4
    assert compile_it("--precision", "int8") == (0, f"{tmp_path / 'int8'}\n", "")
    assert compile_it("--precision", "int8", "--force")[0] == 0
    assert builds == ["int8", "fp32", "int8"]


def test_without_a_word_it_is_what_generate_takes_without_one(compile_it: Run, builds: list[str]) -> None:
    assert compile_it()[0] == 0
    assert builds == ["fp32"]


def test_a_precision_that_has_no_compiled_step_is_refused(compile_it: Run, builds: list[str]) -> None:
    code, out, err = compile_it("--precision", "fp16")
    assert (code, out, builds) == (2, "", [])
    assert "error: --precision is 'fp16'" in err and "fp32, bf16 or int8" in err


def test_a_build_that_fails_is_an_error_here(
    compile_it: Run, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(config: GPT2Config, precision: str) -> Path:
        raise BuildError("the compiler failed (no such flag)")

    monkeypatch.setattr(aot_packages, "build_package", build)
    code, _, err = compile_it()
    assert code == 4
    assert "error: the compiler failed (no such flag)" in err and "fix: gpt2 generate --compile off" in err


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_what_cannot_be_built_is_said_once_and_the_text_comes_all_the_same(
    say: Run, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot_packages, "_compiler", lambda: "")
    code, out, err = say("--compile", "on", "--precision", precision)
    assert (code, out) == (0, "well said\n")
    assert err == "there is no C++ compiler; going on without a compiled step\n"
    assert say("--precision", precision) == (0, "well said\n", "")


def test_a_package_that_does_not_open_is_said_and_the_text_comes_all_the_same(
    say: Run, builds: list[str]
) -> None:
    code, out, err = say("--compile", "on")
    assert (code, out, builds) == (0, "well said\n", ["fp32"])
    assert "the compiled step does not open" in err and "going on without it" in err


def test_off_looks_for_no_package(say: Run, builds: list[str], tmp_path: Path) -> None:
    (tmp_path / "fp32").write_text("no code")
    assert say("--compile", "off") == (0, "well said\n", "")


def test_auto_builds_only_where_it_saves_more_than_it_takes(
    say: Run, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot_packages, "saved_seconds", lambda config, n: float(n))
    monkeypatch.setattr(aot_packages, "build_seconds", lambda config: 25.1)
    say("-n", "50")
    assert builds == []
    monkeypatch.setattr(aot_packages, "build_seconds", lambda config: 24.9)
    say("-n", "50", "--num-samples", "2")  # together they are a batch, which has no compiled step
    assert builds == []
    say("-n", "50")
    assert builds == ["fp32"]


def test_auto_says_how_to_be_faster_where_that_is_to_be_felt(
    say: Run, folder: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot_packages, "saved_seconds", lambda config, n: 1.0)
    code, out, err = say("--precision", "int8")
    assert (code, out, builds) == (0, "well said\n", [])
    assert err == f"faster after: gpt2 compile {folder} --precision int8 --threads 1\n"


def test_a_word_that_means_nothing_is_refused_before_any_work(say: Run) -> None:
    code, out, err = say("--compile", "maybe")
    assert (code, out) == (2, "")
    assert "error: --compile" in err


def test_fp16_is_never_compiled(say: Run, builds: list[str]) -> None:
    code, out, err = say("--compile", "on", "--precision", "fp16")
    assert (code, out, builds) == (0, "well said\n", [])
    assert "compiled steps are for the CPU in fp32, bf16 or int8" in err


def test_what_a_step_saves_grows_with_the_model_and_is_nothing_for_a_small_one() -> None:
    small, large = GPT2Config(n_layer=1, n_embd=12), GPT2Config()
    assert aot_packages.saved_seconds(small, 10**9) == 0
    assert 2 < aot_packages.saved_seconds(large, 1000) < 10
    assert aot_packages.PAYS * aot_packages.build_seconds(large) > aot_packages.saved_seconds(large, 10_000)
