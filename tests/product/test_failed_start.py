"""A training that cannot start leaves nothing behind: no folder, no lock, and what was there as it was."""

import io
import json
import os
import resource
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_base import save_base
from tiny_run import PRETRAIN, Call, random_text, train, write_tokens

from gpt2cli.cli.app import run

RUN = PRETRAIN["run"]
INSTRUCT = {
    **{"task": "finetune-instruct", "init": "base", "template": "chat"},
    "data": {"source": "records.json", "validation": 0.1, "test": 0.1},
    **{"optim": {"steps": 1}, "run": RUN},
}
CLASSIFY = {
    **{"task": "finetune-classify", "init": "base"},
    "data": {"source": "texts.csv"},
    **{"optim": {"steps": 1}, "run": RUN},
}
# What is wrong, as a change of a recipe that works, and the exit code.
FAILURES: dict[str, tuple[dict[str, Any], str, int]] = {
    "no text": (PRETRAIN, "data.source=nowhere.txt", 3),
    "another tokenizer": (PRETRAIN, "data.tokenizer=gpt2", 2),
    "a text shorter than the context": (PRETRAIN, "model.context=4000", 3),
    "no such key": (PRETRAIN, "optim.setps=3", 2),
    "no model to begin with": (INSTRUCT, "init=nowhere", 3),
    "no records": (INSTRUCT, "data.source=texts.csv", 3),
    "a rank beyond the matrix": (INSTRUCT, "train=lora lora.rank=4000", 2),
    "no column of that name": (CLASSIFY, "data.label=kind", 3),
    "one class": (CLASSIFY, "data.source=one.csv", 3),
    "a model that is no model": (CLASSIFY, "init=tokens", 3),
}


@pytest.fixture
def recipes(gpt2: Call) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    save_base(gpt2, Path("base"))
    records = [{"instruction": f"Say {i}", "output": str(i)} for i in range(10)]
    Path("records.json").write_text(json.dumps(records), encoding="utf-8")
    rows = [f"{['ham', 'spam'][i % 2]},text {i}" for i in range(20)]
    Path("texts.csv").write_text("\n".join(["label,text", *rows]), encoding="utf-8")
    Path("one.csv").write_text("\n".join(["label,text", *rows[::2]]), encoding="utf-8")
    for recipe in (PRETRAIN, INSTRUCT, CLASSIFY):
        Path(f"{recipe['task']}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def tree(folder: Path) -> dict[str, bytes]:
    """Everything in a folder and what it holds; the folder itself too."""
    found = [folder, *folder.rglob("*")] if folder.exists() else []
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in found}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_cannot_start_leaves_nothing(failure: str, gpt2: Call, recipes: None) -> None:
    recipe, change, code = FAILURES[failure]
    theirs = Path("theirs/run")
    theirs.mkdir(parents=True)
    (theirs / "notes.txt").write_text("mine", encoding="utf-8")
    before = tree(Path("theirs"))
    for name in ("new", "a/deep/one", "theirs/run", "theirs/other/run"):
        done = gpt2(recipe["task"], f"{recipe['task']}.yaml", "--name", name, *change.split())
        assert done.code == code, done.err
    assert not Path("runs").exists() and not Path("a").exists()
    assert tree(Path("theirs")) == before


def test_a_resume_that_cannot_start_changes_nothing(gpt2: Call, recipes: None) -> None:
    run = train(gpt2, PRETRAIN, "run")
    before = tree(run)
    for change in ("model.context=4", "data.source=nowhere.txt", "data.tokenizer=gpt2"):
        done = gpt2("pretrain", "run.yaml", "--resume", "optim.steps=12", change)
        assert done.code in (2, 3), done.err
        assert tree(run) == before


@pytest.mark.parametrize("last", [None, "recipe.yaml"])
def test_a_disk_that_is_full_at_the_start(last: str | None, gpt2: Call, recipes: None) -> None:
    """No file may be larger than the last one that is written."""
    whole = train(gpt2, PRETRAIN, "whole").rename("whole")
    room = (whole / last).stat().st_size if last else 10
    longer = ["seed=7"] * 50  # makes run.json, which tells of them, longer than recipe.yaml
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with redirect_stderr(io.StringIO()) as said:  # pytest's own is a file
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            code = run(["pretrain", "pretrain.yaml", *longer])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 4 and "larger than this system allows" in said.getvalue()
    assert os.listdir("runs") == []
