"""`gpt2 finetune-classify` as a person meets it: the run, its report, the stop, the kill, the mistakes."""

import contextlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lessons import lesson, messages, write_lesson

from gpt2cli import paths
from gpt2cli.checkpoints.classifier import load_classifier
from gpt2cli.checkpoints.folder import WEIGHTS, read_manifest, verify
from gpt2cli.cli.train_command import TrainCommand, train
from gpt2cli.generation import label_texts

Gpt2 = Callable[..., Any]
SHORT = ("optim.steps=6", "eval.every=3")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_lesson(tmp_path)


def test_a_run_leaves_everything_that_was_promised(gpt2: Gpt2, recipe: Path) -> None:
    done = gpt2("finetune-classify", recipe, *SHORT)
    assert done.code == 0, done.err
    assert done.out == "runs/lesson\n", "stdout is data: the run's folder"
    run = Path("runs/lesson")
    verify((run / "best").resolve())
    assert load_classifier(paths.find_model("lesson")).labels == ("bank", "ham", "spam")
    report = json.loads((run / "report.json").read_text())
    assert report["checkpoint"] == (run / "best").resolve().name
    assert report["weights"] == read_manifest(run / "best")[WEIGHTS]
    assert (
        sum(map(sum, report["confusion"])) == 12 == sum(one["support"] for one in report["classes"].values())
    )
    right = sum(report["confusion"][i][i] for i in range(3))
    assert report["accuracy"] == right / 12
    assert report["not_in_training"]["texts"] < 12, "the little set repeats itself"
    assert (run / "confusion.png").read_bytes().startswith(b"\x89PNG")
    for said in (
        "accuracy",
        "macro f1",
        "precision",
        "recall",
        "actual \\ predicted",
        "in the training split too",
    ):
        assert said in done.err, said
    assert "perplexity" not in done.err and "\x1b" not in done.err
    assert "gpt2 classify runs/lesson" in done.err
    record = json.loads((run / "run.json").read_text())["sessions"][0]["data"]
    assert (
        record["rows"] == {"train": 42, "validation": 6, "test": 12} and record["labels"] == report["labels"]
    )
    evaluations = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = [event["metrics"] for event in evaluations if event["event"] == "EvalDone"]
    assert len(measured) == 3 and measured[0].keys() == {"accuracy", "macro_f1"}


def test_a_finished_run_has_nothing_to_do_unless_its_report_is_missing(gpt2: Gpt2, recipe: Path) -> None:
    assert gpt2("finetune-classify", recipe, *SHORT).code == 0
    report = Path("runs/lesson/report.json")
    first = report.read_bytes()
    again = gpt2("finetune-classify", recipe, "--resume")
    assert again.code == 0 and "nothing to do" in again.err and "precision" not in again.err
    for damage in (
        report.unlink,
        lambda: report.write_text("{"),
        lambda: report.write_text('{"weights": "x"}'),
    ):
        damage()
        assert gpt2("finetune-classify", recipe, "--resume").code == 0
        assert report.read_bytes() == first
    more = gpt2("finetune-classify", recipe, "--resume", "optim.steps=9")
    assert more.code == 0 and "resuming after step 6" in more.err


