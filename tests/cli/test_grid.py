"""`gpt2 grid` as typed: its plan, its table, a run that diverges, and a kill in the middle."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import command
from tiny_run import PRETRAIN, Call, random_text, write_tokens

from gpt2cli.training.grid import split_values

RECIPE = {**PRETRAIN, "eval": {**PRETRAIN["eval"], "every": 2}, "checkpoint": {"every": 1, "keep": 2}}
AXES = ("model.positions=learned,rotary", "optim.lr=1e-2,3e-2", "model.dropout=0.1")


@pytest.fixture
def recipe(gpt2: Call) -> Path:
    write_tokens(gpt2, random_text(260, seed=8))
    path = Path("tiny.yaml")
    path.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return path


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for line in lines if (record := json.loads(line))["event"] == kind]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-3", ["1e-3"]),
        ("learned,rotary", ["learned", "rotary"]),
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ('"a, b",c', ['"a, b"', "c"]),
        ("{a: [1,2], b: 3},x", ["{a: [1,2], b: 3}", "x"]),
        ("", [""]),
        ("1e-3, 2e-3", ["1e-3", "2e-3"]),
        ("it's,that's", ["it's", "that's"]),
        ('["a,b", \'c\'],["d"]', ["[\"a,b\", 'c']", '["d"]']),
    ],
)
def test_a_comma_separates_values_outside_of_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_a_dry_run_lists_each_combination_with_each_seed(recipe: Path, gpt2: Call) -> None:
    plan = gpt2("grid", recipe, *AXES, "--seeds", "2", "--dry-run")
    assert plan.code == 0, plan.err
    lines = plan.out.splitlines()
    assert len(lines) == 2 * 2 * 2 and all(line.startswith("new") for line in lines)
    first = "runs/tiny-grid/positions-learned_lr-1e-2_seed-7"
    assert lines[0].split()[1:] == [
        first, "model.dropout=0.1", "model.positions=learned", "optim.lr=1e-2", "seed=7"
    ]  # fmt: skip
    assert len({line.split()[1] for line in lines}) == 8
    assert not Path("runs").exists()


def test_keys_that_end_alike_are_written_out(recipe: Path, gpt2: Call) -> None:
    plan = gpt2("grid", recipe, "eval.every=1,2", "checkpoint.every=1,2", "--seeds", "1", "--dry-run")
    cells = [line.split()[1] for line in plan.out.splitlines()]
    assert cells[1] == "runs/tiny-grid/eval.every-1_checkpoint.every-2_seed-7"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=1,2"], "--seeds 2 seed=1"),
        (["optim.lr=1e-2,0.01"], "the same run"),
        (["optim.lr=1e-2,fast"], "optim.lr=fast"),
        (["optim.rate=1,2"], "optim.rate"),
        (["optim.lr=1e-3,2e-3", "optim.lr=3e-3"], "optim.lr=1e-3,2e-3,3e-3"),
        (["optim.lr=3e-3", "optim.lr=1e-3,2e-3"], "optim.lr=3e-3,1e-3,2e-3"),
        (["optim.lr=1e-3,2e-3", "--report", "."], "--report grid.md"),
        (["optim.lr=1e-3", "2e-3", "--seeds", "1"], "fix: for example optim.lr=3e-4"),
        (["optim.lr", "--dry-run"], "fix: for example optim.lr=3e-4"),
    ],
)
def test_what_is_no_grid_is_refused_before_any_run(
    recipe: Path, gpt2: Call, words: list[str], said: str
) -> None:
    refused = gpt2("grid", recipe, *words)
    assert refused.code == 2 and said in refused.err
    assert not Path("runs").exists()


def finished(folder: Path, losses: Sequence[float], seconds: float, *, diverged: bool = False) -> None:
    """A run as its files tell it: an evaluation before the first step, and one after each."""
    folder.mkdir(parents=True)
    record: dict[str, Any] = {"format": 1, "sessions": [{"overrides": []}]}
    if diverged:
        record["sessions"][0]["diverged_at"] = len(losses)
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    lines: list[dict[str, Any]] = []
    for step, loss in enumerate(losses):
        if step:
            lines.append({"event": "StepDone", "step": step, "n_tokens": 100, "seconds": seconds})
        lines.append({"event": "EvalDone", "step": step, "loss": loss})
    if not diverged:
        lines.append({"event": "Stopped", "step": len(losses) - 1, "reason": "finished"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def test_the_table_of_finished_runs_is_the_one_computed_by_hand(recipe: Path, gpt2: Call) -> None:
    base = Path("runs/tiny-grid")
    for seed, (slow, fast) in {7: (2.0, 1.5), 8: (2.2, 1.8), 9: (2.4, 1.9)}.items():
        finished(base / f"lr-1e-2_seed-{seed}", [3.0, slow + 0.5, slow], 0.5)
        finished(base / f"lr-3e-2_seed-{seed}", [3.0, fast, fast + 0.1], 0.25)
        finished(base / f"lr-9e-2_seed-{seed}", [3.0, 4.0], 1.0, diverged=seed == 9)
    asked = ("optim.lr=1e-2,3e-2,9e-2", "--loss", "2.3", "--report", "out.md")
    done = gpt2("grid", recipe, *asked, "--json")
    assert done.code == 0, done.err
    low, high, broken = json.loads(done.out)["cells"]
    assert low["best_loss"] == pytest.approx({"mean": 2.2, "std": 0.2, "n": 3})
    assert high["best_loss"]["mean"] == pytest.approx((1.5 + 1.8 + 1.9) / 3)
    assert high["difference"] is None, "it is the best"
    assert low["difference"]["mean"] == pytest.approx(1.4 / 3)
    assert low["difference"]["half_width"] == pytest.approx(4.303 * 0.05774 / 3**0.5, rel=1e-3)
    assert low["difference"]["within_the_noise"] is False
    assert low["tokens_per_second"]["mean"] == 200.0
    assert low["steps_to_loss"]["mean"] == 2.0 and low["seconds_to_loss"]["mean"] == 1.0
    assert low["steps_to_loss"]["n"] == 2, "the third has not reached it"
    assert broken["n_diverged"] == 1 and broken["best_loss"]["n"] == 2
    page = Path("out.md").read_text(encoding="utf-8")
    assert "1 of 3 diverged" in page and "runs/tiny-grid/grid.png" in page and "2 of 3 reached" in page
    text = gpt2("grid", recipe, *asked[:-2])
    assert "2.2000 ± 0.2000" in text.out and "+0.4667 ± 0.1434" in text.out
    changed = gpt2("grid", recipe, *asked, "optim.steps=20")
    assert changed.code == 2 and "another recipe" in changed.err


def wait_for(process: subprocess.Popen[str], folder: Path, n_saved: int) -> None:
    """Until a run in `folder` has saved so often."""
    while not (folder / "metrics.jsonl").exists() or len(events(folder, "CheckpointSaved")) < n_saved:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.peers
@pytest.mark.timeout(900)
def test_killed_in_the_middle_and_continued_it_gives_the_same_table(recipe: Path, gpt2: Call) -> None:
    axes = ("optim.lr=1e-2,1e30", "optim.min_lr=1e-3", "optim.steps=40")  # the second rate diverges
    asked = ("grid", recipe, *axes, "--seeds", "2")
    for lr, code in (("1e-2", 0), ("1e30", 6)):
        for seed in (7, 8):
            words = (f"optim.lr={lr}", *axes[1:], f"seed={seed}")
            done = gpt2("pretrain", recipe, *words, "--name", f"runs/whole/lr-{lr}_seed-{seed}")
            assert done.code == code, done.err
    whole = gpt2(*asked, "--name", "whole", "--json")
    assert whole.code == 0 and "run 4 of 4" in whole.err, whole.err
    for done in ("lr-1e-2_seed-7", "lr-1e30_seed-7", "lr-1e30_seed-8"):
        shutil.copytree(f"runs/whole/{done}", f"runs/cut/{done}", symlinks=True)
    first = Path("runs/cut/lr-1e-2_seed-7/metrics.jsonl").read_bytes()
    run = Path("runs/cut/lr-1e-2_seed-8")

    killed = command(*asked, "--name", "cut")
    wait_for(killed, run, 3)
    killed.kill()  # alone: its run goes on
    waiting = command(*asked, "--name", "cut")
    assert waiting.stderr
    said = ""
    while "waiting: " not in said:
        said += waiting.stderr.readline()
    os.kill(int((run / ".lock").read_text()), signal.SIGKILL)  # and now the run dies too
    n_saved = len(events(run, "CheckpointSaved"))
    wait_for(waiting, run, n_saved + 2)
    waiting.send_signal(signal.SIGTERM)
    _, said = waiting.communicate()
    assert waiting.returncode == 143 and "the same command continues the grid" in said
    assert events(run, "Stopped")[-1]["reason"] == "signal"

    again = gpt2(*asked, "--name", "cut", "--json")
    assert again.code == 0, again.err
    assert "resuming after step" in again.err
    assert Path("runs/cut/lr-1e-2_seed-7/metrics.jsonl").read_bytes() == first, "it was repeated"
    assert table(again.out) == table(whole.out)
    assert [cell["n_diverged"] for cell in table(again.out)] == [0, 2]


def table(text: str) -> list[dict[str, Any]]:
    """The cells of the JSON, without how long things took."""
    keep = ("cell", "n_diverged", "best_loss", "steps_to_loss", "difference")
    return [
        {key: cell[key] for key in keep} | {"runs": [run["best_loss"] for run in cell["runs"]]}
        for cell in json.loads(text)["cells"]
    ]


def test_a_key_that_is_wrong_in_the_file_does_not_replace_its_name(recipe: Path, gpt2: Call) -> None:
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("n_layer", "n_layers"), encoding="utf-8")
    refused = gpt2("grid", recipe, "optim.lr=1e-2,3e-2", "--dry-run")
    assert refused.code == 2 and "fix: did you mean model.n_layer?" in refused.err
