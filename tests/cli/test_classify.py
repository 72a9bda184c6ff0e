"""`gpt2 classify`: every way in and out, streaming, order, refusals."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import Lora, save_adapter, save_base
from lessons import language_model, lesson
from loud import loud
from words import BYTES

from gpt2cli.checkpoints.classifier import LoadedClassifier, load_classifier, write_classifier
from gpt2cli.checkpoints.folder import write_manifest
from gpt2cli.generation import label_texts
from gpt2cli.generation.label_texts import LabelPrediction, predict_labels
from gpt2cli.model.gpt2 import GPT2Classifier, empty_classifier

Gpt2 = Callable[..., Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    _, task = lesson(tmp_path)
    path = tmp_path / "judge"
    path.mkdir()
    classifier = loud(task.fresh_model("formula"))
    hashes = write_classifier(path, classifier, task.data.labels, task.tokenizer, 20, "task: x\n")
    write_manifest(path, hashes)
    return path


@pytest.fixture
def loaded(model: Path) -> LoadedClassifier:
    return load_classifier(model)


def alone(loaded: LoadedClassifier, text: str) -> LabelPrediction:
    return next(predict_labels(loaded, [text], str))


def row(loaded: LoadedClassifier, text: str) -> str:
    answer = alone(loaded, text)
    return f"{loaded.labels[answer.best]}\t{answer.probabilities[answer.best]:.4f}\t{text}"


def test_texts_as_arguments(gpt2: Gpt2, model: Path, loaded: LoadedClassifier) -> None:
    texts = ["win cash now", "see you soon", ""]
    done = gpt2("classify", model, *texts)
    assert done.code == 0 and done.err == "", done.err
    assert done.out.split("\n")[:-1] == [row(loaded, text) for text in texts]


def test_json_has_every_probability(gpt2: Gpt2, model: Path, loaded: LoadedClassifier) -> None:
    done = gpt2("classify", model, "see you", "bill", "--json", "--threshold", "0.6")
    for line, text in zip(done.out.splitlines(), ["see you", "bill"], strict=True):
        value, answer = json.loads(line), alone(loaded, text)
        assert value["text"] == text and list(value["probabilities"]) == list(loaded.labels)
        assert list(value["probabilities"].values()) == pytest.approx(answer.probabilities, abs=1e-5)
        assert sum(value["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        best = max(value["probabilities"], key=value["probabilities"].__getitem__)
        assert value["probability"] == value["probabilities"][best]
        assert value["label"] == (best if value["probability"] >= 0.6 else None)


def test_a_file_of_lines_in_batches_keeps_its_order(
    gpt2: Gpt2, model: Path, loaded: LoadedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three windows, many lengths: each line gets what it gets alone."""
    monkeypatch.setattr(label_texts, "WINDOW", 100)
    words = ["win", "cash", "now", "see", "you", "soon", "bill", "due"]
    lines = [" ".join(words[(i + k * k) % 8] for k in range(i % 11)) for i in range(250)]
    path = tmp_path / "lines.txt"
    path.write_text("\r\n".join(lines) + "\n", encoding="utf-8", newline="")
    done = gpt2("classify", model, "--file", path)
    found = [line.split("\t") for line in done.out.split("\n")[:-1]]
    assert [text for _, _, text in found] == lines
    for label, probability, text in found:
        answer = alone(loaded, text)
        assert label == loaded.labels[answer.best]
        assert float(probability) == pytest.approx(answer.probabilities[answer.best], abs=2e-4)
    n_cut = sum(len(text) > 20 for text in lines)
    assert f"note: {n_cut} texts were longer than 20 tokens and cut there" in done.err