def test_a_signal_during_the_report_is_heard_and_the_report_comes_with_the_resume(
    gpt2: Gpt2, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("gpt2cli.cli.finetune_classify.AT_ONCE", 5)
        asked = label_texts.label_probabilities

        def told(*arguments: Any) -> Any:
            signal.raise_signal(signal.SIGTERM)
            return asked(*arguments)

        patch.setattr(label_texts, "label_probabilities", told)
        done = gpt2("finetune-classify", recipe, *SHORT)
    assert done.code == 143 and "--resume" in done.err
    assert not Path("runs/lesson/report.json").exists()
    assert gpt2("finetune-classify", recipe, "--resume").code == 0
    assert Path("runs/lesson/report.json").exists()


def test_the_report_shares_the_memory_with_no_moments(recipe: Path, tmp_path: Path) -> None:
    moments: list[int] = []

    @contextlib.contextmanager
    def open_task(*_: object) -> Any:
        yield lesson(tmp_path, *SHORT)[1], {}

    def report(setup: Any, *_: object) -> int:
        states = setup.optimizer_step.optimizer.state.values()
        moments.append(sum(t.numel() for state in states for t in state.values()))
        assert all(parameter.grad is None for parameter in setup.model.parameters())
        return 0

    command = TrainCommand(
        task="finetune-classify",
        open_task=open_task,
        after_evaluation=lambda *_: None,
        at_end=report,
        is_complete=lambda *_: False,
        hint=lambda *_: "",
    )
    train(command, str(recipe), list(SHORT), None, False, False, False, None)
    assert moments == [0]


def test_dry_run_shows_the_plan(gpt2: Gpt2, recipe: Path) -> None:
    done = gpt2("finetune-classify", recipe, "--dry-run")
    assert done.code == 0, done.err
    assert (
        "42 training texts" in done.out and "validation 6, test 12" in done.out and not Path("runs").exists()
    )


def test_notices_of_balance_and_cuts(gpt2: Gpt2, recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "messages.csv"
    path.write_text(path.read_text() + "spam,win\n" * 5)
    done = gpt2("finetune-classify", recipe, *SHORT, "data.balance=undersample", "data.max_tokens=6")
    assert done.code == 0, done.err
    assert "5 of 65 rows are left out to balance the classes" in done.err
    assert "longer than 6 tokens and cut there" in done.err


def test_a_file_without_a_row_of_names(gpt2: Gpt2, recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "messages.csv"
    path.write_text(path.read_text().removeprefix("label,text\n"))
    refused = gpt2("finetune-classify", recipe, "--dry-run")
    assert refused.code == 3 and "data.columns='[" in " ".join(refused.err.split()), refused.err
    done = gpt2("finetune-classify", recipe, *SHORT, "data.columns=[label, text]")
    assert done.code == 0, done.err
    assert gpt2("finetune-classify", recipe, "--resume").code == 0, "the run's recipe has the names"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["data.text=body"], 3, "messages.csv:1: no column 'body'"),
        (["data.source=nowhere.csv"], 3, "neither a file nor a known corpus"),
        (["init=nowhere"], 3, "init=newest"),
        (["init=124M"], 3, "init=newest"),
        (["data.test=0.95"], 2, "data.test"),
        (["data.max_tokens=25"], 2, "data.max_tokens=24"),
        (["data.columns=[label, body]"], 2, "lacks 'text'"),
        (["data.columns=[label, text, text]"], 2, "has a name twice"),
        (["data.columns=label"], 2, "data.columns"),
        (["data.columns=[label, text]"], 3, "messages.csv:1: the columns are named in this row"),
        (["train=some"], 2, "train"),
        (["train=lora", "lora.rank=99"], 2, "lora.rank is 99"),
    ],
)
def test_mistakes_are_named_before_any_training(
    gpt2: Gpt2, recipe: Path, arguments: list[str], code: int, said: str
) -> None:
    done = gpt2("finetune-classify", recipe, *arguments)
    assert done.code == code and said in done.err, done
    assert (
        sum(not line.startswith(("note: ", "warning: ")) for line in done.err.splitlines()) <= 4
        and "Traceback" not in done.err
    )
    assert not Path("runs").exists()


def test_changed_data_cannot_be_resumed(gpt2: Gpt2, recipe: Path, tmp_path: Path) -> None:
    assert gpt2("finetune-classify", recipe, *SHORT).code == 0
    messages(tmp_path, 61)
    done = gpt2("finetune-classify", recipe, "--resume", "optim.steps=9")
    assert done.code == 3 and "data: " in done.err


def test_lora_from_the_command_line(gpt2: Gpt2, recipe: Path) -> None:
    done = gpt2("finetune-classify", recipe, *SHORT, "train=lora", "lora.rank=2")
    assert done.code == 0 and "trainable)" in done.err, done.err
    shutil.rmtree("runs/lesson/checkpoints/step-000006")
    again = gpt2("finetune-classify", recipe, "--resume")
    assert again.code == 0 and "resuming after step 3" in again.err, again.err
