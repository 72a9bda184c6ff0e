"""Completion as the shells ask for it, through the scripts that --install-completion writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from gpt2cli.cli.app import app
from gpt2cli.cli.completion import candidates, show
from gpt2cli.errors import UsageError
from gpt2cli.recipe.schema import RECIPES, recipe_fields
from gpt2cli.recipe.schema_source import source_keys

BIN = Path(sys.executable).parent


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, a model and a recipe of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    for folder in ("runs/first", "runs/.lock", "home/models/124M"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "own.yaml").write_text("task: pretrain\n")
    return tmp_path


def words(line: str) -> list[str]:
    *before, last = line.split(" ")
    return [word for word, _ in candidates(app, before, last)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pret", ["pretrain"]),
        ("pretrain verd", ["verdict"]),
        ("pretrain own", ["own.yaml"]),
        ("pretrain spam", []),
        ("finetune-classify spam", ["spam", "spam-tiny"]),
        (
            "pretrain verdict optim.sch",
            [f"optim.schedule={s}" for s in ("cosine", "linear", "constant", "wsd")],
        ),
        ("pretrain verdict optim.lr=1 data.bu", ["data.bundled=true", "data.bundled=false"]),
        ("pretrain verdict --name x optim.warm", ["optim.warmup_steps="]),
        ("pretrain verdict --na", ["--name"]),
        ("finetune-instruct instruct init=", ["init=runs/first", "init=124M"]),
        ("recipes check spam data.bal", [f"data.balance={s}" for s in ("none", "undersample", "weights")]),
        ("recipes k", ["keys"]),
        ("recipes show shakespeare-", ["shakespeare-char"]),
        ("generate --model ", ["runs/first", "124M"]),
        ("generate x --precision b", ["bf16"]),
        ("chat r", ["runs/first"]),
        ("evaluate 124M r", ["runs/first"]),
        ("download 7", ["774M"]),
        ("prepare nov", []),  # the shell's own: files
    ],
)
def test_candidates(place: Path, line: str, expected: list[str]) -> None:
    assert words(line) == expected


def ask(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from gpt2cli.cli.app import run; code = run([])\n"
        "heavy = [name for name in ('torch', 'pydantic', 'yaml', 'numpy', 'rich') if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True, text=True
    )


def test_the_protocol_of_each_shell(place: Path) -> None:
    bash = ask({"_GPT2_COMPLETE": "complete_bash", "COMP_WORDS": "gpt2\npretrain\nverd", "COMP_CWORD": "2"})
    assert (bash.returncode, bash.stdout, bash.stderr) == (0, "verdict\n", "")
    line = "gpt2 recipes show verd"
    zsh = ask({"_GPT2_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line})
    assert (
        zsh.stdout.startswith('_arguments \'*: :(("verdict":"GPT-2 124M from random weights')
        and not zsh.stderr
    )
    fish = {"_GPT2_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": line}
    assert ask(fish | {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}).stdout.startswith("verdict\tGPT-2 124M")
    assert ask(fish | {"_TYPER_COMPLETE_FISH_ACTION": "is-args"}).returncode == 0
    files = fish | {"_TYPER_COMPLETE_ARGS": "gpt2 prepare no", "_TYPER_COMPLETE_FISH_ACTION": "is-args"}
    assert ask(files).returncode == 1


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["pretrain", "verd"], ["verdict"]),
        (["pretrain", "verdict", "optim.schedule", "="], ["cosine", "linear", "constant", "wsd"]),
        (["pretrain", "verdict", "optim.schedule", "=", "co"], ["cosine", "constant"]),
        (["pretrain", "verdict", "model.context", "=", "8", "optim.schedule", "=", "w"], ["wsd"]),
    ],
)
def test_bash_as_installed(place: Path, typed: list[str], completed: list[str]) -> None:
    """Bash hands over `key=word` as three words, and replaces the last alone."""
    installed = subprocess.run(
        ["bash", "-c", "gpt2 --install-completion; true"], capture_output=True, text=True, check=True
    )
    assert "completion for bash is installed" in installed.stderr
    script = (
        'source ~/.bashrc; complete -p gpt2; COMP_WORDS=(gpt2 "$@"); COMP_CWORD=$#; _gpt2_completion gpt2;'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", *typed], capture_output=True, text=True, check=True)
    registered, *found = done.stdout.splitlines()
    assert "_gpt2_completion" in registered and found == completed


def test_an_unknown_shell_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: None)
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    with pytest.raises(UsageError, match="your shell is not known"):
        show(True)
    monkeypatch.setenv("SHELL", "/bin/zsh")
    with pytest.raises(typer.Exit):
        show(True)


@pytest.mark.parametrize("task", RECIPES)
def test_the_source_has_the_keys_of_the_schema(task: str) -> None:
    live = [(key, meaning) for key, meaning, _ in recipe_fields(RECIPES[task])]
    assert sorted((one.name, one.meaning) for one in source_keys(task)) == sorted(live)
