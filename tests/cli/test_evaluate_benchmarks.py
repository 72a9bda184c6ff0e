"""`gpt2 evaluate --on` with benchmarks, as a person and as a script meet it. What the scores are is
test_benchmarks' subject.
"""

import json
import math
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from loud import loud

from gpt2cli import bundled
from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.data.corpora import CORPORA
from gpt2cli.evaluation import benchmarks
from gpt2cli.model.config import PRESETS, GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import gpt2 as gpt2_tokenizer
from gpt2cli.tokenizer.chars import Chars

Gpt2 = Callable[..., Any]
MINIATURES = Path(bundled.__file__).parent
WORD, TOKEN = "lambada:word=lambada-miniature", "lambada:token=lambada-miniature"
SMALL = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=48)


def save(name: str, seed: int = 1, tokenizer: Tokenizer | None = None) -> Path:
    tokenizer = tokenizer or gpt2_tokenizer()
    model = loud(new_model(replace(SMALL, vocab_size=tokenizer.n_vocab), seed), seed=seed)
    folder = Path(name)
    folder.mkdir()
    write_manifest(folder, write_model(folder, model, tokenizer, "task: pretrain\n"))
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_one_table_holds_several_models_benchmarks_and_a_text(gpt2: Gpt2) -> None:
    save("one"), save("two", 2)
    Path("story.txt").write_text("The story begins here, and it is not over yet.\n")
    on = f"{WORD},hellaswag=hellaswag-miniature,story.txt"
    table = gpt2("evaluate", "one", "two", "--on", on, "--limit", "3")
    asked = gpt2("evaluate", "one", "two", "--on", on, "--limit", "3", "--json")
    assert (table.code, asked.code, asked.err) == (0, 0, ""), table.err
    facts = [json.loads(line) for line in asked.out.splitlines()]
    assert [(one["model"], one["on"]) for one in facts] == [
        (model, name) for model in ("one", "two") for name in ("lambada:word", "hellaswag", "story.txt")
    ]
    lines = table.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert cells(lines[0]) == ["model", "metric", "value", "95% interval", "published", "items/s"]
    assert lines[1] == "lambada:word=lambada-miniature: first 3 of 10 items (a miniature)"
    assert "not the benchmark" in table.out
    shown = [cells(line) for line in lines if line.startswith(("one ", "two "))]
    for (model, metric, value, interval, published, *_), fact in zip(
        shown, sorted(facts, key=_order), strict=True
    ):
        assert (model, published) == (fact["model"], "-")
        if "metrics" in fact:
            first = fact["metrics"][metric.removesuffix(" %")]
            percent = [f"{100 * x:.2f}" for x in (first["value"], *first["interval_95"])]
            assert (value, interval) == (percent[0], f"{percent[1]} to {percent[2]}")
        else:
            assert (value, interval) == (f"{fact['perplexity']:,.2f}", "-")
    assert "lambada_openai of lm-evaluation-harness" in table.out
    assert f"SHA-256 {facts[0]['sha256'][:12]}" in table.out
    assert facts[0]["sha256"] == sha256((MINIATURES / "lambada-miniature.jsonl").read_bytes()).hexdigest()
    assert (facts[0]["n_items"], facts[0]["n_all"], facts[0]["miniature"]) == (3, 10, True)


def _order(fact: dict[str, Any]) -> tuple[int, str]:
    return ["lambada:word", "hellaswag", "story.txt"].index(fact["on"]), fact["model"]


