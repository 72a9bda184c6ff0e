"""Files as people have them, through every command: each printed fix is pasted, and works."""

import csv
import io
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from words import BYTES

from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.data.token_dataset import open_dataset
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model

Gpt2 = Callable[..., Any]
RECIPE = """\
task: finetune-{task}
init: {base}
data: {{source: {source}}}
batch: {{micro_batch: 4}}
optim: {{steps: 2, lr: 1e-3}}
eval: {{every: 2{more}}}
run: {{threads: 1, device: cpu, precision: fp32, compile: "off"}}
"""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model over bytes, to begin with."""
    path = tmp_path_factory.mktemp("bytes") / "base"
    path.mkdir()
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=320, vocab_size=BYTES.n_vocab)
    write_manifest(path, write_model(path, new_model(config, 3), BYTES, "task: pretrain\n"))
    return path


def recipe(task: str, base: Path, source: str) -> str:
    more = ", max_new_tokens: 4" if task == "instruct" else ""
    Path("r.yaml").write_text(RECIPE.format(task=task, base=base, source=source, more=more))
    return "r.yaml"


def rows(n: int = 60) -> list[tuple[str, str]]:
    """(label, text); every fifth text has a pound sign and Windows' quotes."""
    return [
        (("ham", "spam")[i % 3 == 0], f"text number {i}, you see" + " “£5”" * (i % 5 == 0)) for i in range(n)
    ]


