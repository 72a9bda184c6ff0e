"""What a later version wrote is refused with the upgrade to make, and stays as it is, to the byte."""

import json
from pathlib import Path

import pytest
from tiny_base import save_base
from tiny_run import PRETRAIN, Call, random_text, train, write_tokens

UPGRADE = "fix: pip install --upgrade gpt2cli"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and its content."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.fixture
def run(gpt2: Call) -> Path:
    """Ten steps, saved after the fifth and the tenth."""
    write_tokens(gpt2, random_text(260, seed=1))
    return train(gpt2, {**PRETRAIN, "checkpoint": {"every": 5, "keep": 9}}, "run")


@pytest.mark.parametrize("newer", [2, 1.5, "2.0", "v3"])
def test_a_checkpoint_is_not_taken_for_a_damaged_one(newer: object, gpt2: Call, run: Path) -> None:
    edit(run / "checkpoints/step-000010/manifest.json", format=newer)
    (run / "checkpoints/step-000005/model.safetensors").write_bytes(b"damaged")
    before = tree(run)
    for command in (
        ("pretrain", "run.yaml", "--resume", "optim.steps=12"),
        ("pretrain", "run.yaml", "--resume", "--from", "step-5"),
        ("generate", "-m", "run", "a"),
        ("inspect", "run"),
        ("evaluate", "run", "--on", "tokens"),
        ("convert", "run", "--out", "converted"),
        ("pretrain", "run.yaml", "init=newest", "--name", "further"),
    ):
        done = gpt2(*command)
        assert done.code == 3 and UPGRADE in done.err, done.err
        assert tree(run) == before
    assert not Path("converted").exists() and not Path("runs/further").exists()


def test_damage_is_put_aside_as_before(gpt2: Call, run: Path) -> None:
    edit(run / "checkpoints/step-000010/manifest.json", format=None)
    done = gpt2("pretrain", "run.yaml", "--resume", "optim.steps=12")
    assert done.code == 0 and "going back to step-000005" in done.err
    assert (run / "checkpoints/damaged-step-000010").is_dir()


RECORDS = {
    "a list": ("[]", False),
    "cut short": ('{"format": 1, "sess', False),
    "another number": ('{"format": 2, "sessions": {"a": 1}}', True),
    "no number": ('{"sessions": []}', False),
    "no sessions": ('{"format": 1}', False),
    "sessions of numbers": ('{"format": 1, "sessions": [3]}', False),
    "overrides in one word": ('{"format": 1, "sessions": [{"overrides": "optim.lr=1"}]}', False),
}


@pytest.mark.parametrize("shape", RECORDS)
def test_the_record_of_a_run(shape: str, gpt2: Call, run: Path) -> None:
    text, is_newer = RECORDS[shape]
    (run / "run.json").write_text(text, encoding="utf-8")
    before = tree(run)
    done = gpt2("pretrain", "run.yaml", "--resume", "optim.steps=12")
    assert (done.code, UPGRADE in done.err) == (3, is_newer), done.err
    assert tree(run) == before
    assert gpt2("inspect", "run").code == 0
    if not is_newer:  # the fix is a line for the shell, and then a resume with the run's own recipe
        (run / "run.json").write_text('{"format": 1, "sessions": []}', encoding="utf-8")
        assert '{"format": 1, "sessions": []}' in done.err
        assert gpt2("pretrain", run / "recipe.yaml", "--resume", "optim.steps=12").code == 0


def test_a_record_without_a_checkpoint_is_not_overwritten(gpt2: Call) -> None:
    write_tokens(gpt2, random_text(260, seed=1))
    record = Path("runs/run/run.json")
    record.parent.mkdir(parents=True)
    record.write_text('{"format": 2}', encoding="utf-8")
    Path("run.yaml").write_text(json.dumps(PRETRAIN), encoding="utf-8")
    done = gpt2("pretrain", "run.yaml")
    assert done.code == 3 and UPGRADE in done.err and record.read_text(encoding="utf-8") == '{"format": 2}'


def test_a_prepared_folder_not_even_with_force(gpt2: Call, run: Path) -> None:
    edit(Path("tokens/manifest.json"), version=3)
    before = tree(Path("tokens"))
    prepare = ("prepare", "text.txt", "--out", "tokens", "--tokenizer", "chars", "--block", "8")
    for command in (
        prepare,
        (*prepare, "--force"),
        ("pretrain", "run.yaml", "--name", "new"),
        ("evaluate", "run", "--on", "tokens"),
    ):
        done = gpt2(*command)
        assert done.code == 3 and UPGRADE in done.err, done.err
        assert tree(Path("tokens")) == before
    assert not Path("runs/new").exists()


def test_the_record_of_an_adapter(gpt2: Call) -> None:
    save_base(gpt2, Path("base"))
    write_tokens(gpt2, random_text(400, seed=1, letters="abc"))
    recipe = {**PRETRAIN, "init": "base", "train": "lora", "model": {"context": 8}}
    recipe["data"] = {"source": "text.txt"}
    run = train(gpt2, recipe, "adapter", "optim.steps=2", "optim.warmup_steps=0")
    checkpoint = run / "last"
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    edit(checkpoint / "base.json", format=2)
    manifest["files"].pop("base.json")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    done = gpt2("generate", "-m", "adapter", "a")
    assert done.code == 3 and UPGRADE in done.err
