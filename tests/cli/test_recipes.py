"""`gpt2 recipes` as a person types it and as a script reads it."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpt2cli.cli.recipes import app
from gpt2cli.errors import InputError, ResourceError, UsageError
from gpt2cli.recipe.loader import load_recipe
from gpt2cli.recipe.schema import RECIPES, recipe_fields
from gpt2cli.recipe.shipped import shipped_recipes
from gpt2cli.ui import console

NAMES = [
    "finetune-text",
    "gpt2-124m",
    "gpt2-mini",
    "instruct",
    "instruct-lora",
    "positions",
    "shakespeare",
    "shakespeare-char",
    "spam",
    "spam-tiny",
    "summarize",
    "verdict",
]


def run(*arguments: str) -> tuple[str, str]:
    """(stdout, stderr); an error is raised as the program's one error place would get it."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


@pytest.mark.parametrize("arguments", [[], ["list"]])
def test_list(arguments: list[str]) -> None:
    stdout, stderr = run(*arguments)
    assert [line.split()[0] for line in stdout.splitlines()] == NAMES
    for line in stdout.splitlines():
        assert len(line.split(maxsplit=1)[1]) > 20
    assert stderr == ""


def test_list_for_a_script() -> None:
    entries = json.loads(run("list", "--json")[0])
    assert [entry["name"] for entry in entries] == NAMES
    for entry in entries:
        assert Path(entry["path"]).read_text(encoding="utf-8").startswith(f"# {entry['title']}\n")


@pytest.mark.parametrize("name", ["verdict", "verdict.yaml", str(shipped_recipes()["verdict"])])
def test_show_is_verbatim(name: str) -> None:
    result = CliRunner().invoke(app, ["show", name], catch_exceptions=False)
    assert result.stdout_bytes == shipped_recipes()["verdict"].read_bytes()