def kaggle() -> bytes:
    """The shape of Kaggle's spam.csv: v1, v2, three columns without a name, CRLF, Windows-1252."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["v1", "v2", "", "", ""])
    table.writerows([label, body, "", "", ""] for label, body in rows())
    return text.getvalue().encode("cp1252")


def fix_of(err: str) -> str:
    return next(line for line in err.splitlines() if line.startswith("fix: ")).removeprefix("fix: ")


def test_kaggles_spam_with_the_fixes_that_are_printed(gpt2: Gpt2, base: Path) -> None:
    Path("spam.csv").write_bytes(kaggle())
    file, words = recipe("classify", base, "spam.csv"), list[str]()
    for said in ("not UTF-8", "no column 'text'"):
        refused = gpt2("finetune-classify", file, *words, "--name", "x")
        assert refused.code == 3 and said in refused.err and "spam.csv:" in refused.err
        found = re.findall(r"data\.(?:encoding|text|label)=[\w-]+", fix_of(refused.err))
        words = list(dict.fromkeys([*words, *found]))
    assert words == ["data.encoding=cp1252", "data.text=v2", "data.label=v1"]
    done = gpt2("finetune-classify", file, *words, "--name", "x")
    assert done.code == 0, done.err
    assert "note: 2 classes: ham 40, spam 20" in done.err
    report = json.loads(Path("runs/x/report.json").read_text())
    assert report["split"] == "test" and sum(map(sum, report["confusion"])) == 12


def test_a_labelled_file_is_scored_as_a_plain_loop_scores_it(gpt2: Gpt2, base: Path) -> None:
    """Accuracy, macro-F1 and confusion by counting, calibration by Guo et al.'s definition."""
    Path("spam.csv").write_bytes(kaggle())
    done = gpt2(
        "finetune-classify", recipe("classify", base, "spam.csv"), "data.encoding=cp1252", "data.text=v2",
        "data.label=v1", "data.test=0", "--name", "x",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(Path("runs/x/report.json").read_text())["split"] == "validation"
    columns = ("classify", "x", "--file", "spam.csv", "--encoding", "cp1252", "--column", "v2")
    answers = [json.loads(line) for line in gpt2(*columns, "--json").out.splitlines()]
    truth = [label for label, _ in rows()]
    scored = json.loads(gpt2(*columns, "--label", "v1", "--json").out)
    said = [answer["label"] for answer in answers]
    right = np.array([a == b for a, b in zip(said, truth, strict=True)])
    sure = np.array([answer["probability"] for answer in answers])
    pairs = [[sum((a, b) == (t, p) for t, p in zip(truth, said, strict=True)) for b in ("ham", "spam")]
             for a in ("ham", "spam")]  # fmt: skip
    f1 = [2 * pairs[k][k] / max(1, sum(pairs[k]) + sum(row[k] for row in pairs)) for k in (0, 1)]
    error = sum(
        abs(right[inside].sum() - sure[inside].sum()) / len(sure)
        for m in range(15)
        if (inside := (sure > m / 15) & (sure <= (m + 1) / 15)).any()
    )
    assert scored["confusion"] == pairs and scored["labels"] == ["ham", "spam"]
    assert scored["accuracy"] == pytest.approx(right.mean()) and scored["macro_f1"] == pytest.approx(
        sum(f1) / 2
    )
    assert scored["expected_calibration_error"] == pytest.approx(error, abs=1e-6) and 0 < error < 1
    table = gpt2(*columns, "--label", "v1").out
    assert f"accuracy {scored['accuracy']:.4f}" in table and f"calibration error {error:.4f}" in table
    Path("other.csv").write_text("v1,v2\nHam,x\nspam,y\n")
    other = gpt2("classify", "x", "--file", "other.csv", "--column", "v2", "--label", "v1")
    assert other.code == 3 and "other.csv:2: 'Ham' is not" in other.err and "write 'ham' there" in other.err
    for wrong in (("--label", "v1"), ("--file", "spam.csv", "--label", "v1")):
        assert gpt2("classify", "x", *wrong).code == 2


def dolly() -> bytes:
    record = {"instruction": "Say {}", "context": "in {}", "response": "it is {}", "category": "open_qa"}
    return as_lines([{k: v.format(i) for k, v in record.items()} for i in range(20)])


def sharegpt() -> bytes:
    talk = [("human", "hi {}"), ("gpt", "hello {}"), ("human", "and {}?"), ("gpt", "no {}")]
    return json.dumps(
        [
            {"id": str(i), "conversations": [{"from": a, "value": b.format(i)} for a, b in talk]}
            for i in range(20)
        ]
    ).encode()


def alpaca() -> bytes:
    return json.dumps(
        [
            {"instruction": f"Do {i}", "input": ["", "<noinput>", "x"][i % 3], "output": f"ok {i}"}
            for i in range(20)
        ]
    ).encode()


def openai() -> bytes:
    talk = [("system", "Be brief."), ("user", "ask {}"), ("assistant", "say {}")]
    return as_lines([{"messages": [{"role": a, "content": b.format(i)} for a, b in talk]} for i in range(20)])


def table() -> bytes:
    return ("instruction;output\n" + "".join(f"Do {i};ok {i}\n" for i in range(20))).encode()


def as_lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.mark.parametrize(
    ("name", "content", "words", "said"),
    [
        ("dolly.jsonl", dolly(), ["data.input=context", "data.output=response"], ""),
        ("sharegpt.json", sharegpt(), [], ""),
        ("alpaca.json", alpaca(), [], "note: the input of 7 records is <noinput>"),
        ("openai.jsonl", openai(), [], ""),
        ("table.csv", table(), [], "separated by semicolons"),
        ("*.jsonl", openai(), [], ""),
    ],
)
def test_fine_tuning_data_as_it_is_published(
    gpt2: Gpt2, base: Path, name: str, content: bytes, words: list[str], said: str
) -> None:
    Path(name.replace("*", "any")).write_bytes(content)
    file = recipe("instruct", base, json.dumps(name))
    if words:
        refused = gpt2("finetune-instruct", file, "--name", "x")
        assert refused.code == 3 and f"{name}:1, record 0" in refused.err
        assert fix_of(refused.err).endswith(" ".join(words))
    done = gpt2("finetune-instruct", file, *words, "data.test=0.1", "--name", "x")
    assert done.code == 0 and said in done.err, done.err
    answers = [json.loads(line) for line in Path("runs/x/responses.jsonl").read_text().splitlines()]
    assert len(answers) == 2 and all("<noinput>" not in answer["input"] for answer in answers)


def test_instructions_without_a_test_split_or_with_one_of_their_own(gpt2: Gpt2, base: Path) -> None:
    Path("a.jsonl").write_bytes(openai())
    for name, n in (("b", 3), ("c", 2)):
        talk = [{"prompt": f"{name} {i}", "completion": "yes"} for i in range(n)]
        Path(f"{name}.jsonl").write_bytes(as_lines(talk))
    file = recipe("instruct", base, "a.jsonl")
    held = ("data.validation_source=b.jsonl", "data.test_source=[c.jsonl]")
    done = gpt2("finetune-instruct", file, *held, "--name", "x")
    assert done.code == 0 and "20 records" in done.err and "validation 3" not in done.out, done.err
    answers = [json.loads(line) for line in Path("runs/x/responses.jsonl").read_text().splitlines()]
    assert [answer["instruction"] for answer in answers] == ["c 0", "c 1"]
    assert "nothing to do" in gpt2("finetune-instruct", file, "--resume", "--name", "x").err
    none = gpt2("finetune-instruct", file, "data.test=0", "--name", "y")
    assert none.code == 0 and "no test split" in none.err and not Path("runs/y/responses.jsonl").exists()
    assert "nothing to do" in gpt2("finetune-instruct", file, "--resume", "--name", "y").err


def test_repeated_and_leaked_instructions_are_told(gpt2: Gpt2, base: Path) -> None:
    records = [{"instruction": f"Do {i % 10}", "output": f"ok {i % 10}"} for i in range(40)]
    records += [{"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "x"}]}] * 2
    Path("a.json").write_text(json.dumps(records))
    done = gpt2("finetune-instruct", recipe("instruct", base, "a.json"), "--name", "x", "--dry-run")
    assert "31 of 42 records repeat another" in done.err, done.err
    for split in ("validation", "test"):
        assert re.search(rf"of the \d+ {split} prompts are in the training split too", done.err)
    assert "2 records have an empty question" in done.err


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["ham", "Ham "], "'Ham', 'ham' are nearly equal"),
        (["spam!", "spam", "x"], "'spam', 'spam!' are nearly equal"),
        (["1", "1.0", "2"], "'1', '1.0' are nearly equal"),
        (["a", "nan"], "'nan', of 20 rows, looks like a missing value"),
        (["a", "N/A"], "'N/A', of 20 rows, looks like a missing value"),
        (["a", "['b']"], "\"['b']\" looks like a list"),
    ],
)
def test_what_is_odd_about_classes_is_told_before_training(
    gpt2: Gpt2, base: Path, labels: list[str], said: str
) -> None:
    n = 20 * len(labels)
    Path("a.csv").write_text(
        "text,label\n" + "".join(f"text {i},{labels[i % len(labels)]}\n" for i in range(n))
    )
    done = gpt2("finetune-classify", recipe("classify", base, "a.csv"), "--name", "x", "--dry-run")
    assert done.code == 0 and f"note: {len(labels)} classes: " in done.err and said in done.err, done.err


