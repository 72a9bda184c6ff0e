"""A run against itself: interrupted and resumed, evaluated more often, cut into other micro batches."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import scratch_task, tiny

from gpt2cli import files, paths
from gpt2cli.data.prepare_settings import require_same_settings
from gpt2cli.errors import DivergedError, InputError, UsageError
from gpt2cli.training import events as ev
from gpt2cli.training.loop import train
from gpt2cli.training.run_dir import (
    RunDir,
    add_sample,
    newest_valid_checkpoint,
    save_checkpoint,
    truncate_records,
)
from gpt2cli.training.setup import TrainingSetup, set_up_training
from gpt2cli.training.task import Batch, TrainingTask


def play(session: TrainingSetup, run: RunDir, stop: Callable[[], int] = lambda: 0) -> list[ev.Event]:
    run.folder.mkdir(exist_ok=True)
    return list(train(session, save=lambda: save_checkpoint(run, session), stop=stop))


def losses(events: list[ev.Event]) -> dict[int, float]:
    return {event.step: event.loss for event in events if isinstance(event, ev.StepDone)}


def weights(session: TrainingSetup) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in session.model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def stop_after(n: int) -> Callable[[], int]:
    """A stop function that asks for an end the n-th time it is polled."""
    calls = iter(range(10**9))
    return lambda: 15 if next(calls) >= n else 0


@pytest.mark.parametrize("polls", [1, 13, 37])
def test_an_interrupted_run_ends_in_the_same_losses_and_weights(polls: int, tmp_path: Path) -> None:
    recipe, data = tiny(tmp_path)
    whole = set_up_training(scratch_task(recipe, data), recipe, None)
    wanted = losses(play(whole, RunDir(tmp_path / "whole")))

    run = RunDir(tmp_path / "cut")
    first = play(set_up_training(scratch_task(recipe, data), recipe, None), run, stop_after(polls))
    assert isinstance(first[-1], ev.Stopped) and (first[-1].reason, first[-1].signal) == ("signal", 15)
    checkpoint, problems = newest_valid_checkpoint(run)
    assert checkpoint is not None and not problems
    resumed = set_up_training(scratch_task(recipe, data), recipe, checkpoint)
    second = play(resumed, run)
    assert {**losses(first), **losses(second)} == wanted
    assert not losses(first).keys() & losses(second).keys()
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("forgotten", ["optimizer", "position"])
def test_the_comparison_notices_what_a_resume_forgets(forgotten: str, tmp_path: Path) -> None:
    recipe, data = tiny(tmp_path)
    whole = set_up_training(scratch_task(recipe, data), recipe, None)
    play(whole, RunDir(tmp_path / "whole"))
    run = RunDir(tmp_path / "cut")
    play(set_up_training(scratch_task(recipe, data), recipe, None), run, stop_after(20))
    resumed = set_up_training(scratch_task(recipe, data), recipe, newest_valid_checkpoint(run)[0])
    if forgotten == "optimizer":
        resumed.optimizer_step.optimizer.state.clear()
    else:
        shifted = recipe.model_copy(update={"seed": recipe.seed + 1})
        resumed = replace(resumed, task=scratch_task(shifted, data))
    play(resumed, run)
    assert not same(weights(resumed), weights(whole))


def test_evaluating_more_often_changes_nothing(tmp_path: Path) -> None:
    results = []
    for every in (7, 40):
        recipe, data = tiny(tmp_path, f"eval.every={every}", "checkpoint.every=0", "optim.steps=15")
        session = set_up_training(scratch_task(recipe, data), recipe, None)
        events = play(session, RunDir(tmp_path / f"every-{every}"))
        results.append((losses(events), weights(session)))
    assert results[0][0] == results[1][0] and same(results[0][1], results[1][1])


def test_accumulation_keeps_the_batch(tmp_path: Path) -> None:
    """Six sequences in one, two or six micro batches: the same step but for rounding."""
    results = []
    for micro, accumulation in ((6, 1), (3, 2), (1, 6)):
        recipe, data = tiny(
            tmp_path,
            *(f"batch.micro_batch={micro}", f"batch.accumulation={accumulation}"),
            *("model.dropout=0.0", "run.precision=fp32", "optim.steps=5"),
        )
        session = set_up_training(scratch_task(recipe, data), recipe, None)
        results.append(losses(play(session, RunDir(tmp_path / f"micro-{micro}"))))
    for other in results[1:]:
        assert other == pytest.approx(results[0], abs=2e-5)


class Poisoned:
    """A task whose loss is not finite (or far too high) at chosen steps."""

    def __init__(self, task: TrainingTask, factor: dict[int, float]) -> None:
        self.task, self.factor, self.step = task, factor, 0

    def batch(self, step: int, micro: int) -> Batch:
        self.step = step
        return self.task.batch(step, micro)

    def loss_sum(self, *arguments: object) -> torch.Tensor:
        return self.task.loss_sum(*arguments) * self.factor.get(self.step, 1.0)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self.task, name)


def test_a_poisoned_batch_is_skipped_and_counted(tmp_path: Path) -> None:
    recipe, data = tiny(tmp_path, "optim.steps=12")
    session = set_up_training(scratch_task(recipe, data), recipe, None)
    session = replace(session, task=Poisoned(session.task, {4: math.nan, 5: math.inf}))
    events = play(session, RunDir(tmp_path / "run"))
    skipped = [event for event in events if isinstance(event, ev.StepSkipped)]
    assert [(event.step, event.n_skipped) for event in skipped] == [(5, 1), (6, 2)]
    assert sorted(losses(events)) == [1, 2, 3, 4, *range(7, 13)]
    assert all(parameter.isfinite().all() for parameter in session.model.parameters())
    assert session.state.updates == 10


def test_too_many_of_them_end_the_run_and_save_nothing_more(tmp_path: Path) -> None:
    recipe, data = tiny(tmp_path, "run.max_skipped_steps=3", "checkpoint.every=4")
    session = set_up_training(scratch_task(recipe, data), recipe, None)
    session = replace(session, task=Poisoned(session.task, dict.fromkeys(range(4, 40), math.nan)))
    run = RunDir(tmp_path / "run")
    with pytest.raises(DivergedError, match="diverged at step 8: 4 steps in a row") as caught:
        play(session, run)
    assert "learning rate" in caught.value.fix
    assert [path.name for path in paths.checkpoints(run.folder)] == ["step-000004"]


def test_a_spike_is_said_once_a_climb(tmp_path: Path) -> None:
    recipe, data = tiny(tmp_path, "optim.steps=24")
    session = set_up_training(scratch_task(recipe, data), recipe, None)
    session = replace(session, task=Poisoned(session.task, {12: 20.0, 13: 20.0, 18: 20.0}))
    events = play(session, RunDir(tmp_path / "run"))
    spikes = [event for event in events if isinstance(event, ev.SpikeSeen)]
    assert [spike.step for spike in spikes] == [13, 19]
    assert spikes[0].loss > 5 * spikes[0].typical


def test_near_a_loss_of_zero_many_times_the_median_is_no_spike(tmp_path: Path) -> None:
    recipe, data = tiny(tmp_path, "optim.steps=16", "optim.lr=1e-12")
    session = set_up_training(scratch_task(recipe, data), recipe, None)
    small = dict.fromkeys(range(16), 0.001) | {12: 0.1}
    events = play(replace(session, task=Poisoned(session.task, small)), RunDir(tmp_path / "run"))
    seen = losses(events)
    assert seen[13] > 50 * seen[12]
    assert not [event for event in events if isinstance(event, ev.SpikeSeen)]


def test_patience_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    recipe, data = tiny(
        tmp_path,
        *("eval.every=2", "eval.patience=2", "optim.lr=1e-12", "optim.warmup_steps=0", "checkpoint.every=50"),
    )
    session = set_up_training(scratch_task(recipe, data), recipe, None)
    session.state.best_value = 0.0
    run = RunDir(tmp_path / "run")
    events = play(session, run)
    assert isinstance(events[-1], ev.Stopped) and (events[-1].step, events[-1].reason) == (2, "patience")
    checkpoint, _ = newest_valid_checkpoint(run)
    assert checkpoint is not None and checkpoint.name == "step-000002", "the end is saved"


def test_a_signal_in_an_evaluation_loses_neither_the_evaluation_nor_the_best(tmp_path: Path) -> None:
    recipe, data = tiny(tmp_path, "optim.steps=10", "checkpoint.every=0")
    whole = RunDir(tmp_path / "whole")
    wanted = [
        event
        for event in play(set_up_training(scratch_task(recipe, data), recipe, None), whole)
        if isinstance(event, ev.EvalDone)
    ]

    session, run = set_up_training(scratch_task(recipe, data), recipe, None), RunDir(tmp_path / "cut")
    asked = []

    def stop() -> int:
        """Asks for an end when the last step's evaluation is under way."""
        asked.append(session.state.step)
        return 15 if asked.count(10) >= 2 else 0

    first = play(session, run, stop)
    assert isinstance(first[-1], ev.Stopped) and first[-1].signal == 15
    assert not any(isinstance(event, ev.EvalDone) and event.step == 10 for event in first)
    checkpoint, _ = newest_valid_checkpoint(run)
    resumed = set_up_training(scratch_task(recipe, data), recipe, checkpoint)
    second = [event for event in play(resumed, run) if isinstance(event, ev.EvalDone)]
    assert [(e.step, e.loss) for e in second] == [(wanted[-1].step, wanted[-1].loss)]
    assert (run.folder / "best").resolve().name == (whole.folder / "best").resolve().name == "step-000010"
    again = set_up_training(scratch_task(recipe, data), recipe, newest_valid_checkpoint(run)[0])
    assert again.state.evaluated == 10


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    recipe, data = tiny(tmp_path, "optim.steps=6")
    run = RunDir(tmp_path / "run")
    session = set_up_training(scratch_task(recipe, data), recipe, None)
    run.folder.mkdir()
    with pytest.raises(DivergedError, match="weights at step 6"):
        for event in train(session, save=lambda: save_checkpoint(run, session), stop=lambda: 0):
            if isinstance(event, ev.StepDone) and event.step == 6:
                next(session.model.parameters()).data[0, 0] = math.inf
    assert [path.name for path in paths.checkpoints(run.folder)] == ["step-000003"]


