"""`gpt2 runs`: what it lists, shows, draws, prunes and removes, and what it refuses to."""

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import PRETRAIN, Call, random_text, train, write_tokens

RECIPE = {
    **PRETRAIN,
    "optim": {"steps": 4, "lr": 1e-2, "warmup_steps": 0},
    "eval": {"every": 2, "tokens": "all", "sample_tokens": 0},
}


@pytest.fixture
def base(gpt2: Call) -> Path:
    write_tokens(gpt2, random_text(400, seed=1))
    return train(gpt2, RECIPE, "base")


def trained_over(gpt2: Call, name: str, **changes: Any) -> Path:
    data = {"source": "text.txt", "validation": 0.2}
    return train(
        gpt2, {**RECIPE, "init": "runs/base", "model": {"context": 8}, "data": data, **changes}, name
    )


def listed(gpt2: Call, *more: str) -> dict[str, dict[str, Any]]:
    done = gpt2("runs", "--json", *more)
    assert done.code == 0, done.err
    return {entry["name"]: entry for entry in json.loads(done.out)}


def pasted(gpt2: Call, err: str) -> Any:
    """The outcome of the fix that an error printed."""
    words = shlex.split(err.rpartition("fix: ")[2].split(", or: ")[0].split("\n")[0])
    assert words[0] == "gpt2"
    return gpt2(*words[1:], "--yes") if words[1] == "runs" else gpt2(*words[1:])


def test_a_run_is_listed_as_its_files_say(gpt2: Call, base: Path) -> None:
    entry = listed(gpt2)["base"]
    evaluations = [json.loads(line) for line in (base / "metrics.jsonl").read_text().splitlines()]
    losses = {one["step"]: one["loss"] for one in evaluations if one["event"] == "EvalDone"}
    best = min(losses, key=lambda step: losses[step])
    assert (entry["state"], entry["task"], entry["data"]) == ("finished", "pretrain", "tokens")
    assert (entry["step"], entry["steps"]) == (4, 4)
    assert (entry["best_step"], entry["best_loss"]) == (best, pytest.approx(losses[best]))
    files = [path for path in base.rglob("*") if path.is_file() and not path.is_symlink()]
    in_links = [path for path in files if {"best", "last"} & set(path.relative_to(base).parts)]
    assert entry["bytes"] == sum(path.stat().st_size for path in files if path not in in_links)
    table = gpt2("runs").out.splitlines()
    assert table[0].split()[0] == "name" and "4/4" in table[1] and "finished" in table[1]
    shown = gpt2("runs", "show", "base")
    assert "step-000004" in shown.out and "gpt2 generate --model runs/base" in shown.out


def test_each_command_that_show_proposes_works(gpt2: Call, base: Path) -> None:
    for command in json.loads(gpt2("runs", "show", "base", "--json").out)["next"]:
        words = shlex.split(command)[1:]
        more = ["a", "-n", "1"] if words[0] == "generate" else ["--dry-run"] * (words[1] == "prune")
        done = gpt2(*words, *more)
        assert done.code == 0, (command, done.err)


@pytest.mark.parametrize("train_", ["lora", "all"])
def test_what_another_run_needs_stays(gpt2: Call, base: Path, train_: str) -> None:
    trained_over(gpt2, "over", train=train_)
    refused = gpt2("runs", "rm", "base", "--yes")
    assert refused.code == 2 and "runs/over" in refused.err and base.is_dir()
    forced = gpt2("runs", "rm", "base", "--yes", "--force")
    assert forced.code == (2 if train_ == "lora" else 0)
    if train_ == "lora":
        assert pasted(gpt2, refused.err).code == 0
        assert not any(path.is_dir() for path in Path("runs").iterdir())
    assert not base.exists()