def test_tables_as_they_come(gpt2: Gpt2, base: Path) -> None:
    """Two columns of text, several files by a glob, splits of their own, rows of nothing, bad rows."""
    Path("data").mkdir()
    for name, kind in (("a.csv", "csv"), ("b.json", "json")):
        table = [{"title": f"{name} {i}", "body": f"of {i}", "stars": i % 2} for i in range(30)]
        text = json.dumps(table)
        if kind == "csv":
            text = "title,body,stars\n" + "".join(",".join(map(str, row.values())) + "\n" for row in table)
            text += ",,\n" * 5 + "no label,at all,\n"
        Path("data", name).write_text(text)
    Path("v.csv").write_text("title,body,stars\na.csv 0,of 0,0\nq,r,1\n")
    Path("t.csv").write_text("title,body,stars\nx,y,0\nz,,1\n")
    words = (
        "data.text=[title, body]",
        "data.label=stars",
        "data.validation_source=v.csv",
        "data.test_source=t.csv",
    )
    file = recipe("classify", base, '"data/*"')
    done = gpt2("finetune-classify", file, *words, "--name", "x")
    assert done.code == 0, done.err
    assert "note: 2 classes: 0 30, 1 30" in done.err
    assert "1 of 31 records are bad and left out: data/a.csv:37: the label is empty" in done.err
    assert "1 of the 2 validation texts are in the training split too" in done.err
    assert sum(map(sum, json.loads(Path("runs/x/report.json").read_text())["confusion"])) == 2
    joined = gpt2("classify", "x", "--file", "t.csv", "--column", "title", "--column", "body", "--json")
    assert [json.loads(line)["text"] for line in joined.out.splitlines()] == ["x\n\ny", "z"]
    strict = gpt2("finetune-classify", file, *words, "data.max_bad=0", "--name", "y")
    assert strict.code == 3 and "data/a.csv:37: the label is empty" in strict.err
    Path("v.csv").write_text("title,body,stars\nq,r,7\n")
    unknown = gpt2("finetune-classify", file, *words, "--name", "y")
    assert unknown.code == 3 and "v.csv:2: the class '7' is not in the training data" in unknown.err


