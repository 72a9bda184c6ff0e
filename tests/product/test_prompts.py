"""`gpt2 generate --prompts`: each line gets what it would get alone, however the lines are batched."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_base import save_base
from tiny_run import Call, random_text

LINES = [
    *("the king", "", "a", "ROMEO: naive", "  spaces  ", "x" * 70, "the king"),
    *(random_text(n, seed=n) for n in (9, 30, 2)),
]


@pytest.fixture
def base(gpt2: Call) -> Path:
    return save_base(gpt2, Path("base"))


def texts_of(done: Any) -> list[list[str]]:
    assert done.code == 0, done.err
    return [json.loads(line)["texts"] for line in done.out.splitlines()]


@pytest.mark.parametrize("more", [["-t", "0"], ["--seed", "7", "--num-samples", "2"]])
def test_each_line_gets_what_it_gets_alone(gpt2: Call, base: Path, more: list[str]) -> None:
    options = ["-m", str(base), "-n", "6", *more]
    Path("prompts.txt").write_text("\n".join(LINES), encoding="utf-8")
    done = gpt2("generate", "--prompts", "prompts.txt", "--json", *options)
    facts = [json.loads(line) for line in done.out.splitlines()]
    assert [(one["line"], one["prompt"]) for one in facts] == list(enumerate(LINES, 1))
    for line, texts in zip(LINES, texts_of(done), strict=True):
        Path("one.txt").write_text(line, encoding="utf-8")
        alone = gpt2("generate", "--file", "one.txt", "--json", *options)
        assert [json.loads(one)["text"] for one in alone.out.splitlines()] == texts, line


def test_a_line_that_passes_the_context_goes_on_as_alone(gpt2: Call, base: Path) -> None:
    context = json.loads((base / "config.json").read_text())["n_positions"]
    lines = ["a b c", random_text(20, seed=3)]
    Path("prompts.txt").write_text("\n".join(lines))
    options = ["-m", str(base), "-n", str(context + 5), "-t", "0", "--json"]
    together = texts_of(gpt2("generate", "--prompts", "prompts.txt", *options))
    alone = [json.loads(gpt2("generate", line, *options).out)["text"] for line in lines]
    assert [texts[0] for texts in together] == alone


def test_a_prompt_longer_than_the_context_is_refused_before_any_work_or_cut(gpt2: Call, base: Path) -> None:
    random.seed(4)
    long = " ".join(random.choices("abcdefgh", k=3000))
    Path("prompts.txt").write_text(f"one\n{long}\n")
    options = ["--prompts", "prompts.txt", "-m", str(base), "-n", "2", "-t", "0"]
    refused = gpt2("generate", *options)
    assert (refused.code, refused.out) == (3, "") and "prompts.txt:2" in refused.err
    assert "--truncate" in refused.err
    assert len(texts_of(gpt2("generate", *options, "--truncate", "--json"))) == 2


def test_texts_are_told_apart_without_json(gpt2: Call, base: Path) -> None:
    Path("prompts.txt").write_text("one\ntwo\n")
    done = gpt2("generate", "--prompts", "prompts.txt", "-m", str(base), "-n", "3", "--num-samples", "2")
    headings = [line for line in done.out.splitlines() if line.startswith("--- ")]
    assert headings == ["--- 1 (1/2): one", "--- 1 (2/2): one", "--- 2 (1/2): two", "--- 2 (2/2): two"]


def test_lines_from_a_pipe_are_answered_as_they_arrive(base: Path) -> None:
    command = [sys.executable, "-m", "gpt2cli", "generate", "--prompts", "-", "--json"]
    process = subprocess.Popen(
        [*command, "-m", str(base), "-n", "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    for number, text in enumerate(("one", "zwei", ""), 1):
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert (answer["line"], answer["prompt"]) == (number, text)
    process.stdin.close()
    assert process.wait(60) == 0 and process.stdout.read() == ""


@pytest.mark.parametrize("more", [["a prompt"], ["--file", "x.txt"], ["--json", "--logprobs"], ["--trace"]])
def test_what_does_not_go_with_it_is_refused(gpt2: Call, base: Path, more: list[str]) -> None:
    assert gpt2("generate", "--prompts", "prompts.txt", "-m", str(base), *more).code == 2
