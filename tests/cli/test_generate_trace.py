"""`gpt2 generate --trace` and `--logprobs`: what the sampler saw, beside transformers."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from inspected import CHARS, save
from speaking import save_model_that_says

from gpt2cli.cli import app

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _empty_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))


@pytest.fixture
def sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `gpt2 generate` on a small model with random weights."""
    folder = save(tmp_path / "random")

    def run(*arguments: str) -> tuple[int, str, str]:
        options = ("--model", str(folder), "--threads", "1", "--seed", "5", "-n", "6", "--top-p", "0.9")
        code = app.run(["generate", "the cat", *options, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_logprobs_are_those_of_transformers(sample: Say, tmp_path: Path) -> None:
    code, out, _ = sample("--json", "--logprobs", "--num-samples", "2")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "random").eval()
    prompt = CHARS.encode("the cat")
    assert code == 0 and len(out.splitlines()) == 2
    for line in out.splitlines():
        value = json.loads(line)
        assert len(value["ids"]) > 2 and "trace" not in value
        ids = torch.tensor([*prompt, *value["ids"]])
        wanted = reference(ids[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        wanted = wanted.gather(1, ids[len(prompt) :, None])[:, 0]
        assert value["logprobs"] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_logprobs_belong_to_the_ids_that_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model_that_says(tmp_path / "model", " one two three four")
    options = ("--model", str(tmp_path / "model"), "--temperature", "0", "--threads", "1")

    def found(*arguments: str) -> dict[str, list[float]]:
        app.run(["generate", "", *options, "--json", "--logprobs", "--trace", *arguments])
        return json.loads(capsys.readouterr().out)

    for n, value in ((4, found()), (3, found("--stop", "hree"))):
        assert len(value["ids"]) == len(value["logprobs"]) == n
    assert [len(found()[name]) for name in ("ids", "trace")] == [4, 5]  # the last one ended the text


def test_logprobs_are_for_json(sample: Say) -> None:
    code, out, err = sample("--logprobs")
    assert (code, out) == (2, "") and "fix: gpt2 generate" in err and "--logprobs --json" in err


def test_a_trace_changes_no_text_and_goes_to_stderr(sample: Say) -> None:
    plain, traced = sample("--top-k", "7"), sample("--top-k", "7", "--trace")
    assert plain[:2] == traced[:2] and plain[2] == ""
    value = json.loads(sample("--top-k", "7", "--trace", "--json")[1])
    assert value["text"] + "\n" == plain[1]
    ended = [CHARS.end_of_text] * (value["finish_reason"] == "end_of_text")
    assert [choice["id"] for choice in value["trace"]] == [*value["ids"], *ended]
    assert {tuple(choice["stages"]) for choice in value["trace"]} == {
        ("model", "top_k", "temperature", "top_p")
    }
    lines = traced[2].splitlines()
    titles = [line for line in lines if line.startswith("token ")]
    drawn = [line.split() for line in lines if line.startswith("*")]
    assert len(titles) == len(drawn) and [int(row[1]) for row in drawn] == [*value["ids"], *ended]
    for row, choice in zip(drawn, value["trace"], strict=True):
        (one,) = (c for c in choice["candidates"] if c["id"] == choice["id"])
        assert row[-4:] == [f"{p:.2%}" for p in one["probabilities"]]
