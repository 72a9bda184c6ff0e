"""`gpt2 generate` as a person and as a script meet it, on models that say a given text."""

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from speaking import CONTEXT, save_model_that_says
from words import WORDS

from gpt2cli.cli import app
from gpt2cli.generation.sampling import SamplingOptions
from gpt2cli.paths import shown_path
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.chars import Chars

HOSTILE = "a\x1b[2Jb\x1b]52;c;aGk=\x07c\rd\x08e\x9bf\u202eg😂"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `gpt2 generate` on a model that says `text`; gives exit code, stdout and stderr."""

    def run(text: str, *arguments: str, tokenizer: Tokenizer = WORDS) -> tuple[int, str, str]:
        folder = tmp_path / "model"
        if not folder.exists():
            save_model_that_says(folder, text, tokenizer)
        defaults = ["--model", str(folder), "--temperature", "0", "--threads", "1"]
        code = app.run(["generate", *defaults, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


Say = Callable[..., tuple[int, str, str]]


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_stdout_is_the_continuation_and_a_line_feed(say: Say) -> None:
    assert say("said by the model", "") == (
        0,
        "said by the model\n",
        "the prompt is empty: starting from <|endoftext|>\n",
    )


def test_the_prompt_takes_its_places(say: Say) -> None:
    code, out, err = say(" one two three four", " zero zero")
    assert (code, out, err) == (0, " two three four\n", "")  # two tokens of prompt, so from place 1


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_nothing_that_steers_a_terminal_comes_out(say: Say, stream: str) -> None:
    code, out, _ = say(HOSTILE, "", stream)
    assert code == 0
    assert out == "a␛[2Jb␛]52;c;aGk=␇c␍d␈e<U+009B>f<U+202E>g😂\n"


def test_raw_is_exact_in_a_pipe(say: Say) -> None:
    assert say(HOSTILE, "", "--raw")[:2] == (0, HOSTILE)


def test_raw_is_refused_on_a_terminal(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = say("text", "", "--raw")
    assert (code, out) == (2, "")
    assert "--raw is for" in err and "take over a terminal" in err


def test_raw_and_json_exclude_each_other(say: Say) -> None:
    code, out, err = say("text", "", "--raw", "--json")
    assert (code, out) == (2, "")
    assert "--raw is for" in err and "--json escapes" in err


def test_json_has_all_that_a_script_needs(say: Say, tmp_path: Path) -> None:
    code, out, err = say(HOSTILE, " zero", "--json", "--seed", "7")
    value = json.loads(out)
    assert code == 0 and err == "" and out.isascii() and out.count("\n") == 1
    assert value.pop("tokens_per_second") > 0
    assert value == {
        "text": HOSTILE,
        "ids": WORDS.encode(HOSTILE),
        "finish_reason": "end_of_text",
        "prompt_tokens": 1,
        "model": str(tmp_path / "model"),
        "seed": 7,
        "sample": 1,
    }


def test_length_and_stop_are_told_apart(say: Say) -> None:
    def reason(*arguments: str) -> tuple[str, str]:
        value = json.loads(say(" one two three four", "", "--json", *arguments)[1])
        return value["text"], value["finish_reason"]

    assert reason("--max-new-tokens", "2") == (" one two", "length")
    assert reason("--stop", "o t", "--stop", "four") == (" one tw", "stop")
    assert reason() == (" one two three four", "end_of_text")


def test_several_samples_are_made_together_and_shown_in_turn(say: Say) -> None:
    code, out, err = say("first\x1b", "", "--num-samples", "3")
    assert (code, out) == (0, "first␛\n" * 3)
    assert err.splitlines()[1:] == ["--- 1/3 ---", "--- 2/3 ---", "--- 3/3 ---"]


def test_samples_in_json_are_a_line_each_and_repeat_with_the_seed(say: Say) -> None:
    wild = [
        "",
        "--json",
        "--num-samples",
        "3",
        "--temperature",
        "9",
        "--top-k",
        "0",
        "-n",
        "8",
        "--seed",
        "3",
    ]
    first, again = say("text", *wild)[1], say("text", *wild)[1]
    values = [json.loads(line) for line in first.splitlines()]
    assert [value["sample"] for value in values] == [1, 2, 3]
    assert len({value["text"] for value in values}) == 3
    assert [v["ids"] for v in values] == [json.loads(line)["ids"] for line in again.splitlines()]
    alone = [argument if argument != "3" else "1" for argument in wild[:4]] + wild[4:]
    assert json.loads(say("text", *alone)[1])["ids"] == values[0]["ids"]


def test_min_p_of_one_leaves_the_likeliest_token_alone(say: Say) -> None:
    wild = ["", "--json", "--temperature", "9", "--top-k", "0", "--seed", "4", "-n", "8"]
    greedy = json.loads(say("text", "", "--json", "--temperature", "0", "-n", "8")[1])["ids"]
    assert json.loads(say("text", *wild, "--min-p", "1")[1])["ids"] == greedy
    assert json.loads(say("text", *wild)[1])["ids"] != greedy


def test_without_a_seed_chance_decides_and_is_recorded(say: Say) -> None:
    wild = ["", "--json", "--temperature", "9", "--top-k", "0", "-n", "8"]
    first, second = (json.loads(say("text", *wild)[1]) for _ in range(2))
    assert first["ids"] != second["ids"]
    assert json.loads(say("text", *wild, "--seed", str(first["seed"]))[1])["ids"] == first["ids"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "--temperature is -1.0"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--top-p", "0"], "--top-p is 0.0"),
        (["--top-k", "-1"], "--top-k is -1"),
        (["--min-p", "1.5"], "--min-p is 1.5"),
        (["--repetition-penalty", "0"], "--repetition-penalty is 0.0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--num-samples", "0"], "--num-samples"),
        (["--stop", ""], "--stop is empty"),
        (["--device", "abacus"], "--device"),
        (["--precision", "fp3"], "--precision"),
    ],
)
def test_options_that_mean_nothing_are_usage_errors(say: Say, arguments: list[str], message: str) -> None:
    code, out, err = say("text", "go", *arguments)
    assert (code, out) == (2, "")
    assert f"error: {message}" in err


def test_top_k_over_the_vocabulary_is_clamped(say: Say) -> None:
    assert say("fine", "", "--top-k", "999999", "--temperature", "0.001")[:2] == (0, "fine\n")


def test_stdin_is_the_prompt_without_its_last_line_feed(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    for data, arguments in ((b" zero zero\n", []), (b" zero zero\r\n", ["-"]), (b" zero zero", ["-"])):
        pipe_in(monkeypatch, data)
        value = json.loads(say("a", *arguments, "--json")[1])
        assert value["prompt_tokens"] == 2


def test_what_is_not_utf8_on_stdin_is_replaced(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"lone \xed\xa0\x80 surrogate")
    code, out, _ = say("a", "--json")
    assert code == 0
    assert json.loads(out)["prompt_tokens"] == len(WORDS.encode("lone ��� surrogate"))


def test_a_lone_surrogate_in_the_argument_is_replaced(say: Say) -> None:
    assert say("a", "lone \udc80", "--json")[0] == 0


def test_an_empty_stdin_starts_from_the_start_token(say: Say) -> None:
    code, out, err = say("text")
    assert (code, out) == (0, "text\n")
    assert "starting from <|endoftext|>" in err


def test_a_file_is_the_prompt(say: Say, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbf zero zero\r\n")
    assert json.loads(say("a", "--file", "p.txt", "--json")[1])["prompt_tokens"] == 2


def test_files_that_are_no_prompt_are_refused(say: Say, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "utf16").write_bytes("text".encode("utf-16"))
    (tmp_path / "nul").write_bytes(b"ab\0c")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in {
        "fifo": "not a regular file",
        "latin": "latin: not UTF-8 at byte 2",
        "utf16": "utf16: not UTF-8 at byte 0",
        "nul": "nul: a NUL byte at byte 2",
        "loop": "loop: ",
        "missing": "missing: ",
        ".": "a directory",
        "/dev/zero": "not a regular file",
    }.items():
        code, out, err = say("a", "--file", name)
        assert (code, out) == (3, ""), name
        assert message in err


def test_two_prompts_are_a_usage_error(say: Say) -> None:
    code, _, err = say("a", "one", "--file", "two")
    assert code == 2
    assert "error: there are two prompts" in err


def test_an_overlong_prompt_is_an_error_with_the_limit_or_a_stated_cut(say: Say) -> None:
    prompt = " zero" * (CONTEXT + 6)
    code, out, err = say("a b c", prompt)
    assert (code, out) == (3, "")
    assert f"the prompt has {CONTEXT + 6} tokens" in err
    assert f"context holds {CONTEXT}" in err and "--truncate" in err
    code, out, err = say("a b c", prompt, "--truncate", "--json", "-n", "2")
    assert code == 0
    assert json.loads(out)["prompt_tokens"] == CONTEXT
    assert "the first 6 are dropped" in err


def test_a_prompt_of_a_megabyte_is_answered_quickly(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (b"word " * 200_000, b"a" * 1_000_000, "😂".encode() * 250_000):
        pipe_in(monkeypatch, text)
        start = time.perf_counter()
        code, _, err = say("a", "-")
        assert code == 3 and f"context holds {CONTEXT}" in err
        assert time.perf_counter() - start < 20


def test_an_endless_pipe_is_refused(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2cli.cli.options.LONGEST_PROMPT", 1000)
    pipe_in(monkeypatch, b"y\n" * 501)
    code, _, err = say("a", "-")
    assert code == 3
    assert "error: the prompt is longer than 64 MiB" in err


def test_the_moved_window_is_said_once(say: Say) -> None:
    code, _, err = say(" word" * CONTEXT, " zero", "-n", "200")
    assert code == 0
    assert err.count("the context is full: continuing from its last half") == 1


def test_scores_that_are_not_finite_exit_6(say: Say, tmp_path: Path) -> None:
    folder = save_model_that_says(tmp_path / "model", "text")
    weights = folder / "model.safetensors"
    (folder / "manifest.json").unlink()
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["transformer.ln_f.bias"][0] = float("nan")
    save_file(tensors, weights, {"format": "pt"})
    code, out, err = say("text", "go")
    assert (code, out) == (6, "")
    assert "logits are not finite" in err


def test_a_tokenizer_of_another_model_is_refused(say: Say, tmp_path: Path) -> None:
    folder = save_model_that_says(tmp_path / "model", "abc", Chars.from_text("abc"))
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 9}))
    code, out, err = say("", "a")
    assert (code, out) == (3, "")
    assert "the tokenizer has 4 tokens, the model 9" in err


def test_a_classifier_is_refused(say: Say, tmp_path: Path) -> None:
    folder = save_model_that_says(tmp_path / "model", "text")
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["GPT2ForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    code, out, err = say("text", "go")
    assert (code, out) == (3, "")
    assert "GPT2ForSequenceClassification, not a language model" in err and "gpt2 generate --model" in err
    assert "gpt2 classify" in err


def test_an_unseen_character_is_named(say: Say) -> None:
    code, out, err = say("abc", "aéb", tokenizer=Chars.from_text("abc"))
    assert (code, out) == (3, "")
    assert "U+00E9" in err


def test_a_character_model_writes_characters(say: Say) -> None:
    assert say("cabbage", "", tokenizer=Chars.from_text("cabge"))[:2] == (0, "cabbage\n")


def test_the_newest_model_is_taken_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["generate", "go"]) == 3
    assert "no model here yet" in capsys.readouterr().err
    save_model_that_says(tmp_path / "home" / "models" / "old", "old")
    newest = save_model_that_says(tmp_path / "home" / "models" / "new", "new")
    os.utime(newest.parent / "old", (1, 1))
    assert app.run(["generate", "", "-t", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "new\n"
    assert f"model: {shown_path(newest)}\n" in captured.err
    classifier = tmp_path / "home" / "models" / "classifier"  # newer, and no language model
    shutil.copytree(newest, classifier)
    config = json.loads((classifier / "config.json").read_text())
    config["architectures"] = ["GPT2ForSequenceClassification"]
    (classifier / "config.json").write_text(json.dumps(config))
    os.utime(newest, (2, 2))
    assert app.run(["generate", "", "-t", "0"]) == 0
    assert capsys.readouterr().out == "new\n"


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_every_precision_writes_the_text(say: Say, precision: str) -> None:
    assert say(" one two three", "", "--precision", precision)[:2] == (0, " one two three\n")


def test_the_defaults_in_the_help_are_those_of_decoding(capsys: pytest.CaptureFixture[str]) -> None:
    from typing import get_args

    from gpt2cli.cli import options

    decoding = SamplingOptions()
    for name, option in {
        "temperature": options.TemperatureOption,
        "top_k": options.TopKOption,
        "top_p": options.TopPOption,
        "min_p": options.MinPOption,
        "repetition_penalty": options.RepetitionPenaltyOption,
    }.items():
        assert get_args(option)[1].show_default == str(getattr(decoding, name))