def test_out_has_a_line_per_item_from_which_the_figures_follow(gpt2: Gpt2) -> None:
    save("one")
    outcome = gpt2("evaluate", "one", "--on", f"{WORD},{TOKEN}", "--json", "--out", "items.jsonl")
    assert outcome.code == 0, outcome.err
    items, facts = lines_of(Path("items.jsonl")), [json.loads(line) for line in outcome.out.splitlines()]
    for fact in facts:
        own = [item for item in items if item["on"] == fact["on"]]
        assert [item["item"].rpartition(":")[2] for item in own] == [str(n) for n in range(1, 11)]
        assert fact["metrics"]["accuracy"]["value"] == sum(item["greedy"][0] for item in own) / 10
        nats = -sum(item["logprobs"][0] for item in own) / 10
        assert fact["metrics"]["perplexity"]["value"] == pytest.approx(math.exp(nats))
        assert fact["n_truncated"] == sum(item["n_truncated"] > 0 for item in own) > 0
    assert {n for item in items if item["on"] == "lambada:token" for n in item["n_tokens"]} == {1}
    again = gpt2("evaluate", "one", "--on", WORD, "--out", "items.jsonl")
    assert again.code == 2 and "items.jsonl: exists" in again.err
    assert lines_of(Path("items.jsonl")) == items