def test_a_folder_prepared_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    _, data = tiny(tmp_path)
    with pytest.raises(UsageError, match=r"data.tokenizer is gpt2, .* chars"):
        require_same_settings(data.folder, data.manifest, tokenizer="gpt2")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("batch.micro_batch=2", r"batch.micro_batch \* batch.accumulation: 6 -> 4"),
        ("batch.accumulation=1", r"batch.micro_batch \* batch.accumulation: 6 -> 3"),
        ("seed=8", "seed: 7 -> 8"),
        ("model.context=20", "model.context: 24 -> 20"),
        ("model.n_layer=1", "model.n_layer: 2 -> 1"),
    ],
)
def test_a_resume_of_another_run_is_refused_with_the_differences(
    change: str, said: str, tmp_path: Path
) -> None:
    recipe, data = tiny(tmp_path, "optim.steps=3")
    run = RunDir(tmp_path / "run")
    play(set_up_training(scratch_task(recipe, data), recipe, None), run)
    other, _ = tiny(tmp_path, "optim.steps=3", change)
    with pytest.raises(InputError, match=said):
        set_up_training(scratch_task(other, data), other, newest_valid_checkpoint(run)[0])


def test_a_damaged_newest_checkpoint_falls_back_one(tmp_path: Path) -> None:
    recipe, data = tiny(tmp_path, "optim.steps=9")
    run = RunDir(tmp_path / "run")
    play(set_up_training(scratch_task(recipe, data), recipe, None), run)
    before, newest = paths.checkpoints(run.folder)[-2:]
    for name in ("model.safetensors", "train_state.safetensors", "config.json", "manifest.json"):
        path = newest / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        found, problems = newest_valid_checkpoint(run)
        assert found == before and newest.name in problems[0].what
        assert paths.checkpoints(run.folder) == [before], "the damaged one no longer counts"
        for pointer in ("best", "last"):
            assert (run.folder / pointer).resolve() == before.resolve()
        aside = newest.with_name(f"damaged-{newest.name}")
        (aside / name).write_bytes(whole)
        aside.rename(newest)
    (newest / "manifest.json").unlink()
    (before / "manifest.json").unlink()
    with pytest.raises(InputError, match="its 2 checkpoints"):
        newest_valid_checkpoint(run)


