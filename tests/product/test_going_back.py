"""`--resume --from CHECKPOINT`, runs that diverged, and what may change from session to session."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
import yaml
from tiny_run import PRETRAIN, Call, column, events, train, write_tokens

SAVING = {"every": 1, "keep": 99}
RUN = {
    **PRETRAIN,
    "checkpoint": SAVING,
    "optim": {"steps": 8, "lr": 1e-2},
    "eval": {**PRETRAIN["eval"], "every": 2},
}


@pytest.fixture
def text(gpt2: Call) -> None:
    write_tokens(gpt2, "abcdefgh" * 40)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def fix_of(err: str) -> list[str]:
    """The command of the last fix, as a shell would take it apart."""
    command = re.findall(r"gpt2 (pretrain .*)", err.replace("\n       ", " "))[-1]
    return shlex.split(command)


@pytest.mark.parametrize("name", ["step-3", "step-000003"])
def test_a_named_checkpoint_is_where_the_run_goes_on(name: str, text: None, gpt2: Call) -> None:
    run = train(gpt2, RUN, "run")
    before = column(run, "loss")
    train(gpt2, RUN, "run", "--resume", "--from", name)
    assert column(run, "loss") == before  # the same steps again
    aside = [found for found in checkpoints(run) if found.startswith("abandoned-")]
    assert aside == [f"abandoned-step-00000{n}" for n in range(4, 9)]
    assert (run / "last").resolve().name == "step-000008"


def test_best_goes_back_with_its_own_progress(text: None, gpt2: Call) -> None:
    """A rate that wrecks the model: the best step is early, and the run goes on from there."""
    run = train(gpt2, RUN, "run")
    train(gpt2, RUN, "run", "--resume", "optim.steps=14", "optim.lr=3.0", "optim.min_lr=3.0")
    best = (run / "best").resolve().name
    assert int(best[5:]) <= 8
    train(
        gpt2, RUN, "run", "--resume", "--from", "best", "optim.steps=14", "optim.lr=1e-3", "optim.min_lr=0.0"
    )
    assert [event["step"] for event in events(run, "StepDone")] == list(range(1, 15))
    assert column(run, "loss")[-1] < 4 and (run / "best").is_dir()


def test_where_the_best_of_then_is_pruned_the_next_evaluation_is_it(text: None, gpt2: Call) -> None:
    few = {**RUN, "checkpoint": {"every": 1, "keep": 4}, "optim": {"steps": 8, "lr": 1e-3}}
    run = train(gpt2, few, "run")
    train(gpt2, few, "run", "--resume", "--from", "step-5")
    assert (run / "best").is_dir() and (run / "best").resolve().name in checkpoints(run)


def diverged(gpt2: Call, monkeypatch: pytest.MonkeyPatch, *more: str, after: int) -> str:
    """Activations that become NaN, as with fp16 or a rate too high; returns what was said."""
    import torch

    original, seen = torch.nn.functional.layer_norm, 0

    def layer_norm(*arguments: object, **options: object) -> torch.Tensor:
        nonlocal seen
        seen += torch.is_grad_enabled()
        found = original(*arguments, **options)
        return found * math.nan if seen > after else found

    Path("run.yaml").write_text(yaml.safe_dump(RUN), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "layer_norm", layer_norm)
        outcome = gpt2("pretrain", "run.yaml", "run.max_skipped_steps=2", *more)
    assert outcome.code == 6 and "diverged" in outcome.err
    return outcome.err


STEP = 2 * 5  # two micro-batches, five LayerNorms each


@pytest.mark.parametrize("after", [4 * STEP, 5 * STEP], ids=["seen by a step", "seen by an evaluation"])
def test_the_fix_of_a_divergence_works_and_nothing_goes_on_by_itself(
    after: int, text: None, gpt2: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = diverged(gpt2, monkeypatch, "optim.min_lr=0.009", after=after)
    run = Path("runs/run")
    saved = checkpoints(run)
    plain = gpt2("pretrain", "run.yaml", "--resume")
    assert plain.code == 2 and "diverged" in plain.err and checkpoints(run) == saved
    fix = fix_of(said)
    assert fix[2:5] == ["--resume", "--from", "best"] and fix[5] == "optim.lr=0.0033"
    done = gpt2(*fix)
    assert done.code == 0, done.err
    assert column(run, "loss") and all(map(math.isfinite, column(run, "loss")))
    assert gpt2("pretrain", "run.yaml", "--resume").code == 0  # it is healed


def test_before_anything_is_saved_the_fix_begins_again(
    text: None, gpt2: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = diverged(gpt2, monkeypatch, "checkpoint.every=0", "eval.every=100", after=0)
    fix = fix_of(said)
    assert "--resume" not in fix
    assert gpt2(*fix).code == 0


REFUSED = {
    "no --resume": ([], ["--from", "best"], "--from best --resume"),
    "an unknown name": (["--resume"], ["--from", "first"], "--from best"),
    "a step that was not saved": (["--resume"], ["--from", "step-99"], "step-000008"),
    "another path": (["--resume"], ["--from", "../other"], "--from best"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_names_there_are(case: str, text: None, gpt2: Call) -> None:
    run = train(gpt2, RUN, "run")
    resume, asked, fix = REFUSED[case]
    before = checkpoints(run)
    outcome = gpt2("pretrain", "run.yaml", *resume, *asked)
    assert outcome.code == 2 and "--from" in outcome.err and fix in outcome.err
    assert checkpoints(run) == before


def test_a_step_of_six_may_be_cut_another_way(text: None, gpt2: Call) -> None:
    constant = ("optim.schedule=constant",)
    run = train(gpt2, RUN, "run", "optim.steps=4", *constant)
    other = {**RUN, "batch": {"micro_batch": 1, "accumulation": 6}}
    train(gpt2, other, "run", "--resume", "optim.steps=8")
    whole = train(gpt2, RUN, "whole", *constant)
    assert column(run, "loss") == pytest.approx(column(whole, "loss"), abs=1e-5)
    Path("run.yaml").write_text(yaml.safe_dump({**RUN, "batch": {"micro_batch": 2, "accumulation": 2}}))
    refused = gpt2("pretrain", "run.yaml", "--resume", "optim.steps=9")
    assert refused.code == 3 and "batch.micro_batch * batch.accumulation: 6 -> 4" in refused.err


def test_the_printed_validation_loss_does_not_depend_on_the_micro_batch(text: None, gpt2: Call) -> None:
    shown = []
    for micro, accumulation in ((4, 1), (2, 2), (1, 4)):
        recipe = {**RUN, "batch": {"micro_batch": micro, "accumulation": accumulation}}
        Path("r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        said = gpt2("pretrain", "r.yaml", "--name", f"by-{micro}").err
        shown.append(re.findall(r"val loss ([\d.]+) .*over (\d+) tokens", said))
    assert len(shown[0]) == 5 and shown[0] == shown[1] == shown[2]


def test_extending_a_run_says_what_the_rate_does(text: None, gpt2: Call) -> None:
    train(gpt2, RUN, "run", "optim.steps=4")
    said = gpt2("pretrain", "run.yaml", "--resume", "optim.steps=8", "--name", "run").err
    # By hand: half of 1 + cos(4/7 of 180 degrees) of 0.01; the recipe before had ended at 0.
    assert "the learning rate goes on at 3.9e-03; with the recipe before it would be 0.0e+00" in said


def test_a_finished_run_says_how_to_extend_it(text: None, gpt2: Call) -> None:
    train(gpt2, RUN, "run")
    assert "optim.steps=16" in gpt2("pretrain", "run.yaml", "--resume").err


def test_a_time_limit_saves_and_ends_in_peace(
    text: None, gpt2: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock moves by a second at each look."""
    import time

    clock = iter(range(1, 10**6))
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: float(next(clock)))
        run = train(gpt2, RUN, "run", "run.max_minutes=0.05")
    (stopped,) = events(run, "Stopped")
    assert stopped["reason"] == "time" and 0 < stopped["step"] < 8
    assert json.loads((run / "last" / "train_state.json").read_text())["progress"]["step"] == stopped["step"]