def test_csv_in_csv_out(gpt2: Gpt2, model: Path, loaded: LoadedClassifier, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('id,body,note\n1,"see you","a ""b"", c"\n2,"win\ncash",\n')
    path.write_text(path.read_text().replace("win\ncash", "win cash"))
    done = gpt2("classify", model, "--file", path, "--column", "body")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [(r["id"], r["body"], r["note"]) for r in rows] == [
        ("1", "see you", 'a "b", c'),
        ("2", "win cash", ""),
    ]
    for r in rows:
        assert f"{r['label']}\t{r['probability']}\t{r['body']}" == row(loaded, r["body"])
    sure = gpt2("classify", model, "--file", path, "--column", "body", "--threshold", "1")
    assert [r["label"] for r in csv.DictReader(io.StringIO(sure.out))] == ["", ""]


def test_tsv_and_jsonl_in_and_columns_that_are_taken(
    gpt2: Gpt2, model: Path, loaded: LoadedClassifier, tmp_path: Path
) -> None:
    (tmp_path / "in.tsv").write_text("text\tlabel\nsee you\tham\n")
    done = gpt2("classify", model, "--file", tmp_path / "in.tsv", "--column", "text")
    label, probability, _ = row(loaded, "see you").split("\t")
    assert (
        done.out == f"text,label,predicted_label,predicted_probability\nsee you,ham,{label},{probability}\n"
    )
    (tmp_path / "in.jsonl").write_text('{"a": [1], "text": "see you"}\n{"text": "bill"}\n')
    done = gpt2("classify", model, "--file", tmp_path / "in.jsonl", "--column", "text")
    assert done.out.splitlines()[:2] == ["a,text,label,probability", f"[1],see you,{label},{probability}"]
    assert (
        len(
            gpt2(
                "classify", model, "--file", tmp_path / "in.jsonl", "--column", "text", "--json"
            ).out.splitlines()
        )
        == 2
    )


def test_a_table_without_a_row_of_names(
    gpt2: Gpt2, model: Path, loaded: LoadedClassifier, tmp_path: Path
) -> None:
    """The SMS Spam Collection as training takes it; anything else with its names beside it."""
    sms, other = tmp_path / "sms.tsv", tmp_path / "other.csv"
    sms.write_text("ham\tsee you\nspam\twin cash\nham\tbill\n")
    other.write_text("1,see you\n2,win cash\n3,bill\n")
    texts = ["see you", "win cash", "bill"]
    for arguments, column in (
        ((sms, "--column", "text"), "text"),
        ((sms, "--column", "body", "--columns", "kind, body"), "body"),
        ((sms, "--column", "label", "--columns", "first,label"), "label"),
        ((other, "--column", "text", "--columns", "id,text"), "text"),
    ):
        done = gpt2("classify", model, "--file", *arguments)
        assert done.code == 0, done.err
        rows = list(csv.DictReader(io.StringIO(done.out)))
        assert [r[column] for r in rows] == texts
        assert [r.get("predicted_label", r["label"]) for r in rows] == [
            row(loaded, text).split("\t")[0] for text in texts
        ]


@pytest.fixture
def fed(gpt2: Gpt2, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpt2:
    """Classify what is on standard input."""

    def call(text: str, *arguments: str) -> Any:
        (tmp_path / "stdin").write_text(text)
        with open(tmp_path / "stdin") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            return gpt2("classify", model, *arguments)

    return call


def test_a_dash_is_stdin(fed: Gpt2, loaded: LoadedClassifier) -> None:
    lines = fed("see you\nbill\n", "--file", "-")
    assert (lines.out, lines.err) == (f"{row(loaded, 'see you')}\n{row(loaded, 'bill')}\n", "")
    label, probability, _ = row(loaded, "see you").split("\t")
    table = fed('id,text\n1,"see you"\n', "--file", "-", "--column", "text")
    assert table.out == f"id,text,label,probability\n1,see you,{label},{probability}\n"
    bad = fed('text\n"x\n', "--file", "-", "--column", "text")
    assert bad.code == 3 and "stdin:2: a quote that opens in this row" in bad.err


@pytest.mark.parametrize("arguments", [[], ["--file", "-"], ["--file", "-", "--column", "text"]])
def test_closed_stdin_has_no_texts(
    gpt2: Gpt2, model: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of `<&-`
    done = gpt2("classify", model, *arguments)
    assert done.code == 2 and "there are no texts" in done.err and "stdin is closed" in done.err
    assert gpt2("classify", model, "bill").code == 0


def test_a_terminal_is_told_what_is_waited_for(
    gpt2: Gpt2, model: Path, loaded: LoadedClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "wb", buffering=0) as keys, open(theirs) as stdin:
        keys.write(b"see you\n\x04")
        monkeypatch.setattr(sys, "stdin", stdin)
        done = gpt2("classify", model)
    assert done.err == "reading lines from the terminal; Ctrl-D ends\n"
    assert done.out == row(loaded, "see you") + "\n"


def test_an_adapter_is_refused_with_its_commands(gpt2: Gpt2, tmp_path: Path) -> None:
    save_adapter(tmp_path / "runs/mine/checkpoints/step-000003", save_base(tmp_path / "base"), Lora())
    done = gpt2("classify", "mine", "see you")
    assert done.code == 3 and "is an adapter of a language model" in done.err, done.err
    assert "gpt2 generate --model" in done.err and "--merge" in done.err


def test_stdin_answers_each_line_as_it_comes(model: Path, loaded: LoadedClassifier) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", "classify", str(model)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin and process.stdout
    for text in ("see you", "win cash now", ""):
        process.stdin.write(text.encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline().decode() == row(loaded, text) + "\n", (
            "before the next line is written"
        )
    process.stdin.write(b"bill")
    out, err = process.communicate(timeout=60)
    assert out.decode() == row(loaded, "bill") + "\n" and process.returncode == 0 and err == b""


def test_thousands_at_once_are_not_taken_one_by_one(fed: Gpt2) -> None:
    passes = []
    counting = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: passes.append(module) if isinstance(module, GPT2Classifier) else None
    )
    with counting:
        done = fed("see you soon\n" * 5_000)
    assert done.code == 0 and done.out.count("\n") == 5_000
    assert 0 < len(passes) < 500
    assert len(set(done.out.splitlines())) == 1


def test_a_reader_that_leaves_is_no_error(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("see you\n" * 20_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", "classify", str(model), "--file", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ},
    )  # fmt: skip
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    assert process.wait(60) == 141


def test_what_a_text_or_label_holds_cannot_steer_a_terminal(gpt2: Gpt2, tmp_path: Path) -> None:
    config = lesson(tmp_path)[1].config
    wide = type(config)(n_layer=1, n_head=2, n_embd=16, n_positions=24, vocab_size=BYTES.n_vocab)
    path = tmp_path / "evil"
    path.mkdir()
    classifier = loud(empty_classifier(wide, 2).to_empty(device="cpu"))
    write_manifest(path, write_classifier(path, classifier, ("\x1b[31m\nx", "\x9b"), BYTES, 20, "task: x\n"))
    done = gpt2("classify", path, "a\tb\nc\x1b]52;c;x\x07")
    assert done.code == 0 and done.out.count("\n") == 1 and done.out.count("\t") == 2
    assert not set("\x1b\x07\x9b") & set(done.out)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["x", "--threshold", "1.5"], 2, "--threshold is 1.5"),
        (["x", "--file", "f.txt"], 2, "two sources of texts"),
        (["--column", "text"], 2, "no file is given"),
        (["--file", "f.csv"], 2, "--column NAME"),
        (["--file", "packed.csv.gz"], 2, "packed.csv.gz: which column holds the texts?"),
        (["--file", "f.csv", "--columns", "a,b"], 2, "f.csv: which column holds the texts?"),
        (["x", "--columns", "a,b"], 2, "--columns: which column holds the texts?"),
        (["--file", "f.csv", "--column", "a", "--columns", "a,,b"], 2, "--columns is 'a,,b'"),
        (["--file", "f.csv", "--column", "a", "--columns", "a,a"], 2, "--columns is 'a,a'"),
        (["--file", "f.csv", "--column", "c", "--columns", "a,b"], 2, "--column c is"),
        (["--file", "f.csv", "--column", "body"], 3, "--columns label,body"),
        (["x", "--file", "-"], 2, "two sources of texts"),
        (["--file", "nowhere.txt"], 3, "nowhere.txt: no such file"),
        (["--file", "f.csv", "--column", "body"], 3, "f.csv:1: no column 'body'"),
        (["--file", "bad.csv", "--column", "text"], 3, "bad.csv:2: a quote that opens in this row"),
        (["--file", "snow.csv", "--column", "text"], 3, "snow.csv:3: "),
        (["--file", "snow.txt"], 3, "snow.txt:2: "),
        (
            ["--file", "gap.jsonl", "--column", "text", "--max-bad", "0"],
            3,
            "gap.jsonl:2: the field 'text' is missing",
        ),
        (["--file", "full.csv", "--column", "text"], 3, "full.csv:1: has the columns"),
        (["a", "☃"], 3, "text 2: "),
    ],
)
def test_mistakes(
    gpt2: Gpt2, model: Path, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    for name, content in {
        "f.csv": "text\nx\n",
        "bad.csv": 'text\n"x\n',
        "snow.csv": "text\nx\n☃\n",
        "snow.txt": "x\n☃\n",
        "gap.jsonl": '{"text": "x"}\n{"a": 1}\n',
        "full.csv": "text,label,predicted_probability\nx,y,z\n",
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    done = gpt2("classify", model, *arguments)
    assert done.code == code and said in done.err, done
    assert done.err.count("\n") <= 4 and "Traceback" not in done.err


def test_a_language_model_is_refused_with_the_right_command(gpt2: Gpt2, tmp_path: Path) -> None:
    done = gpt2("classify", language_model(tmp_path), "see you")
    assert done.code == 3 and "gpt2 finetune-classify" in done.err and "gpt2 generate" in done.err


def test_bf16_changes_little(gpt2: Gpt2, model: Path, loaded: LoadedClassifier) -> None:
    done = gpt2("classify", model, "see you soon", "--json", "--precision", "bf16")
    found = list(json.loads(done.out)["probabilities"].values())
    assert found == pytest.approx(alone(loaded, "see you soon").probabilities, abs=0.05)
    assert found != list(alone(loaded, "see you soon").probabilities)
    assert torch.get_default_dtype() == torch.float32


def test_rows_without_a_label_are_bad_records_and_missing_classes_count(
    gpt2: Gpt2, model: Path, loaded: LoadedClassifier, tmp_path: Path
) -> None:
    texts, only = ["see you", "win cash now", "bill"], loaded.labels[0]
    rows = "".join(f"{text},{only} ,1,2\n" for text in texts)
    file = tmp_path / "f.csv"
    file.write_text(f"text,label,x,x\n{rows}\n,,,\nlost,,3,4\n")
    options = ("classify", model, "--file", file, "--column", "text", "--label", "label", "--json")
    strict = gpt2(*options, "--max-bad", "0")
    assert strict.code == 3 and "f.csv:7" in strict.err
    done = gpt2(*options)
    assert done.code == 0 and "f.csv:7: the label is empty" in done.err
    found, answers = json.loads(done.out), [alone(loaded, text) for text in texts]
    right = np.array([answer.best == 0 for answer in answers])
    top = np.array([max(answer.probabilities) for answer in answers])
    assert found["texts"] == 3 and found["accuracy"] == pytest.approx(right.mean())
    # A class that is nowhere true has an F1 of 0, and counts in the mean, as in scikit-learn with labels=.
    n_true = len(texts)
    f1 = 2 * right.sum() / (n_true + right.sum())
    assert found["macro_f1"] == pytest.approx(f1 / len(loaded.labels))
    bins = np.digitize(top, np.arange(1, 15) / 15, right=True)
    error = sum(abs(right[bins == b].sum() - top[bins == b].sum()) for b in range(15)) / n_true
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-5)
    assert np.array(found["confusion"]).sum(axis=1).tolist() == [3, *[0] * (len(loaded.labels) - 1)]
    file.write_text("text,label\nsee you,nothing\n")
    unknown = gpt2(*options)
    assert unknown.code == 3 and "f.csv:2" in unknown.err and repr(only) in unknown.err
