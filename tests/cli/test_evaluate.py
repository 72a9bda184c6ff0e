"""`gpt2 evaluate` as a person and as a script meet it. What the figures are is judging's test."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import Lora, save_adapter, save_base
from loud import loud

from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.cli.signals import exit_on_signals
from gpt2cli.convert import open_model as opening
from gpt2cli.data.corpora import CORPORA
from gpt2cli.evaluation import eval_text, perplexity
from gpt2cli.evaluation.perplexity import PerplexityProgress
from gpt2cli.model.config import PRESETS, GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.paths import shown_path
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import gpt2 as gpt2_tokenizer
from gpt2cli.tokenizer.chars import Chars

Gpt2 = Callable[..., Any]
STORY = "The story begins here, and it's not over yet.\n" * 12
CHARACTERS = Chars.from_text(STORY)


def save(folder: Path, tokenizer: Tokenizer = CHARACTERS, spoiled: bool = False, **shape: int) -> Path:
    given = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 24, **shape}
    model = loud(new_model(GPT2Config(vocab_size=tokenizer.n_vocab, **given), len(folder.name)))
    if spoiled:
        with torch.no_grad():
            model.transformer.ln_f.bias[3] = math.nan
    folder.mkdir(parents=True)
    write_manifest(folder, write_model(folder, model, tokenizer, "task: pretrain\n"))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "tiny")


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    return path


def rows_of(table: str) -> list[dict[str, str]]:
    """The table as a script would cut it: columns are two or more spaces apart."""
    titles, *rows = [
        [cell for cell in line.split("  ") if cell.strip()] for line in table.rstrip().splitlines()
    ]
    return [{title.strip(): cell.strip() for title, cell in zip(titles, row, strict=True)} for row in rows]


def test_the_table_and_the_json_say_the_same(gpt2: Gpt2, model: Path, story: Path) -> None:
    table, lines = gpt2("evaluate", model, "--on", story), gpt2("evaluate", model, "--on", story, "--json")
    assert (table.code, table.err, lines.code, lines.err) == (0, "", 0, "")
    facts, (row,) = json.loads(lines.out), rows_of(table.out)
    assert row.pop("tokens/s")
    assert row == {
        "model": str(model),
        "loss": f"{facts['loss']:.4f}",
        "perplexity/token": f"{math.exp(facts['loss']):,.2f}",
        "perplexity/word": f"{facts['word_perplexity']:,.2f}",
        "bits/byte": f"{facts['bits_per_byte']:.4f}",
        "tokens": str(len(STORY)),
        "context": "24",
        "stride": "12",
    }
    assert facts["perplexity"] == pytest.approx(math.exp(facts["loss"]))
    assert facts["bits_per_byte"] == pytest.approx(facts["loss"] / math.log(2))  # a character is a byte here
    assert (facts["n_tokens"], facts["n_words"], facts["n_bytes"]) == (552, len(STORY.split()), 552)
    assert (facts["context"], facts["stride"], facts["windows"]) == (24, 12, 45)
    assert (facts["device"], facts["precision"], facts["paper_perplexity"]) == ("cpu", "fp32", None)
    assert facts["tokens_per_second"] > 0
    assert facts["sha256"] == sha256(story.read_bytes()).hexdigest()


def test_several_models_make_one_table_each_in_its_own_context(
    gpt2: Gpt2, model: Path, story: Path, tmp_path: Path
) -> None:
    other = save(tmp_path / "other", gpt2_tokenizer(), n_positions=16)
    outcome = gpt2("evaluate", model, other, "--on", story)
    first, second = rows_of(outcome.out)
    assert (first["model"], second["model"]) == (str(model), str(other))
    assert (first["context"], second["context"]) == ("24", "16")
    n_tokens = len(gpt2_tokenizer().encode(STORY))
    assert (first["tokens"], second["tokens"]) == (str(len(STORY)), str(n_tokens))
    assert outcome.err == "" and "paper" not in first
    alone = rows_of(gpt2("evaluate", other, "--on", story).out)[0]
    assert alone["loss"] == second["loss"]
    lines = gpt2("evaluate", model, other, "--on", story, "--json").out.splitlines()
    assert [json.loads(line)["model"] for line in lines] == [str(model), str(other)]


def test_context_stride_and_batch_are_taken(gpt2: Gpt2, model: Path, story: Path) -> None:
    options = ("--context", "10", "--stride", "10", "--batch", "3", "--json")
    facts = json.loads(gpt2("evaluate", model, "--on", story, *options).out)
    assert (facts["context"], facts["stride"], facts["windows"]) == (10, 10, 56)


def test_no_model_is_the_newest_and_says_which(gpt2: Gpt2, tmp_path: Path, story: Path) -> None:
    folder = save(tmp_path / "gpt2-home" / "models" / "mine")
    outcome = gpt2("evaluate", "--on", story)
    assert outcome.code == 0 and outcome.err == f"model: {shown_path(folder)}\n"
    assert rows_of(outcome.out)[0]["model"] == str(folder)


def test_the_listing_for_a_missing_path_is_of_a_folder_that_exists(gpt2: Gpt2, model: Path) -> None:
    outcome = gpt2("evaluate", model, "--on", "notes/2024/*.jsonl")
    assert outcome.code == 3 and outcome.err.endswith("fix: ls -l .\n")


def test_a_byte_order_mark_is_not_text(gpt2: Gpt2, model: Path, story: Path, tmp_path: Path) -> None:
    marked = tmp_path / "marked.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + STORY.encode())
    plain, other = (json.loads(gpt2("evaluate", model, "--on", p, "--json").out) for p in (story, marked))
    assert plain["loss"] == other["loss"] and other["n_bytes"] == len(STORY)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--context", "25"], 2, "error: --context is 25"),
        (["--stride", "25"], 2, "error: --stride 25 is larger than the context, 24"),
        (["--stride", "0"], 2, "error: --stride: invalid value"),
        (["--batch", "0"], 2, "error: --batch: invalid value"),
        (["--on", "absent.txt"], 3, "error: absent.txt: neither a file nor a known corpus"),
        (["--on", "short.txt"], 3, "error: short.txt: has 1 tokens"),
        (["--on", "empty.txt"], 3, "error: empty.txt: has 0 tokens"),
        (["--on", "latin1.txt"], 3, "error: latin1.txt: not UTF-8 at byte 3"),
        (["--on", "nul.txt"], 3, "error: nul.txt: a NUL byte at byte 2"),
        (["--on", "unknown.txt"], 3, "error: character 'Z' (U+005A) at position 0"),
        (["--on", "wikitext-2-test", "--offline"], 5, "error: wikitext-2-test: cannot be downloaded"),
        (["--device", "abacus"], 2, "error: --device: invalid value"),
        (["absent"], 3, "error: absent: no such model"),
    ],
)
def test_what_cannot_be_measured_is_said(
    gpt2: Gpt2,
    model: Path,
    story: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.delenv("GPT2_MIRROR", raising=False)
    for name, content in {
        "short.txt": b"T",
        "empty.txt": b"",
        "latin1.txt": b"The\xe9 story",
        "nul.txt": b"Th\0 story",
        "unknown.txt": b"Zebra",
    }.items():
        (tmp_path / name).write_bytes(content)
    outcome = gpt2("evaluate", model, *(() if "--on" in arguments else ("--on", story)), *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(message) and len(outcome.err.splitlines()) <= 4


def test_the_last_models_mistake_is_said_before_the_first_is_measured(
    gpt2: Gpt2, model: Path, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = save(tmp_path / "narrow", n_positions=8)
    monkeypatch.setattr(perplexity, "measure_perplexity", lambda *_: pytest.fail("measured"))
    outcome = gpt2("evaluate", model, narrow, "--on", story, "--context", "20")
    assert outcome.code == 2 and "this model's context ends at 8" in outcome.err


def test_each_model_is_loaded_once_and_each_vocabulary_reads_the_text_once(
    gpt2: Gpt2, model: Path, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [model, save(tmp_path / "second"), save(tmp_path / "bytes", gpt2_tokenizer())]
    loaded, read = [], []
    load, encode = opening.open_model, eval_text.encode_documents
    monkeypatch.setattr(
        opening, "open_model", lambda folder, *more: loaded.append(folder) or load(folder, *more)
    )
    monkeypatch.setattr(
        eval_text, "encode_documents", lambda texts, t, name: read.append(t.name) or encode(texts, t, name)
    )
    assert gpt2("evaluate", *folders, "--on", story).code == 0
    assert (loaded, read) == (folders, ["chars", "gpt2"])


def test_an_adapter_is_measured_with_its_base(gpt2: Gpt2, tmp_path: Path, story: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, Lora())
    story.write_text(base.tokenizer.decode(range(1, 6)) * 9)
    outcome = gpt2("evaluate", base.folder, tmp_path / "adapter", "--on", story)
    assert outcome.code == 0, outcome.err
    plain, adapted = rows_of(outcome.out)
    assert plain["tokens"] == adapted["tokens"] and plain["loss"] != adapted["loss"]


def test_a_vocabulary_that_does_not_fit_is_said_before_any_weights_are_read(
    gpt2: Gpt2, model: Path, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save(tmp_path / "other")
    (other / "manifest.json").unlink()
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    monkeypatch.setattr(opening, "open_model", lambda _: pytest.fail("loaded"))
    outcome = gpt2("evaluate", model, other, "--on", story)
    assert outcome.code == 3 and "tokens, the model 99" in outcome.err


def test_scores_that_are_not_finite_exit_6_after_what_was_measured(
    gpt2: Gpt2, model: Path, story: Path, tmp_path: Path
) -> None:
    spoiled = save(tmp_path / "spoiled", spoiled=True)
    outcome = gpt2("evaluate", model, spoiled, "--on", story)
    assert outcome.code == 6 and "logits are not finite" in outcome.err
    assert [row["model"] for row in rows_of(outcome.out)] == [str(model)]


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short text in the place of WikiText-2's, with its hash known, and a small model as the 124M one."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    text = " = Robert <unk> = \n He had a guest @-@ starring role , once .\n" * 3
    (folder / "wikitext-2-test.txt").write_text(text)
    corpus = replace(CORPORA["wikitext-2-test"], sha256=sha256(text.encode()).hexdigest())
    monkeypatch.setitem(CORPORA, corpus.name, corpus)
    monkeypatch.setenv("GPT2_MIRROR", str(folder))
    small = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=24)
    monkeypatch.setitem(PRESETS, "124M", small)


@pytest.mark.usefixtures("mirror")
def test_the_papers_figure_stands_beside_ours_on_its_text_alone(
    gpt2: Gpt2, tmp_path: Path, story: Path
) -> None:
    shaped, other = save(tmp_path / "shaped", gpt2_tokenizer()), save(tmp_path / "o", n_layer=1)
    save(tmp_path / "third", gpt2_tokenizer(), n_layer=1)
    outcome = gpt2("evaluate", shaped, "third")
    assert outcome.code == 0, outcome.err
    assert [row["paper"] for row in rows_of(outcome.out)] == ["29.41", "-"]
    assert "invertible de-tokenizers" in outcome.err and len(outcome.err.splitlines()) == 1
    facts = json.loads(gpt2("evaluate", shaped, "--json").out)
    assert (facts["on"], facts["paper_perplexity"]) == ("wikitext-2-test", 29.41)
    elsewhere = gpt2("evaluate", shaped, other, "--on", story)
    assert elsewhere.err == "" and all("paper" not in row for row in rows_of(elsewhere.out))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_states_what_is_partial_and_keeps_what_is_whole(
    gpt2: Gpt2,
    model: Path,
    story: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    second, real = save(tmp_path / "second"), perplexity.measure_perplexity

    def interrupted(loaded: GPT2LMHead, *others: Any) -> Iterator[PerplexityProgress]:
        n_models.append(loaded)
        for n_steps, step in enumerate(real(loaded, *others), 1):
            yield step
            if (len(n_models), n_steps) == (2, 3):
                os.kill(os.getpid(), number)

    n_models: list[GPT2LMHead] = []
    monkeypatch.setattr(perplexity, "measure_perplexity", interrupted)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    exit_on_signals()  # as main() does
    try:
        outcome = gpt2("evaluate", model, second, "--on", story, "--batch", "1")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert outcome.code == code
    assert [row["model"] for row in rows_of(outcome.out)] == [str(model)]
    assert outcome.err.startswith(f"partial: {second}: 48 of 552 tokens: loss ")
    assert len(outcome.err.splitlines()) == 1