def test_a_context_that_does_not_fit_is_said(gpt2: Gpt2) -> None:
    save("one")
    outcome = gpt2("evaluate", "one", "--on", WORD)
    assert "items did not fit and lost its beginning" in outcome.out.replace("\n    ", " ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--on", "lambada"], 2, "error: lambada: two protocols"),
        (["--on", "hellaswag=hellaswag-miniature,lambada=lambada-miniature"], 2, "error: lambada: two"),
        (["--on", "lambada:wrd"], 3, "error: lambada:wrd: neither a file nor a benchmark"),
        (["--on", ","], 2, "error: --on ',' names nothing"),
        (["--on", "lambada:word=absent.jsonl"], 3, "error: absent.jsonl: neither a file"),
        (["--on", "lambada:word=empty.jsonl"], 3, "error: empty.jsonl: there are no items"),
        (["--on", "lambada:word=hellaswag-miniature"], 3, "error: "),
        (["--on", "story.txt", "--limit", "3"], 2, "error: --limit is for a benchmark"),
        (["--on", "story.txt", "--out", "x.jsonl"], 2, "error: --out is for a benchmark"),
        (["--on", WORD, "--stride", "4"], 2, "error: --stride is for a text"),
        (["--on", WORD, "--batch", "4"], 2, "error: --batch is for a text"),
        (["--on", WORD, "--limit", "0"], 2, "error: --limit: invalid value"),
        (["--on", WORD, "--out", "no/such/folder/x.jsonl"], 3, "error: "),
        (["--on", "lambada:word=long.jsonl"], 3, "error: long.jsonl:1: a choice has"),
        (["--on", "cbt-cn", "--offline"], 5, "error: cbt-cn-valid: cannot be downloaded"),
    ],
)
def test_what_cannot_be_measured_is_said(
    gpt2: Gpt2, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.delenv("GPT2_MIRROR", raising=False)
    save("one")
    Path("story.txt").write_text("A story of some words.")
    Path("empty.jsonl").write_text("")
    Path("long.jsonl").write_text(json.dumps({"text": f"A {'word-' * 40}"}) + "\n")
    outcome = gpt2("evaluate", "one", *arguments)
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert outcome.err.startswith(message) and len(outcome.err.splitlines()) <= 4


def test_the_fixes_that_are_printed_work(gpt2: Gpt2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2_MIRROR", raising=False)
    save("one")
    typed = ["evaluate", "one", "--limit", "1", "--on"]
    for on, meant in (
        ("lambada=lambada-miniature", WORD),
        ("hellaswag=hellaswag-miniature,lambada=lambada-miniature", f"hellaswag=hellaswag-miniature,{WORD}"),
        ("lambada:wrod=lambada-miniature", WORD),
    ):
        *_, fix = gpt2(*typed, on).err.splitlines()
        assert fix == f"fix: gpt2 evaluate one --limit 1 --on {meant}"
        assert gpt2(*typed, meant).code == 0
    for name, benchmark in benchmarks.BENCHMARKS.items():
        missing = gpt2("evaluate", "one", "--on", name, "--offline")
        assert missing.code == 5
        advice = missing.err.rpartition("on a miniature: ")[2].strip()
        assert advice == f"--on {name}={benchmark.miniature}"
        assert gpt2("evaluate", "one", *shlex.split(advice), "--limit", "1", "--offline").code == 0


def test_a_character_that_the_model_does_not_know_names_its_line(gpt2: Gpt2) -> None:
    save("chars", tokenizer=Chars.from_text("abc "))
    Path("own.jsonl").write_text('{"text": "a b"}\n{"text": "a Z"}\n')
    outcome = gpt2("evaluate", "chars", "--on", "lambada:word=own.jsonl")
    assert outcome.code == 3 and outcome.err.startswith("error: own.jsonl:2: character 'Z'")


def test_a_path_may_hold_a_comma(gpt2: Gpt2) -> None:
    save("one")
    Path("this,that.txt").write_text("One story of two.")
    outcome = gpt2("evaluate", "one", "--on", "this,that.txt", "--json")
    assert outcome.code == 0 and json.loads(outcome.out)["on"] == "this,that.txt"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The miniatures in the place of the real data, with their hashes known, a small model as 124M."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, miniature in (
        ("lambada-test", "lambada-miniature.jsonl"),
        ("cbt-cn-valid", "cbt-cn-miniature.txt"),
    ):
        content = (MINIATURES / miniature).read_bytes() + b"\n"
        corpus = CORPORA[name]
        (folder / corpus.file).write_bytes(content)
        digest = corpus.sha256 and sha256(content).hexdigest()
        monkeypatch.setitem(CORPORA, name, replace(corpus, sha256=digest))
    monkeypatch.setenv("GPT2_MIRROR", str(folder))
    monkeypatch.setitem(PRESETS, "124M", SMALL)
    return folder


def test_published_figures_stand_beside_the_whole_benchmark_alone(gpt2: Gpt2, mirror: Path) -> None:
    save("one")
    copy = mirror / CORPORA["lambada-test"].file

    def published(*options: str | Path) -> list[float | None]:
        outcome = gpt2("evaluate", "one", "--json", *options)
        assert outcome.code == 0, outcome.err
        return [one["published"] for one in json.loads(outcome.out)["metrics"].values()]

    assert published("--on", "lambada:word") == [32.56, 40.06]
    assert published("--on", f"lambada:word={copy}") == [32.56, 40.06]  # the same bytes
    assert published("--on", "lambada:token") == [46.67, None]
    assert published("--on", "lambada:word", "--limit", "9") == [None, None]
    assert published("--on", WORD) == [None, None]
    table = gpt2("evaluate", "one", "--on", "lambada:word").out
    (row,) = [cells(line) for line in table.splitlines() if line.startswith("one ")]
    assert row[1] == "accuracy %" and row[4] == "32.56"
    assert "124M 45.99" in table and "Radford et al. 2019" in table


def test_cbt_is_read_from_the_mirror_and_its_hash_recorded(gpt2: Gpt2, mirror: Path) -> None:
    """No publisher states the hash of its files."""
    save("one")
    outcome = gpt2("evaluate", "one", "--on", "cbt-cn", "--limit", "2", "--json")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["sha256"] == sha256((mirror / "cbtest_CN_valid_2000ex.txt").read_bytes()).hexdigest()
    assert (facts["source"], facts["n_items"], facts["n_all"]) == ("cbt-cn-valid", 2, 10)


def test_an_interruption_states_what_is_partial_and_keeps_what_is_whole(
    gpt2: Gpt2, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("one"), save("two", 2)
    real, n_items = benchmarks.run_benchmark, 0

    def interrupted(*arguments: Any) -> Iterator[Any]:
        nonlocal n_items
        for result in real(*arguments):
            yield result
            n_items += 1
            if n_items == 14:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(benchmarks, "run_benchmark", interrupted)
    outcome = gpt2("evaluate", "one", "two", "--on", WORD, "--out", "items.jsonl")
    assert outcome.code == 130
    assert outcome.err.startswith("partial: two: lambada:word: 4 of 10 items: accuracy ")
    assert [line.split()[0] for line in outcome.out.splitlines()[2:3]] == ["one"]
    assert len(lines_of(Path("items.jsonl"))) == 14
