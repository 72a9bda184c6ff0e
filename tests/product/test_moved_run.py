"""A run that is resumed from another folder, or after a move, finds the text of its recipe."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tiny_base import save_base
from tiny_run import PRETRAIN, Call, random_text

TEXT = {**PRETRAIN, "data": {"source": "text.txt", "tokenizer": "chars", "validation": 0.2}}


@pytest.fixture
def project(gpt2: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a text, and a run of ten steps over it; the test begins in another folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("text.txt").write_text(random_text(400, seed=1), encoding="utf-8")
    Path("run.yaml").write_text(yaml.safe_dump(TEXT), encoding="utf-8")
    assert gpt2("pretrain", "run.yaml").code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return folder


def test_from_another_folder(gpt2: Call, project: Path) -> None:
    Path("text.txt").write_text("another text, of the same name", encoding="utf-8")
    for run, steps in ((project / "runs/run", 12), (Path("run"), 14)):
        if run == Path("run"):
            shutil.move(project / "runs/run", run)
        done = gpt2("pretrain", run / "recipe.yaml", "--resume", f"optim.steps={steps}")
        assert done.code == 0, done.err
        assert (run / f"checkpoints/step-{steps:06d}").is_dir()


def test_after_the_project_has_moved(gpt2: Call, project: Path) -> None:
    moved = project.rename(project.with_name("moved"))
    done = gpt2("pretrain", moved / "run.yaml", "--name", moved / "runs/run", "--resume", "optim.steps=12")
    assert done.code == 0, done.err


def test_a_text_that_is_gone_is_named_by_the_command_that_is_printed(gpt2: Call, project: Path) -> None:
    run = project / "runs/run"
    (project / "text.txt").rename("a text.txt")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = gpt2("pretrain", run / "recipe.yaml", "--resume", "optim.steps=12")
    fix = f"fix: gpt2 pretrain {run}/recipe.yaml --resume data.source=/new/path"
    assert done.code == 3 and fix in done.err, done.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    words = fix.removeprefix("fix: gpt2 ").split()[:-1]
    assert gpt2(*words, "optim.steps=12", "data.source=a text.txt").code == 0
    recorded = json.loads((run / "run.json").read_text(encoding="utf-8"))["sessions"][-1]["overrides"]
    assert f'data.source="{Path("a text.txt").absolute()}"' in recorded
    (project / "a text.txt").write_text("not this one", encoding="utf-8")
    assert gpt2(*words, "optim.steps=14").code == 0


def test_a_base_of_the_project_is_found(
    gpt2: Call, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(project)
    save_base(gpt2, Path("base"))
    recipe = {**TEXT, "init": "base", "train": "lora", "model": {"context": 8}}
    recipe["data"] = {"source": "text.txt", "validation": 0.2}
    Path("lora.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert gpt2("pretrain", "lora.yaml").code == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume = ("pretrain", project / "runs/lora/recipe.yaml", "--resume", "optim.steps=12")
    done = gpt2(*resume)
    assert done.code == 0, done.err
    (project / "base").rename("base-2")
    done = gpt2(*resume, "optim.steps=14")
    assert done.code == 3 and "--resume init=/new/path" in done.err, done.err
