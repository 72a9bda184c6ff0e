"""`gpt2 score`: the log-probability of each line, against transformers."""

import io
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from inspected import CHARS, save

from gpt2cli.checkpoints.folder import load_model
from gpt2cli.errors import DivergedError
from gpt2cli.evaluation.scoring import score_texts
from gpt2cli.runtime import choose_runtime

Gpt2 = Callable[..., Any]
LINES = ["the cat", "a", "", "sat on the mat " * 4, "zzz", "of the quick brown fox " * 9]  # the last: 207 ids
CONTEXT = 80


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model")


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


@torch.no_grad()
def theirs(model: Path, text: str) -> list[float]:
    """One id after another, from at most as many before it as the windows of half a context give."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    ids = [CHARS.end_of_text, *CHARS.encode(text)]
    found = []
    for target in range(1, len(ids)):
        n_moved = max(0, math.ceil((target - CONTEXT) / (CONTEXT // 2)))
        seen = torch.tensor([ids[n_moved * CONTEXT // 2 : target]])
        found.append(reference(seen).logits[0, -1].double().log_softmax(-1)[ids[target]].item())
    return found


def test_a_number_per_line(gpt2: Gpt2, model: Path, lines: Path) -> None:
    done = gpt2("score", lines, "--model", model)
    assert (done.code, done.err) == (0, "")
    wanted = [sum(theirs(model, text)) for text in LINES]
    assert [float(line) for line in done.out.splitlines()] == pytest.approx(wanted, abs=1e-3)
    assert wanted[3] < -10, "numbers this small would hide mistakes"


def test_json_has_tokens_and_perplexity(gpt2: Gpt2, model: Path, lines: Path) -> None:
    done = gpt2("score", lines, "--model", model, "--json")
    for line, text in zip(done.out.splitlines(), LINES, strict=True):
        found, each = json.loads(line), theirs(model, text)
        assert (found.pop("text"), found.pop("tokens")) == (text, len(each))
        assert found.pop("logprob") == pytest.approx(sum(each), abs=1e-4 * max(len(each), 1))
        perplexity = found.pop("perplexity")
        assert perplexity == (pytest.approx(math.exp(-sum(each) / len(each)), rel=1e-4) if each else None)
        assert not found


def test_evaluate_finds_the_same_perplexity(gpt2: Gpt2, model: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(LINES[-1], encoding="utf-8")
    scored = json.loads(gpt2("score", "one.txt", "--model", model, "--json").out)
    evaluated = json.loads(gpt2("evaluate", model, "--on", "one.txt", "--json").out)
    assert scored["perplexity"] == pytest.approx(evaluated["perplexity"], rel=1e-6)
    assert scored["tokens"] == evaluated["n_tokens"]


def test_stdin_gives_what_the_file_gives(
    gpt2: Gpt2, model: Path, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = gpt2("score", lines, "--model", model).out
    read, write = os.pipe()
    os.write(write, lines.read_bytes())
    os.close(write)
    with open(read, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
        assert gpt2("score", "-", "--model", model).out == wanted


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        (["--encoding", "latin-1"], 3, "U+00E9"),  # a character model says what it was given
        ([], 3, "U+FFFD"),
        (["--encoding", "utf-8"], 3, "line 1 of standard input"),
        (["--encoding", "utf-16"], 2, "iconv -f utf-16 -t utf-8"),
    ],
)
def test_stdin_is_in_the_encoding_that_is_named(
    gpt2: Gpt2, model: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], code: int, said: str
) -> None:
    Path("bytes.txt").write_bytes(b"the caf\xe9\n")
    with open("bytes.txt", encoding="latin-1") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        done = gpt2("score", "-", "--model", model, *typed)
    assert done.code == code and said in done.err


def test_an_unknown_character_is_named_with_its_line(gpt2: Gpt2, model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("the cat\nthe CAT\n", encoding="utf-8")
    done = gpt2("score", "bad.txt", "--model", model)
    assert done.code == 3 and "bad.txt:2: " in done.err
    missing = gpt2("score", "nowhere.txt", "--model", model)
    assert (missing.code, missing.out) == (3, "") and "nowhere.txt" in missing.err


def test_texts_get_in_a_batch_what_they_get_alone(model: Path) -> None:
    loaded, runtime = load_model(model), choose_runtime("cpu")
    rows = [[CHARS.end_of_text, *CHARS.encode(text)] for text in LINES]
    alone = [next(score_texts(loaded.model, [row], runtime)) for row in rows]
    for one, among_others in zip(alone, score_texts(loaded.model, rows, runtime), strict=True):
        assert among_others == pytest.approx(one, abs=1e-5)
    with torch.no_grad():
        loaded.model.transformer.h[1].mlp.c_fc.bias[3] = math.nan
    with pytest.raises(DivergedError):
        next(score_texts(loaded.model, rows, runtime))