def test_a_run_that_is_written_in_is_running_and_stays(gpt2: Call, base: Path) -> None:
    with open(base / ".lock", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listed(gpt2)["base"]["state"] == "running"
        assert gpt2("runs", "rm", "base", "--yes").code == 4
        assert gpt2("runs", "prune", "base", "--yes").code == 2
    assert listed(gpt2)["base"]["state"] == "finished" and (base / "last" / "model.safetensors").exists()


def test_without_a_terminal_or_a_yes_nothing_goes(gpt2: Call, base: Path) -> None:
    for words in (["rm", "base"], ["prune"]):
        refused = gpt2("runs", *words)
        assert refused.code == 2 and refused.err.rstrip().endswith(f"gpt2 runs {' '.join(words)} --yes")
    assert list(base.glob("checkpoints/*/train_state.safetensors"))


def test_a_pruned_run_is_the_same_model_and_says_what_is_gone(gpt2: Call, base: Path) -> None:
    def score() -> list[float]:
        done = gpt2("evaluate", "base", "--on", "text.txt", "--json")
        assert done.code == 0, done.err
        return [json.loads(done.out)["loss"]]

    trained_over(gpt2, "adapters", train="lora")
    before, files = score(), list(base.glob("checkpoints/*/train_state.safetensors"))
    n_bytes = sum(path.stat().st_size for path in files)
    assert gpt2("runs", "prune", "base", "--dry-run").code == 0 and all(path.exists() for path in files)
    size = listed(gpt2)["base"]["bytes"]
    done = gpt2("runs", "prune", "base", "--yes")
    assert done.code == 0 and not any(path.exists() for path in files)
    assert 0.9 * n_bytes < size - listed(gpt2)["base"]["bytes"] <= n_bytes + 1000
    assert score() == before
    assert gpt2("generate", "-m", "adapters", "ab", "-n", "2").code == 0
    over = gpt2("pretrain", "runs/base/recipe.yaml", "--resume")
    assert over.code == 0 and "pruned" in over.err and "optim.steps=" not in over.err
    refused = gpt2("pretrain", "runs/base/recipe.yaml", "--resume", "optim.steps=6")
    assert refused.code == 3 and "optimizer state" in refused.err
    again = pasted(gpt2, refused.err)
    assert again.code == 0, again.err
    assert json.loads((Path("runs/base-2") / "metrics.jsonl").read_text().splitlines()[0])["step"] == 0
    assert "nothing to prune" in gpt2("runs", "prune", "base").err


def test_only_what_gpt2_wrote_is_shown_and_removed(gpt2: Call, base: Path) -> None:
    for name, text in (("damaged", "{"), ("newer", '{"format": 9, "sessions": []}'), ("odd", "[]")):
        shutil.copytree(base, base.with_name(name), symlinks=True)
        (base.with_name(name) / "run.json").write_text(text)
    for name, file in (("failed", ".lock"), ("foreign", "notes.txt"), ("hidden", ".x")):
        base.with_name(name).mkdir()
        (base.with_name(name) / file).touch()
    shutil.copytree(base / "last", base.with_name("theirs"))
    (base.with_name("theirs") / "manifest.json").unlink()
    states = {name: entry["state"] for name, entry in listed(gpt2).items()}
    expected = {"damaged": "damaged", "odd": "damaged", "newer": "newer version", "failed": "failed start"}
    assert states == {"base": "finished", "theirs": "ready", **expected}
    assert gpt2("runs").code == 0
    for name, code in (("foreign", 3), ("theirs", 2), ("nowhere", 3), ("failed", 0), ("damaged", 0)):
        assert gpt2("runs", "rm", name, "--yes").code == code, name
    left = {path.name for path in Path("runs").iterdir()}
    assert left == {"base", "newer", "odd", "foreign", "hidden", "theirs"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_named(gpt2: Call, base: Path) -> None:
    base.with_name("closed").mkdir(mode=0)
    assert listed(gpt2)["closed"]["state"] == "unreadable"


def test_the_steps_of_an_interrupted_run_are_those_that_it_did(gpt2: Call, base: Path) -> None:
    lines = (base / "metrics.jsonl").read_text().splitlines(keepends=True)
    upto = next(n for n, line in enumerate(lines) if json.loads(line)["step"] == 3) + 1
    (base / "metrics.jsonl").write_text("".join(lines[:upto]) + '{"event": "StepDo')  # killed while writing
    entry = listed(gpt2)["base"]
    assert (entry["state"], entry["step"]) == ("stopped", 3)
    proposed = json.loads(gpt2("runs", "show", "base", "--json").out)["next"]
    assert proposed[0] == "gpt2 pretrain runs/base/recipe.yaml --resume"


def test_runs_are_listed_without_torch(gpt2: Call, base: Path) -> None:
    for n in range(5):
        shutil.copytree(base, base.with_name(f"run-{n}"), symlinks=True)
    script = (
        "import sys; from gpt2cli.cli.app import run; code = run(['runs']);"
        "loaded = {'torch', 'numpy', 'matplotlib'} & set(sys.modules); sys.exit(code or len(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("finished")) == (0, 6), done.stderr


def test_the_losses_of_runs_are_drawn_over_steps_tokens_and_time(gpt2: Call, base: Path) -> None:
    from gpt2cli.ui.plots import read_history

    trained_over(gpt2, "other")
    for x in ("steps", "tokens", "time"):
        done = gpt2("runs", "plot", "base", "other", "--x", x, "--out", f"{x}.png")
        assert done.code == 0 and done.out == f"{x}.png\n", done.err
        assert Path(f"{x}.png").read_bytes().startswith(b"\x89PNG")
    events = [json.loads(line) for line in (base / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "StepDone"]
    last = read_history(base / "metrics.jsonl")[-1]
    assert last.n_tokens == 4 * 3 * 2 * 8  # steps, rows, micro-batches, context
    assert last.seconds == pytest.approx(sum(event["seconds"] for event in steps))
    assert gpt2("runs", "plot", "nowhere").code == 3


def test_the_cache_is_listed_and_removed_by_name(gpt2: Call) -> None:
    Path("text.txt").write_text(random_text(300, seed=2))
    train(gpt2, {**RECIPE, "data": {"source": "text.txt", "tokenizer": "chars", "validation": 0.2}}, "run")
    cached = json.loads(gpt2("runs", "--cache", "--json").out)
    (prepared,) = [one for one in cached if one["name"].startswith("prepared/")]
    assert prepared["made_of"] == "text.txt" and Path(prepared["path"]).is_dir()
    assert gpt2("runs", "rm", "prepared/../models", "--yes").code == 2
    assert gpt2("runs", "rm", prepared["name"], "--yes").code == 0 and not Path(prepared["path"]).exists()
    again = gpt2("pretrain", "runs/run/recipe.yaml", "--resume", "optim.steps=5")
    assert again.code == 0, again.err  # its text is there: prepared again