def test_text_is_split_and_measured_by_the_same_options(gpt2: Gpt2, base: Path) -> None:
    documents = [f"story {i}\nends" for i in range(30)]
    Path("stories.txt").write_text("\n<|endoftext|>\n".join(documents))
    told = gpt2("prepare", "stories.txt", "--out", "a", "--tokenizer", base, "--block", "8")
    option = fix_option(told.err, "--split-on")
    assert option == ["--split-on", "<|endoftext|>"]
    done = gpt2(
        "prepare", "stories.txt", "--out", "b", "--tokenizer", base, "--block", "8", *option, "--json"
    )
    assert json.loads(done.out)["documents"] == 30 and "stands in its text" not in done.err
    with open_dataset(Path("b")) as data:
        assert data.manifest.settings.split_on == "<|endoftext|>"
    Path("lines.txt").write_text("\n".join(document.replace("\n", " ") for document in documents))
    Path("blank.txt").write_text("\n \n\n".join(documents))
    for name, rule in (("lines.txt", "--per-line"), ("blank.txt", "--blank-line")):
        out = gpt2(
            "prepare", name, "--out", f"of-{name}", "--tokenizer", "chars", "--block", "8", rule, "--json"
        ).out
        assert json.loads(out)["documents"] == 30
    two = gpt2("prepare", "lines.txt", "--out", "z", "--per-line", "--split-on", "x")
    assert two.code == 2 and "exclude each other" in two.err
    for index, document in enumerate(documents):
        Path(f"story-{index:02}.txt").write_text(document)
    whole = json.loads(gpt2("evaluate", base, "--on", "story-*.txt", "--json").out)
    split = json.loads(gpt2("evaluate", base, "--on", "stories.txt", *option, "--json").out)
    assert (split["loss"], split["n_tokens"]) == (pytest.approx(whole["loss"]), whole["n_tokens"])
    several = gpt2("evaluate", base, "--on", "story-0*.txt", "--on", "story-[12]*.txt", "--json").out
    rows = [json.loads(line) for line in several.splitlines()]
    # Each text by itself: between the two of one text an end-of-text is predicted, too.
    assert len(rows) == 2 and sum(row["n_tokens"] for row in rows) == whole["n_tokens"] - 1
    assert all(math.isfinite(row["loss"]) for row in rows)


def fix_option(err: str, name: str) -> list[str]:
    words = shlex.split(err[err.index(name) :].partition(", in a recipe")[0])
    return [word.rstrip(";") for word in words]


@pytest.mark.parametrize(("command", "code"), [("prepare", 0), ("evaluate", 0), ("score", 0)])
def test_the_encoding_that_is_named_works_in_every_command(
    gpt2: Gpt2, base: Path, command: str, code: int
) -> None:
    Path("a.txt").write_bytes("“naïve” £5, said he.\n".encode("cp1252") * 9)
    words = {
        "prepare": ("a.txt", "--out", "o", "--block", "4", "--tokenizer", base),
        "evaluate": (base, "--on", "a.txt"),
        "score": ("a.txt", "--model", base),
    }[command]
    refused = gpt2(command, *words)
    assert refused.code == 3 and "Windows-1252" in refused.err
    assert gpt2(command, *words, *fix_option(fix_of(refused.err), "--encoding")).code == code
    assert gpt2(command, *words, "--encoding", "klingon").code == 2


def test_pretraining_reads_records_lists_and_nanogpts_tokens(gpt2: Gpt2) -> None:
    pretrain = """\
task: pretrain
data: {source: x, validation: 0.2}
model: {n_layer: 1, n_head: 1, n_embd: 8, context: 16}
batch: {micro_batch: 2}
optim: {steps: 2}
eval: {every: 2, sample_tokens: 0}
run: {threads: 1, device: cpu, precision: fp32, compile: "off"}
"""
    Path("p.yaml").write_text(pretrain)
    Path("a.csv").write_text("id,joke\n" + "".join(f"{i},knock knock {i} times\n" for i in range(60)))
    Path("b.txt").write_text("one line\nof many. " * 40)
    chars = ("data.tokenizer=chars",)
    refused = gpt2("pretrain", "p.yaml", "data.source=a.csv", *chars, "--name", "x")
    assert refused.code == 3 and "data.text_fields=[joke]" in refused.err
    fields, lines = "data.text_fields=[joke]", "data.per_line=true"
    done = gpt2("pretrain", "p.yaml", "data.source=[a.csv, b.txt]", fields, lines, *chars, "--name", "x")
    assert done.code == 0, done.err
    folder = json.loads(Path("runs/x/run.json").read_text())["sessions"][-1]["data"]["tokens"]
    with open_dataset(Path(folder)) as data:
        assert data.manifest.n_documents == 60 + 41 and data.manifest.settings.per_line
    again = gpt2("pretrain", "p.yaml", f"data.source={folder}", "data.per_line=false", "data.validation=null",
                 "--name", "y")  # fmt: skip
    assert again.code == 2 and "data.per_line is False" in again.err
    Path("nano").mkdir()
    for name, n in (("train.bin", 300), ("val.bin", 90)):
        (np.arange(n, dtype=np.uint16) % 50).tofile(f"nano/{name}")
    done = gpt2("pretrain", "p.yaml", "data.source=nano", "--name", "z")
    assert done.code == 0 and "300 training and 90 validation tokens" in done.err, done.err
