"""The instruction task: its loss against the plain one, packing, resuming, adapters."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from loud import loud
from teaching import some_records, teaching

from gpt2cli.checkpoints.folder import read_manifest
from gpt2cli.checkpoints.template_file import TEMPLATE_FILE, read_template_name
from gpt2cli.convert.open_model import open_model
from gpt2cli.data.sft_batches import SftExample
from gpt2cli.errors import InputError, UsageError
from gpt2cli.model.lora import merge_lora
from gpt2cli.templates import TEMPLATES
from gpt2cli.training import events as ev
from gpt2cli.training.loop import train
from gpt2cli.training.run_dir import RunDir, newest_valid_checkpoint, save_checkpoint
from gpt2cli.training.setup import TrainingSetup, set_up_training
from gpt2cli.training.sft_task import SftBatch, SftTask


def play(session: TrainingSetup, run: RunDir, stop: Callable[[], int] = lambda: 0) -> list[ev.Event]:
    run.folder.mkdir(exist_ok=True)
    return list(train(session, save=lambda: save_checkpoint(run, session), stop=stop))


def losses(events: list[ev.Event]) -> dict[int, float]:
    return {event.step: event.loss for event in events if isinstance(event, ev.StepDone)}


def weights(session: TrainingSetup) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in session.model.parameters()]


def stop_after(n: int) -> Callable[[], int]:
    calls = iter(range(10**9))
    return lambda: 15 if next(calls) >= n else 0


def alone(model: torch.nn.Module, row: SftExample) -> tuple[float, int]:
    """The record's loss as a textbook has it: the row by itself, all logits, -100 outside the loss mask."""
    ids, mask = torch.from_numpy(row.ids), torch.from_numpy(row.loss_mask)
    logits = model(ids[None, :-1])[0]
    targets = torch.where(mask[1:], ids[1:], -100)
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item(), int(mask.sum())


@pytest.mark.parametrize("mask", ["true", "false"])
def test_a_batch_loses_what_its_records_lose_alone(mask: str, tmp_path: Path) -> None:
    _, task = teaching(tmp_path, f"mask_prompt={mask}", "batch.micro_batch=5")
    model = loud(task.fresh_model("sdpa"))
    padded = 0
    for number in range(3):
        batch = task.batch(number, 0)
        wanted = [alone(model, row) for group in batch.rows for row in group]
        padded += len({row.n_read for (row,) in batch.rows}) > 1
        found = task.loss_sum(model, batch, torch.float32)
        assert found.item() == pytest.approx(sum(loss for loss, _ in wanted), rel=1e-6)
        assert batch.n_targets == sum(n for _, n in wanted)
    assert padded, "lengths must differ, or nothing is shown"


@pytest.mark.parametrize("attention", ["sdpa", "formula"])
def test_packed_records_lose_what_they_lose_alone(attention: str, tmp_path: Path) -> None:
    _, task = teaching(tmp_path, "packing=true", "batch.micro_batch=2")
    model = loud(task.fresh_model(attention))
    plain = model.transformer.h[0].attn.dropout.rate
    batch = task.batch(0, 0)
    assert max(map(len, batch.rows)) > 1 and plain > 0 and not model.training
    # One record's targets at a time, so that no error of one hides behind another's.
    start = 0
    for group in batch.rows:
        for row in group:
            n = int(row.loss_mask.sum())
            one = SftBatch(
                input_ids=batch.input_ids,
                targets=batch.targets[start : start + n],
                target_positions=batch.target_positions[start : start + n],
                positions=batch.positions,
                segments=batch.segments,
                rows=(),
            )
            wanted, _ = alone(model, row)
            assert task.loss_sum(model, one, torch.float32).item() == pytest.approx(wanted, abs=1e-5 * n)
            start += n
    assert start == len(batch.targets)


def test_packing_is_what_keeps_records_apart(tmp_path: Path) -> None:
    _, task = teaching(tmp_path, "packing=true", "batch.micro_batch=2")
    model = loud(task.fresh_model("sdpa"))
    batch = task.batch(0, 0)
    open_batch = SftBatch(
        batch.input_ids, batch.targets, batch.target_positions, batch.positions, None, batch.rows
    )
    apart, open_ = (task.loss_sum(model, b, torch.float32).item() for b in (batch, open_batch))
    assert abs(apart - open_) > 1e-2


