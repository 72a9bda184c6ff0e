"""What `gpt2 evaluate --on` takes, against plain loops: files, globs, folders, records, prepared splits."""

import gzip
import json
import shlex
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_loop import Example, load, mean_loss, n_targets
from tiny_base import LETTERS, save_base
from tiny_run import Call, random_text, read_tokens
from transformers import AutoTokenizer

from gpt2cli.checkpoints.folder import load_model

CONTEXT, STRIDE = 8, 8
WINDOWS = ("--context", str(CONTEXT), "--stride", str(STRIDE), "--json")
DOCUMENTS = [random_text(n, seed=n, letters="abc de\n") for n in (61, 30, 97, 45, 20, 33)]
CHARACTERS = sorted(LETTERS)


@pytest.fixture
def model(gpt2: Call, tmp_path: Path) -> Path:
    """Random weights over single characters, by transformers; its vocabulary is in the folder letters too."""
    return save_base(gpt2, tmp_path / "base", context=24)


def windows_over(ids: list[int]) -> list[Example]:
    """[0, 8), [8, 16), ...: all ids but the first are targets, once."""
    ends = [(begin, min(begin + CONTEXT, len(ids) - 1)) for begin in range(0, len(ids) - 1, STRIDE)]
    return [Example(ids[begin:end], ids[begin + 1 : end + 1]) for begin, end in ends]


def write_documents() -> None:
    Path("docs").mkdir()
    for i, text in enumerate(DOCUMENTS):
        Path(f"docs/{i}.txt").write_text(text, encoding="utf-8")


def prepare(gpt2: Call, *options: str, out: str = "tokens") -> None:
    """`docs` with the model's vocabulary, in files of 50 tokens: most windows lie in two."""
    write_documents()
    form = ("--tokenizer", "letters", "--shard-tokens", "50", "--block", "8")
    outcome = gpt2("prepare", "docs", "--out", out, *form, *options)
    assert outcome.code == 0, outcome.err


def evaluate(gpt2: Call, model: Path, on: str, *options: str) -> dict[str, Any]:
    outcome = gpt2("evaluate", model, "--on", on, *WINDOWS, *options)
    assert outcome.code == 0, outcome.err
    facts: dict[str, Any] = json.loads(outcome.out)
    return facts


@pytest.mark.parametrize("split", ["validation", "train"])
def test_a_prepared_split_is_a_plain_loop_over_its_tokens(gpt2: Call, model: Path, split: str) -> None:
    prepare(gpt2, "--validation", "0.4")
    ids = read_tokens(split).tolist()
    assert 60 < len(ids) < sum(map(len, DOCUMENTS)) - 60 and (len(ids) - 1) % CONTEXT
    facts = evaluate(gpt2, model, "tokens", *(("--split", split) if split == "train" else ()))
    rows = windows_over(ids)
    with torch.no_grad():
        assert facts["loss"] == pytest.approx(mean_loss(load(model), rows).item(), abs=1e-4)
        ours, nats = load_model(model).model, 0.0
        for row in rows:
            logits = ours(torch.tensor([row.ids]))[0].double()
            nats += F.cross_entropy(logits, torch.tensor(row.targets), reduction="sum").item()
    assert facts["loss"] == pytest.approx(nats / (len(ids) - 1), abs=1e-6)
    assert (facts["n_tokens"], facts["windows"], facts["split"]) == (len(ids) - 1, len(rows), split)
    text = "".join("\n" if i == len(CHARACTERS) else CHARACTERS[i] for i in ids[1:])
    assert facts["n_words"] == len(text.split())
    assert facts["n_bytes"] == len(text) - ids[1:].count(len(CHARACTERS))
    assert facts["bits_per_byte"] == pytest.approx(nats / np.log(2) / facts["n_bytes"])
    assert facts["word_perplexity"] == pytest.approx(np.exp(nats / facts["n_words"]))
    hashes = [sha256(path.read_bytes()).hexdigest() for path in sorted(Path("tokens").glob(f"{split}-*"))]
    assert len(hashes) > 1 and facts["sha256"] == sha256("".join(hashes).encode()).hexdigest()


def test_the_table_names_the_split(gpt2: Call, model: Path) -> None:
    prepare(gpt2, "--validation", "0.4")
    titles, row = gpt2("evaluate", model, "--on", "tokens").out.splitlines()
    assert titles.split()[:3] == ["model", "split", "loss"] and row.split()[1] == "validation"


