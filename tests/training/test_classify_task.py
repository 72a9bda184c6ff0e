"""Classification as a task: against an unpadded item, against itself interrupted, by what learns."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
from lessons import lesson
from loud import loud

from gpt2cli import paths
from gpt2cli.checkpoints.classifier import load_classifier
from gpt2cli.data.labelled_texts import pad_right
from gpt2cli.errors import InputError
from gpt2cli.model.gpt2 import GPT2Classifier
from gpt2cli.training import events as ev
from gpt2cli.training.loop import train, train_step
from gpt2cli.training.run_dir import RunDir, newest_valid_checkpoint, save_checkpoint
from gpt2cli.training.setup import TrainingSetup, set_up_training

LEARNING = ["head", "last-block", "all", "lora"]


def play(session: TrainingSetup, run: RunDir, stop: Callable[[], int] = lambda: 0) -> list[ev.Event]:
    run.folder.mkdir(exist_ok=True)
    return list(train(session, save=lambda: save_checkpoint(run, session), stop=stop))


def losses(events: list[ev.Event]) -> dict[int, float]:
    return {event.step: event.loss for event in events if isinstance(event, ev.StepDone)}


def state(session: TrainingSetup) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in session.model.named_parameters()}


def stop_after(n: int) -> Callable[[], int]:
    calls = iter(range(10**9))
    return lambda: 15 if next(calls) >= n else 0


@pytest.mark.parametrize("train", LEARNING)
def test_an_interrupted_run_ends_in_the_same_losses_and_weights(train: str, tmp_path: Path) -> None:
    recipe, task = lesson(tmp_path, f"train={train}", "optim.steps=16", "lora.dropout=0.1")
    whole = set_up_training(task, recipe, None)
    events = play(whole, RunDir(tmp_path / "whole"))
    run = RunDir(tmp_path / "cut")
    first = play(set_up_training(task, recipe, None), run, stop_after(13))
    assert isinstance(first[-1], ev.Stopped) and 0 < first[-1].step < 16
    checkpoint, problems = newest_valid_checkpoint(run)
    assert checkpoint is not None and not problems
    resumed = set_up_training(task, recipe, checkpoint)
    second = play(resumed, run)
    assert {**losses(first), **losses(second)} == losses(events)
    wanted, found = state(whole), state(resumed)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("train", LEARNING)
def test_only_what_is_asked_for_learns(train: str, tmp_path: Path) -> None:
    recipe, task = lesson(tmp_path, f"train={train}", "optim.steps=2", "optim.weight_decay=0.5")
    session = set_up_training(task, recipe, None)
    before = state(session)
    play(session, RunDir(tmp_path / "run"))
    changed = {name for name, tensor in state(session).items() if not torch.equal(tensor, before[name])}
    learns = {
        "head": lambda name: name == "score.weight",
        "last-block": lambda name: name.startswith(("score.", "transformer.ln_f.", "transformer.h.2.")),
        "all": lambda name: True,
        "lora": lambda name: name == "score.weight" or "lora_" in name,
    }[train]
    assert changed == {name for name in before if learns(name)}


def test_nothing_is_kept_of_the_blocks_that_do_not_learn(tmp_path: Path) -> None:
    recipe, task = lesson(tmp_path)
    model = set_up_training(task, recipe, None).model.train()
    kept: list[bool] = []
    for block in model.transformer.h:
        block.register_forward_hook(lambda module, inputs, x: kept.append(x.requires_grad))
    task.loss_sum(model, task.batch(0, 0), torch.float32).backward()
    assert kept == [False, False, True]


@torch.no_grad()
def test_a_padded_batch_scores_like_its_texts_alone(tmp_path: Path) -> None:
    _, task = lesson(tmp_path)
    model = loud(task.fresh_model("formula"))
    eot = task.tokenizer.end_of_text
    # Rows that end in, or are, the very id that fills rows up.
    rows = [(3, 4, 5, eot), (eot,), (7,) * 20, (5, eot, eot), (2, 9)]
    together = model(*pad_right(rows, eot))
    alone = torch.cat([model(*pad_right([row], eot)) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together[0] - model(*pad_right([(3, 4, 5)], eot))[0]).abs().max() > 1e-2, "the end counts"


def test_each_epoch_has_every_text_once_in_another_order(tmp_path: Path) -> None:
    _, task = lesson(tmp_path, "batch.micro_batch=4", "batch.accumulation=1")
    n = len(task.data.train)
    assert n % 4, "the case of a last batch that is not full"
    seen = [
        tuple(row[:length])
        for step in range(-(-2 * n // 4))
        for batch in [task.batch(step, 0)]
        for row, length in zip(batch.input_ids.tolist(), batch.lengths.tolist(), strict=True)
    ]
    first, second = seen[:n], seen[n : 2 * n]
    assert sorted(first) == sorted(second) == sorted(task.data.train.ids) and first != second


def test_an_evaluation_covers_the_whole_split_and_measures_it(tmp_path: Path) -> None:
    recipe, task = lesson(tmp_path, "optim.steps=2", "run.precision=fp32")
    session = set_up_training(task, recipe, None)
    events = play(session, RunDir(tmp_path / "run"))
    done = [event for event in events if isinstance(event, ev.EvalDone)][-1]
    validation = task.data.validation
    with torch.no_grad():
        logits = torch.cat([session.model(*pad_right([ids], 0)) for ids in validation.ids])
    truth = torch.tensor(validation.classes)
    assert done.n_tokens == len(validation)
    assert done.metrics["accuracy"] == pytest.approx((logits.argmax(-1) == truth).float().mean().item())
    assert done.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, truth).item(), abs=1e-5)


def test_class_weights_make_the_classes_equal_and_keep_the_scale(tmp_path: Path) -> None:
    texts = "label,text\n" + "a,see you\n" * 40 + "b,win cash\n" * 10
    recipe, task = lesson(tmp_path)
    (tmp_path / "messages.csv").write_text(texts)
    (tmp_path / "lesson.yaml").unlink()
    from gpt2cli.data.labelled_splits import split_labelled
    from gpt2cli.data.labelled_texts import read_labelled

    labelled = read_labelled(tmp_path / "messages.csv", "text", "label")
    data = split_labelled(labelled, recipe.data, task.tokenizer, 24, 1)
    weighted = recipe.model_copy(update={"data": recipe.data.model_copy(update={"balance": "weights"})})
    task = type(task)(weighted, data, task.base)
    assert task._weights is not None and task._weights.tolist() == [0.625, 2.5]
    model: GPT2Classifier = task.fresh_model("formula").eval()
    batch = task._batch(data.train, list(range(len(data.train))))
    logits = model(batch.input_ids, batch.lengths)
    each = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    by_class = [each[batch.targets == kind].mean() for kind in (0, 1)]
    mean = task.loss_sum(model, batch, torch.float32) / batch.n_targets
    assert mean.item() == pytest.approx(sum(by_class).item() / 2, abs=1e-6)


@pytest.mark.parametrize("by", ["PeftModel", "AutoPeftModelForSequenceClassification"])
@torch.no_grad()
def test_peft_opens_the_adapters_of_a_classifier(by: str, tmp_path: Path) -> None:
    """Over the base, with three classes; the head is stored with the adapters."""
    recipe, task = lesson(tmp_path, "train=lora", "optim.steps=20", "lora.targets=all", "lora.rank=2")
    with torch.enable_grad():
        play(set_up_training(task, recipe, None), RunDir(tmp_path / "run"))
    folder = tmp_path / "run" / "last"
    assert task.base.folder is not None
    if by == "PeftModel":
        kind = transformers.GPT2ForSequenceClassification
        base = kind.from_pretrained(task.base.folder, num_labels=3)
        theirs = peft.PeftModel.from_pretrained(base, folder / "adapter")
    else:
        auto = peft.AutoPeftModelForSequenceClassification
        theirs = auto.from_pretrained(folder / "adapter", num_labels=3)
    stored = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert stored["modules_to_save"] == ["score"] and stored["task_type"] == "SEQ_CLS"
    loaded = load_classifier(folder.resolve())
    for ids in task.data.test.ids:
        row = torch.tensor([ids or [loaded.tokenizer.end_of_text]])
        wanted = theirs.eval()(row).logits
        torch.testing.assert_close(loaded.model(row, torch.tensor([row.shape[1]])), wanted, atol=1e-5, rtol=0)
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(whole(row).logits, wanted, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="is a classifier's adapter") as caught:
        load_classifier(folder / "adapter")
    assert str(folder) in caught.value.fix


def test_lora_saves_a_merged_classifier_that_scores_alike(tmp_path: Path) -> None:
    recipe, task = lesson(tmp_path, "train=lora", "optim.steps=20", "lora.targets=[c_attn, c_proj, c_fc]")
    session = set_up_training(task, recipe, None)
    play(session, RunDir(tmp_path / "run"))
    loaded = load_classifier((tmp_path / "run" / "last").resolve())
    rows = pad_right(task.data.test.ids, 0)
    with torch.no_grad():
        ours, merged = session.model.eval()(*rows), loaded.model(*rows)
        plain = task.fresh_model("formula").eval()
        plain.score.weight.copy_(session.model.score.weight)
        assert (plain(*rows) - ours).abs().max() > 1e-2, "the adapters did learn"
    torch.testing.assert_close(merged, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train=all", "train: last-block -> all"),
        ("data.validation=0.2", "data: "),
        ("data.max_tokens=5", "data: "),
        ("data.balance=weights", "data.balance: none -> weights"),
        ("init=scratch", "init: "),
    ],
)
def test_a_resume_of_another_run_is_refused(change: str, said: str, tmp_path: Path) -> None:
    recipe, task = lesson(tmp_path, "optim.steps=3")
    run = RunDir(tmp_path / "run")
    play(set_up_training(task, recipe, None), run)
    small = ("model.size=null", "model.n_layer=3", "model.n_head=2", "model.n_embd=16", "model.context=24")
    recipe, other = lesson(tmp_path, "optim.steps=3", change, *(small if "scratch" in change else ()))
    with pytest.raises(InputError, match=said):
        set_up_training(other, recipe, paths.checkpoints(run.folder)[-1])


def test_it_learns(tmp_path: Path) -> None:
    recipe, task = lesson(tmp_path, "train=all", "optim.steps=60", "optim.lr=1e-2", "eval.every=60")
    session = set_up_training(task, recipe, None)
    for _ in range(60):
        train_step(session)
    events = play(session, RunDir(tmp_path / "run"))
    done = next(event for event in events if isinstance(event, ev.EvalDone))
    assert done.metrics["accuracy"] > 0.7, "a third would be chance; some texts are empty"