def test_gradients_are_those_of_the_textbook(tmp_path: Path) -> None:
    _, task = teaching(tmp_path, "packing=true", "batch.micro_batch=2", "model.dropout=0.0")
    found = []
    for textbook in (False, True):
        model = loud(task.fresh_model("formula"))
        batch = task.batch(0, 0)
        if textbook:
            for row in (row for group in batch.rows for row in group):
                ids, mask = torch.from_numpy(row.ids), torch.from_numpy(row.loss_mask)
                targets = torch.where(mask[1:], ids[1:], -100)
                logits = model(ids[None, :-1])[0]
                F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").backward()
        else:
            task.loss_sum(model, batch, torch.float32).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train", ["all", "lora"])
@pytest.mark.parametrize("polls", [1, 9, 17])
def test_an_interrupted_run_ends_in_the_same_losses_and_weights(
    train: str, polls: int, tmp_path: Path
) -> None:
    overrides = (f"train={train}", "lora.rank=2", "lora.dropout=0.1", "packing=true")
    recipe, task = teaching(tmp_path, *overrides)
    whole = set_up_training(task, recipe, None)
    wanted = losses(play(whole, RunDir(tmp_path / "whole")))
    assert len(wanted) == 12

    run = RunDir(tmp_path / "cut")
    first = play(set_up_training(task, recipe, None), run, stop_after(polls))
    checkpoint, problems = newest_valid_checkpoint(run)
    assert isinstance(first[-1], ev.Stopped) and first[-1].signal == 15
    assert (checkpoint is not None or polls == 1) and not problems
    resumed = set_up_training(teaching(tmp_path, *overrides)[1], recipe, checkpoint)
    second = play(resumed, run)
    assert {**losses(first), **losses(second)} == wanted
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("template=alpaca", "template: chat -> alpaca"),
        ("mask_prompt=false", "data: "),
        ("packing=true", "packing: 0 -> 1"),
        ("train=lora", "train: all -> lora"),
        ("data.test=0.3", "train records: 12 -> 10"),
    ],
)
def test_a_resume_of_another_run_is_refused_with_the_differences(
    change: str, said: str, tmp_path: Path
) -> None:
    recipe, task = teaching(tmp_path, "optim.steps=3")
    run = RunDir(tmp_path / "run")
    play(set_up_training(task, recipe, None), run)
    other, changed = teaching(tmp_path, "optim.steps=3", change)
    with pytest.raises(InputError, match=said):
        set_up_training(changed, other, newest_valid_checkpoint(run)[0])


def test_the_model_is_stored_with_the_template_in_its_manifest(tmp_path: Path) -> None:
    recipe, task = teaching(tmp_path, "optim.steps=3")
    session, run = set_up_training(task, recipe, None), RunDir(tmp_path / "run")
    play(session, run)
    folder = (run.folder / "last").resolve()
    assert read_template_name(folder) == "chat" and TEMPLATE_FILE in read_manifest(folder)
    loaded = open_model(folder).model
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), session.model.parameters(), strict=True)
    )


def test_lora_stores_the_adapters_alone_and_they_make_the_same_model(tmp_path: Path) -> None:
    recipe, task = teaching(tmp_path, "optim.steps=6", "train=lora", "lora.rank=2", "optim.lr=0.1")
    session, run = set_up_training(task, recipe, None), RunDir(tmp_path / "run")
    play(session, run)
    folder = (run.folder / "last").resolve()
    assert read_template_name(folder) == "chat"
    assert not (folder / "model.safetensors").exists() and (folder / "adapter_model.safetensors").exists()
    ids = torch.arange(20)[None]
    session.model.eval()
    wanted, base = session.model(ids), task.base.model("sdpa")(ids)
    assert (wanted - base).abs().max() > 1e-3, "the weights moved"
    merge_lora(saved := task.saved_model(folder, "sdpa").eval())
    for model in (saved, open_model(folder).model):
        torch.testing.assert_close(model(ids), wanted, rtol=0, atol=1e-5)


def test_the_split_is_of_the_records_that_fit_and_the_others_are_counted(tmp_path: Path) -> None:
    long_question = {"instruction": "why " * 70, "output": "so"}
    long_answer = {"instruction": "Go on.", "output": "and " * 70}
    _, task = teaching(tmp_path, records=[*some_records(), long_question, long_answer])
    examples = task.examples
    assert (examples.n_left_out, examples.n_cut) == (1, 1)
    assert len(examples.train) + len(examples.validation) + len(examples.test) == 21
    assert len(examples.test) == len(examples.validation) == 4
    assert all(len(question.ids) < 64 for question in examples.test)
    assert {q.record.index for q in examples.test}.isdisjoint({examples.shown.record.index})
    template, tokenizer = TEMPLATES["chat"], task.tokenizer
    for question in examples.test:
        assert tokenizer.decode(question.ids) == template.prompt(question.record.question)