def test_pruning_keeps_the_newest_the_best_and_the_last(tmp_path: Path) -> None:
    recipe, data = tiny(
        tmp_path, "optim.steps=12", "checkpoint.every=1", "eval.every=100", "checkpoint.keep=2"
    )
    run = RunDir(tmp_path / "run")
    session = set_up_training(scratch_task(recipe, data), recipe, None)
    run.folder.mkdir()
    for event in train(session, save=lambda: save_checkpoint(run, session), stop=lambda: 0):
        if isinstance(event, ev.StepDone) and event.step == 3:
            session.state.evaluated, session.state.value = 3, 0.0
    names = [path.name for path in paths.checkpoints(run.folder)]
    assert names == ["step-000003", "step-000011", "step-000012"]
    assert (run.folder / "best").resolve().name == "step-000003"
    assert (run.folder / "last").resolve().name == "step-000012"
    assert files.sweep(run.checkpoints) == []


def test_records_are_cut_where_the_checkpoint_was_saved_whatever_a_sample_says(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    texts = {0: "one\n--- step forward\n", 5: "two\n\n", 10: "three"}
    for step, text in texts.items():
        add_sample(run, step, text)
    whole = run.samples.read_text()
    truncate_records(run, 5)
    assert run.samples.read_text() == whole[: whole.index("--- step 10 ---")]
    truncate_records(run, -1)
    assert run.samples.read_text() == ""