def documents_loss(model: Path, documents: list[str]) -> tuple[float, int]:
    """Of all documents in one stream, an end-of-text before each."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [i for text in documents for i in (tokenizer.eos_token_id, *tokenizer(text)["input_ids"])]
    rows = windows_over(ids)
    with torch.no_grad():
        return mean_loss(load(model), rows).item(), n_targets(rows)


def test_documents_are_the_same_from_a_folder_a_glob_and_records(gpt2: Call, model: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    write_documents()
    records = [{"n": i, "text": text, "body": text[::-1]} for i, text in enumerate(DOCUMENTS)]
    lines = "".join(json.dumps(record) + "\n\n" for record in records).encode()
    Path("docs.jsonl").write_bytes(lines)
    Path("docs.jsonl.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.Table.from_pylist(records), "docs.parquet")
    loss, count = documents_loss(model, DOCUMENTS)
    assert count == sum(map(len, DOCUMENTS)) + len(DOCUMENTS) - 1
    hashes = "".join(sha256(text.encode()).hexdigest() for text in DOCUMENTS)
    for on in ("docs", "docs/*.txt", "docs.jsonl", "docs.jsonl.gz", "docs.parquet"):
        facts = evaluate(gpt2, model, on)
        assert (facts["loss"], facts["n_tokens"]) == (pytest.approx(loss, abs=1e-4), count), on
        assert facts["n_bytes"] == sum(map(len, DOCUMENTS))
        assert facts["n_words"] == sum(len(text.split()) for text in DOCUMENTS)
        content = hashes.encode() if on.startswith("docs/") or on == "docs" else Path(on).read_bytes()
        assert (facts["on"], facts["split"], facts["sha256"]) == (on, None, sha256(content).hexdigest())
    for fields in (["body"], ["body", "text"]):
        joined = ["\n\n".join(record[field] for field in fields) for record in records]
        options = [word for field in fields for word in ("--text-field", field)]
        loss, count = documents_loss(model, joined)
        facts = evaluate(gpt2, model, "docs.jsonl", *options)
        assert (facts["loss"], facts["n_tokens"]) == (pytest.approx(loss, abs=1e-4), count), fields


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["docs/0.txt", "--split", "train"], 2, "--split train: docs/0.txt is not a prepared folder"),
        (["docs", "--split", "validation"], 2, "--split validation: docs is not a prepared folder"),
        (["tokens", "--split", "test"], 2, "--split: invalid value"),
        (["tokens", "--text-field", "body"], 2, "--text-field: tokens holds tokens"),
        (["docs", "--text-field", "body"], 2, "--text-field: docs is plain text"),
        (["docs.jsonl", "--max-bad", "0"], 3, "docs.jsonl:2: field 'text' is missing"),
        (["bad.jsonl"], 3, "bad.jsonl:1: not a JSON record"),
        (["docs/*.md"], 3, "docs/*.md: neither a file nor a known corpus"),
        (["empty"], 3, "empty: no text files in this directory"),
        (["base"], 3, "base: is a model, not a text"),
        (["tokens"], 3, "tokens, validation split: has 0 tokens"),
        (["damaged"], 3, "damaged/train-00000.bin: damaged"),
        (["unfinished"], 3, "unfinished: its preparation was interrupted"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_said(
    arguments: list[str], code: int, message: str, gpt2: Call, model: Path
) -> None:
    prepare(gpt2, "--validation", "0")
    Path("docs.jsonl").write_text('{"text": "a b c"}\n{"body": "a b c"}\n')
    Path("bad.jsonl").write_text('{"text"}\n')
    Path("empty").mkdir()
    for name in ("damaged", "unfinished"):
        shutil.copytree("tokens", name)
    Path("damaged/train-00000.bin").write_bytes(b"\0\0")
    Path("unfinished/manifest.json").rename("unfinished/journal.json")
    outcome = gpt2("evaluate", model, "--on", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(f"error: {message}") and len(outcome.err.splitlines()) <= 4


def test_another_tokenizer_is_refused_and_the_fix_works(gpt2: Call, model: Path) -> None:
    write_documents()
    Path("one.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS))
    options = ("--text-field", "body", "--block", "8", "--tokenizer", "gpt2")
    assert gpt2("prepare", "one.jsonl", "--out", "tokens", *options).code == 0
    outcome = gpt2("evaluate", model, "--on", "tokens")
    error, why, fix = outcome.err.splitlines()
    assert (outcome.code, error) == (3, f"error: {model}: its tokenizer is not the one that made tokens")
    assert f"chars with {len(CHARACTERS) + 1} tokens" in why and "gpt2 with 50,257 tokens" in why
    again = gpt2(*shlex.split(fix.removeprefix("fix: "))[1:], *WINDOWS)
    loss, count = documents_loss(model, DOCUMENTS)
    facts = json.loads(again.out)
    assert (facts["loss"], facts["n_tokens"]) == (pytest.approx(loss, abs=1e-4), count)


def test_an_empty_split_points_to_the_other_one(gpt2: Call, model: Path) -> None:
    prepare(gpt2, "--validation", "0")
    *_, fix = gpt2("evaluate", model, "--on", "tokens").err.splitlines()
    words = shlex.split(fix.removeprefix("fix: "))
    assert words[:4] == ["gpt2", "evaluate", str(model), "--on"]
    facts = json.loads(gpt2(*words[1:], *WINDOWS).out)
    assert (facts["split"], facts["n_tokens"]) == ("train", len(read_tokens("train")) - 1)