def test_words_for_what_there_is(tmp_path: Path) -> None:
    _, task = teaching(tmp_path, "data.max_tokens=40")
    n = sum(int(row.loss_mask.sum()) for row in task.examples.train)
    assert task.size == f"12 records with {n} target tokens"
    assert task.validation_size.startswith("validation 4 with ") and task.validation_size.endswith("test 4")
    assert task.steps_per_epoch == 2.0 and task.examples.limit == 40
    _, shared = teaching(tmp_path, "packing=true")
    assert " rows with " in shared.size and shared.steps_per_epoch < 2


@pytest.mark.parametrize(
    ("overrides", "records", "kind", "said"),
    [
        (["data.max_tokens=65"], None, UsageError, "data.max_tokens=65"),
        (["data.max_tokens=3"], None, InputError, "none of the 20 records has room for an answer"),
        ([], some_records(2), InputError, "2 items are too few to split"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    overrides: list[str], records: object, kind: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=said):
        teaching(tmp_path, *overrides, records=records)


def test_lora_over_random_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lora needs a trained model"):
        teaching(tmp_path, "init=scratch", "train=lora")


def test_a_task_says_the_same_identity_for_the_same_data(tmp_path: Path) -> None:
    def identity(*overrides: str) -> dict[str, object]:
        found: tuple[object, SftTask] = teaching(tmp_path, *overrides)
        return json.loads(json.dumps(found[1].identity()))  # type: ignore[no-any-return]

    assert identity() == identity()
    assert identity("seed=8")["data"] != identity()["data"], "another split is other data"


def test_a_long_conversation_is_learnt_from_but_never_asked(tmp_path: Path) -> None:
    words = [("user", "Hello"), ("assistant", "Hi there"), ("user", "why " * 70), ("assistant", "so")]
    talk = {"messages": [{"role": role, "content": text} for role, text in words]}
    _, plain = teaching(tmp_path)
    _, task = teaching(tmp_path, records=[*some_records(), talk])
    examples = task.examples
    assert (examples.n_left_out, examples.n_train_only, examples.n_cut) == (0, 1, 1)
    assert len(examples.train) == len(plain.examples.train) + 1
    *_, last = examples.train
    assert task.tokenizer.decode(last.ids[last.loss_mask][:-1].tolist()) == "Hi there"
    asked = [question.record.index for question in (*examples.test, examples.shown)]
    assert 20 not in asked and all(len(question.ids) < 64 for question in examples.test)


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_limit_is_part_of_what_a_run_is(packing: str, tmp_path: Path) -> None:
    recipe, task = teaching(tmp_path, "optim.steps=3", f"packing={packing}")
    run = RunDir(tmp_path / "run")
    play(set_up_training(task, recipe, None), run)
    checkpoint = newest_valid_checkpoint(run)[0]
    # 40 tokens cut none of these records: only how many share a row can change.
    other, changed = teaching(tmp_path, "optim.steps=3", f"packing={packing}", "data.max_tokens=40")
    assert changed.identity()["data"] == task.identity()["data"]
    with pytest.raises(InputError, match=r"data\.max_tokens: 64 -> 40"):
        set_up_training(changed, other, checkpoint)
    same, spelled = teaching(tmp_path, "optim.steps=3", f"packing={packing}", "data.max_tokens=64")
    set_up_training(spelled, same, checkpoint)


def test_the_test_digest_names_what_is_asked_and_what_would_be_right(tmp_path: Path) -> None:
    _, task = teaching(tmp_path)
    digest, index = task.examples.test_digest, task.examples.test[0].record.index
    other = some_records()
    other[index]["output"] += "!"
    assert teaching(tmp_path)[1].examples.test_digest == digest
    for changed in (
        teaching(tmp_path, records=other)[1],
        teaching(tmp_path, "template=alpaca", "model.context=64")[1],
    ):
        assert changed.examples.test_digest != digest


@pytest.mark.parametrize("packing", ["true", "false"])
def test_no_batch_learns_more_than_the_most(packing: str, tmp_path: Path) -> None:
    _, task = teaching(tmp_path, f"packing={packing}")
    found = [task.batch(step, micro).n_targets for step in range(6) for micro in range(2)]
    assert max(found) <= task.max_targets < 3 * 64