def test_show_keeps_bytes_that_are_not_text(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf# \xff\r\n\x1b"
    (tmp_path / "x.yaml").write_bytes(content)
    result = CliRunner().invoke(app, ["show", str(tmp_path / "x.yaml")], catch_exceptions=False)
    assert result.stdout_bytes == content


def test_show_on_a_terminal_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    (tmp_path / "x.yaml").write_bytes(b"# \x1b[31m [/x]\n")
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    from gpt2cli.cli.recipes import show

    show(str(tmp_path / "x.yaml"))
    assert stream.getvalue() == "# ␛[31m [/x]\n"


def test_show_of_nothing() -> None:
    with pytest.raises(UsageError, match="verdct: no such recipe"):
        run("show", "verdct")


def test_copy(tmp_path: Path) -> None:
    target = tmp_path / "new" / "my.yaml"
    stdout, stderr = run("copy", "verdict", str(target))
    assert stdout == "" and f"gpt2 recipes check {target}" in stderr
    assert load_recipe(str(target)).recipe == load_recipe("verdict").recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_explains_each_key(tmp_path: Path, name: str) -> None:
    target = tmp_path / "my.yaml"
    run("copy", name, str(target))
    assert load_recipe(str(target)).recipe == load_recipe(name).recipe
    meanings = {meaning for _, meaning, _ in recipe_fields(type(load_recipe(name).recipe))}
    lines = [line for line in target.read_text().splitlines() if line[:1] != "#" and not line.endswith(":")]
    for line in lines:
        assert line.startswith("task:") or line.partition("  # ")[2] in meanings, line


def test_a_copy_of_what_has_no_place_for_comments_is_verbatim(tmp_path: Path) -> None:
    written = tmp_path / "own.yaml"
    for content in (
        b"# \xff\n",
        b"task: nothing\n",
        shipped_recipes()["verdict"].read_bytes().replace(b"\n", b"\r\n"),
    ):
        written.write_bytes(content)
        run("copy", str(written), str(tmp_path / "copy.yaml"), "--force")
        assert (tmp_path / "copy.yaml").read_bytes() == content


def test_keys_say_type_default_and_meaning() -> None:
    lines = run("keys", "optim")[0].splitlines()
    assert all(line.startswith("optim.") for line in lines)
    assert "optim.steps         required  optimizer steps in total [whole number >= 1]" in lines
    entries = json.loads(run("keys", "--json")[0])
    for task, kind in RECIPES.items():
        said = {one["key"]: one["meaning"] for one in entries if task in one["tasks"]}
        assert said == {key: meaning for key, meaning, _ in recipe_fields(kind) if key != "task"}
        assert all(one["type"] and one["meaning"] for one in entries)
    only = run("keys", "finetune-classify", "data")[0]
    assert "data.balance" in only and "data.output" not in only


@pytest.mark.parametrize(
    ("word", "near"), [("optin", "optim"), ("optim.lrr", "optim.lr"), ("warmup", "optim.warmup_steps")]
)
def test_a_misspelt_section_is_recognised(word: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        run("keys", word)
    assert caught.value.fix == f"gpt2 recipes keys {near}"


def test_copy_into_a_folder(tmp_path: Path) -> None:
    run("copy", "shakespeare", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["shakespeare.yaml"]


def test_copy_replaces_only_when_told(tmp_path: Path) -> None:
    target = tmp_path / "my.yaml"
    target.write_text("mine")
    with pytest.raises(UsageError, match="already exists") as caught:
        run("copy", "verdict", str(target))
    assert caught.value.exit_code == 2 and caught.value.fix.endswith("--force")
    assert target.read_text() == "mine"
    run("copy", "verdict", str(target), "--force")
    assert load_recipe(str(target)).recipe == load_recipe("verdict").recipe


def test_copy_never_replaces_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    for name in ("pipe", "dangling"):
        with pytest.raises(UsageError, match="not a regular file"):
            run("copy", "verdict", str(tmp_path / name), "--force")
    assert (tmp_path / "pipe").is_fifo()


def test_copy_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot write here") as caught:
        run("copy", "verdict", str(tmp_path / "file" / "my.yaml"))
    assert caught.value.exit_code == 4


def test_check() -> None:
    stdout, stderr = run("check", "verdict", "optim.lr=3e-4", "seed=1")
    assert stdout.startswith("ok ") and stdout.count("\n") == 1
    for part in (
        "124M (12 blocks, 12 heads, width 768)",
        "160 steps of 512 tokens",
        "lr 0.0003 to 0.0002",
        "2 overridden",
    ):
        assert part in stdout
    assert stderr == ""
    assert "overridden" not in run("check", "shakespeare-char")[0]


def test_check_for_a_script() -> None:
    values = json.loads(run("check", "verdict", "optim.lr=3e-4", "--json")[0])
    assert values["recipe"]["optim"]["lr"] == 3e-4
    assert values["origins"]["optim.lr"] == "override"
    assert values["path"].endswith("verdict.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_is_ok(name: str) -> None:
    assert run("check", name)[0].startswith("ok ")


def test_check_tells_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = shipped_recipes()["verdict"].read_text(encoding="utf-8").replace("  lr: 4e-4", "  lr: -4e-4")
    (tmp_path / "my.yaml").write_text(text)
    number = text.splitlines().index("  lr: -4e-4") + 1
    with pytest.raises(UsageError, match=rf"^my.yaml:{number} optim.lr: must be > 0: it is"):
        run("check", "my.yaml")
    with pytest.raises(UsageError, match=r"^override optim.lr=0: must be > 0: it is 0$"):
        run("check", "my.yaml", "optim.lr=0")
    (tmp_path / "my.yaml").write_bytes(b"\xff\xfea")
    with pytest.raises(InputError, match="at byte 0"):
        run("check", "my.yaml")


def test_a_path_with_markup_or_escapes_is_shown_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("[").mkdir()
    odd = Path("[/x]\x1b.yaml")
    odd.write_bytes(shipped_recipes()["verdict"].read_bytes())
    assert run("check", str(odd))[0].startswith("ok [/x]␛.yaml: ")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    odd.write_text("a: 1\na: 2")
    with pytest.raises(UsageError) as caught:
        load_recipe(str(odd))
    console.print_error(caught.value)
    assert stream.getvalue().startswith("error: [/x]␛.yaml:2: a: duplicate key\n")
