"""`gpt2 chat` through a pipe, as a script meets it; the terminal has a file of its own."""

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loud import loud
from speaking import save_model_that_says
from words import WORDS

from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.cli import app
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.paths import shown_path
from gpt2cli.templates import TEMPLATES, Turn, prompt_ids, write_template
from gpt2cli.tokenizer.chars import Chars

CONTEXT = 128
MODE = "a base model, not fine-tuned for chat: it continues the text (continuation mode)\n"
HOSTILE = "a\x1b[2Jb\x1b]52;c;aGk=\x07c\rd\x08e\x9bf\u202eg😂"
VISIBLE = "a␛[2Jb␛]52;c;aGk=␇c␍d␈e<U+009B>f<U+202E>g😂"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """What --threads sets is the process's own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of the same random weights: `base`, and `taught`, which has the chat template."""
    root = tmp_path_factory.mktemp("models")
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=CONTEXT, vocab_size=WORDS.n_vocab)
    model = loud(new_model(config, seed=1))
    for name in ("base", "taught"):
        (root / name).mkdir()
        hashes = write_model(root / name, model, WORDS, "task: pretrain\n")
        if name == "taught":
            hashes |= write_template(root / name, "chat", WORDS)
        write_manifest(root / name, hashes)
    return root


Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chat(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Pipe lines into `gpt2 chat`; gives exit code, stdout and stderr."""

    def run(folder: Path, lines: str | bytes, *arguments: str) -> tuple[int, str, str]:
        data = lines.encode() if isinstance(lines, str) else lines
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capsys.readouterr()
        code = app.run(["chat", str(folder), "--threads", "1", "--seed", "1", "-n", "8", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def turns(chat: Chat, models: Path) -> Callable[..., list[dict[str, Any]]]:
    """The objects that --json prints, from the model with a template."""

    def run(lines: str | bytes, *arguments: str, model: str = "taught") -> list[dict[str, Any]]:
        code, out, _ = chat(models / model, lines, "--json", *arguments)
        assert code == 0
        return [json.loads(line) for line in out.splitlines()]

    return run


Turns = Callable[..., list[dict[str, Any]]]


def test_a_line_is_a_turn_and_a_reply_ends_with_a_line_feed(chat: Chat, tmp_path: Path) -> None:
    folder = save_model_that_says(tmp_path / "model", " one two three")
    # After the two tokens of the question the model is at place 1.
    assert chat(folder, " zero zero\n", "-t", "0") == (0, " two three\n", MODE)
    code, out, err = chat(folder, "\n \r\n zero\r\n\n zero", "-t", "0", "-n", "1")
    assert (code, out, err) == (0, " one\n three\n", MODE)


def test_a_model_with_a_template_is_asked_in_it(turns: Turns, chat: Chat, models: Path) -> None:
    assert chat(models / "taught", "Hi!\n")[2] == ""
    turn = turns("Hi!\n", "--system", "Be brief.")[0]
    asked = [Turn("system", "Be brief."), Turn("user", "Hi!")]
    assert turn["prompt_tokens"] == len(prompt_ids(TEMPLATES["chat"], asked, WORDS))


def test_json_has_all_that_a_script_needs(chat: Chat, tmp_path: Path) -> None:
    folder = save_model_that_says(tmp_path / "model", HOSTILE)
    code, out, err = chat(folder, "a\n", "--json", "-t", "0", "--seed", "7", "-n", "50")
    value = json.loads(out)
    assert (code, err) == (0, MODE) and out.isascii() and out.count("\n") == 1
    assert value.pop("tokens_per_second") > 0
    assert value == {
        "reply": HOSTILE,
        "finish_reason": "end_of_text",
        "prompt_tokens": 1,
        "prefilled_tokens": 1,
        "new_tokens": len(WORDS.encode(HOSTILE)),
        "dropped_turns": 0,
        "turn": 1,
        "seed": 7,
    }


def test_nothing_that_steers_a_terminal_comes_out(chat: Chat, tmp_path: Path) -> None:
    folder = save_model_that_says(tmp_path / "model", HOSTILE)
    assert chat(folder, "a\n", "-t", "0", "-n", "50")[:2] == (0, f"{VISIBLE}\n")


def test_an_emoji_comes_whole_and_a_dangling_tail_is_replaced(chat: Chat, tmp_path: Path) -> None:
    folder = save_model_that_says(tmp_path / "model", "😂🎉")
    n_tokens = len(WORDS.encode("😂🎉"))
    assert chat(folder, "a\n", "-t", "0")[1] == "😂🎉\n"
    assert chat(folder, "a\n", "-t", "0", "-n", str(n_tokens - 1))[1] == "😂\ufffd\n"


def test_undo_leaves_no_trace_and_retry_asks_with_other_chance(turns: Turns) -> None:
    def replies(lines: str) -> list[str]:
        return [turn["reply"] for turn in turns(lines)]

    plain = replies("one\ntwo\n")
    assert replies("one\nnever\n/undo\ntwo\n")[2] == plain[1]
    assert replies("one\n/clear\none\ntwo\n")[2] == plain[1]
    again = replies("one\n/retry\n!retry\n")
    assert len(set(again)) == 3 and again[0] == plain[0]
    assert replies("one\n/retry\n/retry\n") == again
    assert [turn["turn"] for turn in turns("one\n/retry\ntwo\n")] == [1, 1, 2]


def test_the_context_fills_and_the_oldest_turns_go(turns: Turns, chat: Chat, models: Path) -> None:
    lines = "a question of some length, asked again and again\n" * 12
    code, out, err = chat(models / "taught", lines)
    assert code == 0 and out.count("\n") >= 12
    assert "the context is full: the oldest turn is dropped\n" in err
    asked = turns(lines)
    assert len(asked) == 12 and sum(turn["dropped_turns"] for turn in asked) >= 3
    assert all(turn["prompt_tokens"] + turn["new_tokens"] <= CONTEXT + 1 for turn in asked)


def test_a_message_that_is_too_long_is_said_and_the_next_line_read(chat: Chat, models: Path) -> None:
    for line in ("word " * 200, "a" * 1_000_000):
        code, out, err = chat(models / "taught", f"one\n{line}\ntwo\n", "--json")
        assert code == 3
        answers = [json.loads(line) for line in out.splitlines()]
        assert [(answer["turn"], "error" in answer) for answer in answers] == [(1, 0), (2, 1), (2, 0)]
        assert answers[1]["error"]["why"] == f"this model's context holds {CONTEXT}"
        n_tokens = len(prompt_ids(TEMPLATES["chat"], [Turn("user", line)], WORDS))
        assert f"error: the message has {n_tokens} tokens, " in err
        assert f"why: this model's context holds {CONTEXT}\n" in err


def test_a_line_without_end_is_bounded(chat: Chat, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2cli.cli.chat_loop.LONGEST_MESSAGE", 100)
    monkeypatch.setattr("gpt2cli.cli.chat.LONGEST_LINE", 1000)
    said = "error: a line on stdin is longer than 1 MiB\nwhy: no context is that long\nfix: shorten it\n"
    for length, n_answers in ((100, 3), (101, 2), (1000, 2)):
        long = (b"word " * 200)[:length]
        code, out, err = chat(models / "taught", b"one\n" + long + b"\ntwo\n", "--json", "-n", "2")
        assert (out.count('"reply"'), err) == (n_answers, said * (3 - n_answers))
        assert out.count("\n") == 3, "an object for each line"
        assert code == 3 * (3 - n_answers)
    code, out, err = chat(models / "taught", b"one\n" + b"a" * 5000, "--json", "-n", "2")
    assert (code, out.count('"reply"'), err) == (3, 1, said)


def test_what_is_not_utf8_is_replaced(turns: Turns) -> None:
    bad, good = (turns(line) for line in (b"a \xff\xed\xa0\x80 b\n", "a \ufffd\ufffd\ufffd\ufffd b\n"))
    assert [bad[0][key] for key in ("reply", "prompt_tokens")] == [
        good[0][key] for key in ("reply", "prompt_tokens")
    ]
    assert turns("a\n", "--system", "lone \udc80") != []
    assert turns(b"\xef\xbb\xbf/show\n") == []  # a byte order mark is no part of the first line


def test_the_end_of_stdin_is_a_clean_exit(chat: Chat, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chat(models / "taught", "") == (0, "", "")
    assert chat(models / "taught", "/exit\nnever read\n") == (0, "", "")
    monkeypatch.setattr(sys, "stdin", None)
    assert app.run(["chat", str(models / "taught")]) == 2


def test_a_reader_that_leaves_is_no_error(chat: Chat, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys.stdout, "write", gone)
    for arguments in ([], ["--json"]):
        code, _, err = chat(models / "taught", "one\ntwo\n", *arguments)
        assert (code, err) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    ("option", "value", "what", "why"),
    [
        ("temperature", "-1", "-1", "it must be 0 (greedy) or a positive number"),
        ("temperature", "nan", "nan", "it must be 0 (greedy) or a positive number"),
        ("top-p", "0", "0", "it must be above 0 and at most 1"),
        ("min-p", "2", "2", "it must be from 0 (every token) to 1"),
        ("top-k", "-1", "-1", "it must be 0 (every token) or a positive whole number"),
        ("repetition-penalty", "0", "0", "it must be a positive number"),
        ("seed", "-1", "-1", "it must be 0 or a positive whole number"),
        ("max-new-tokens", "0", "0", "it must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused_and_change_nothing(
    chat: Chat, models: Path, tmp_path: Path, option: str, value: str, what: str, why: str
) -> None:
    (tmp_path / "config.json").write_text("a model that cannot be loaded")
    code, out, err = chat(tmp_path, "one\n", f"--{option}", value)
    assert (code, out) == (2, "")
    assert f"error: --{option} is {what}" in err and f"why: {why}\n" in err
    name = option.replace("-", "_")
    code, _, err = chat(models / "taught", f"/show\n/set {name}={value}\n/show\n")
    before, message, after = err.partition(f"error: {name} is {what}\nwhy: {why}\nfix: /set {name}=VALUE\n")
    assert code == 2 and message and before == after


def test_a_system_text_that_leaves_no_room_is_refused_where_it_is_set(chat: Chat, models: Path) -> None:
    long = "word " * CONTEXT
    code, out, err = chat(models / "taught", "one\n", "--system", long)
    assert (code, out) == (3, "") and "error: the system text has " in err and "/system TEXT" in err
    code, out, err = chat(models / "taught", f"/system {long}\n/show\none\n")
    assert code == 3 and out.count("\n") == 1 and "system              none\n" in err


def test_a_model_without_a_template_goes_on_without_new_text(turns: Turns, chat: Chat, models: Path) -> None:
    both = turns("Once upon\n/continue\n/continue\n", "-t", "0", "-n", "3", model="base")
    whole = turns("Once upon\n", "-t", "0", "-n", "9", model="base")
    assert "".join(turn["reply"] for turn in both) == whole[0]["reply"]
    code, out, _ = chat(models / "taught", "/continue\n", "--json")
    assert code == 2 and "/continue" in json.loads(out)["error"]["what"]


def test_a_setting_holds_from_the_next_reply_on(turns: Turns) -> None:
    cold = turns("one\ntwo\n", "-t", "0", "-n", "3")
    warm = turns("/set temperature=0\n/set max_new_tokens 3\n/set top_k=999999\none\ntwo\n")
    assert [turn["reply"] for turn in warm] == [turn["reply"] for turn in cold]
    assert [turn["new_tokens"] for turn in warm] == [3, 3]


def test_scores_that_are_not_finite_exit_6(chat: Chat, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model_that_says(tmp_path / "model", "text")
    (folder / "manifest.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    code, out, err = chat(folder, "one\ntwo\n")
    assert (code, out) == (6, "")
    assert err.count("logits are not finite") == 1 and "gpt2 generate" not in err


def test_a_classifier_is_sent_to_classify(chat: Chat, tmp_path: Path) -> None:
    folder = save_model_that_says(tmp_path / "model", "text")
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["GPT2ForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    code, out, err = chat(folder, "hello\n")
    assert (code, out) == (3, "")
    assert "not a language model" in err and f"fix: gpt2 classify {folder}" in err


def test_a_character_that_a_model_does_not_know_is_named(chat: Chat, tmp_path: Path) -> None:
    folder = save_model_that_says(tmp_path / "model", "abcab", Chars.from_text("abc"))
    code, out, err = chat(folder, "aé\na\n", "-t", "0", "-n", "2")
    assert (code, out) == (3, "ab\n")
    assert "U+00E9" in err


def test_the_newest_model_is_taken_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n")))
    assert app.run(["chat"]) == 3
    assert "no model here yet" in capsys.readouterr().err
    folder = save_model_that_says(tmp_path / "gpt2-home" / "models" / "mine", "text")
    assert app.run(["chat", "-t", "0", "--threads", "1"]) == 0
    assert capsys.readouterr() == ("text\n", f"model: {shown_path(folder)}\n{MODE}")


def test_help_and_show_are_talk(chat: Chat, models: Path) -> None:
    lines = "/help\n/show\n//slash\n/system Be kind.\n/system -\n/system\n"
    code, out, err = chat(models / "taught", lines, "--json")
    assert code == 0 and out.count('"reply"') == 1  # to "/slash"
    for words in ("/undo ", "/save FILE [--force]", "template            chat\n", "top_k               40\n"):
        assert words in err
    assert f"turns               0\ncontext             0 of {CONTEXT} tokens\n" in err
    assert err.endswith("system prompt: Be kind.\nthere is no system prompt\nthere is no system prompt\n")


def test_slips_are_said_and_the_next_line_read(chat: Chat, models: Path) -> None:
    code, out, err = chat(models / "taught", "/udno\n/undo\n/retry\n/undo now\nhello\n")
    assert code == 2 and out.count("\n") == 1
    assert "error: there is no command '/udno'\nwhy: did you mean /undo?\n" in err
    assert err.count("error: there is no turn yet") == 2
    assert "error: /undo takes no argument" in err


def test_a_conversation_saved_goes_on_where_it_was(turns: Turns, tmp_path: Path) -> None:
    whole = turns("/system Be kind.\n/set top_k=7\none\ntwo\nthree\n")
    turns("/system Be kind.\n/set top_k=7\none\ntwo\n/save my chat.json\n")
    rest = turns("never\n/load my chat.json\nthree\n", "--seed", "9")
    assert rest[1]["reply"] == whole[2]["reply"]
    assert (rest[1]["turn"], rest[1]["seed"]) == (3, 1)
    assert list(tmp_path.glob("*.json")) == [tmp_path / "my chat.json"]


def test_loading_says_what_was_said_last_and_with_whom(chat: Chat, models: Path, tmp_path: Path) -> None:
    chat(models / "taught", "one\x1b two\n/save it.json\n")
    code, _, err = chat(models / "base", "/load it.json\n")
    assert code == 0
    assert f"loaded 1 turn from it.json\nthey are from {models / 'taught'}\n" in err
    assert "they used the template 'chat', this model has none\nthe last was: one␛ two\n" in err
    assert "they " not in chat(models / "base" / ".." / "taught", "/load it.json\n")[2]
    stored = json.loads((tmp_path / "it.json").read_text())
    (tmp_path / "it.json").write_text(json.dumps(stored | {"model": "a\0\x1b\nerror: b"}))
    assert "they are from a␀␛ error: b\n" in chat(models / "base", "/load it.json\n")[2]


def test_saving_never_overwrites_silently(chat: Chat, models: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    os.mkfifo(tmp_path / "fifo")
    for line, what in {
        "/save there": "there: already exists\nfix: /save there --force",
        "/save .": ".: is not a regular file",
        "/save fifo": "fifo: is not a regular file",
        "/save /dev/full": "/dev/full: is not a regular file",
        "/save none/here": "none: there is no such folder",
        "/save a\0b": "a file's name cannot hold a NUL byte",
    }.items():
        code, out, err = chat(models / "taught", line + "\n")
        assert (code, out) == (2, "") and f"error: {what}" in err, line
    assert (tmp_path / "there").read_text() == "mine"
    assert chat(models / "taught", "one\n/save there --force\n")[0] == 0
    assert json.loads((tmp_path / "there").read_text())["turns"][0]["question"] == "one"


def test_a_full_disk_costs_the_file_and_not_the_conversation(
    chat: Chat, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "old").write_text("mine")
    monkeypatch.setattr(os, "fsync", full)
    code, out, err = chat(models / "taught", "one\n/save new\n/save old --force\ntwo\n")
    assert code == 4 and out.count("\n") == 2
    assert err.count("the disk is full") == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"old", "gpt2-home"}
    assert (tmp_path / "old").read_text() == "mine"


def test_files_that_hold_no_conversation_are_refused(chat: Chat, models: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_bytes(b"\xff\xfe no JSON")
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "other").write_text('{"turns": []}')
    for name, what in {
        "fifo": "not a regular file",
        ".": "a directory",
        "missing": "missing: ",
        "text": "text: is not JSON",
        "deep": "deep: is not JSON",
        "other": "is not part of a saved conversation",
        "a\0b": "cannot hold a NUL byte",
    }.items():
        code, _, err = chat(models / "taught", f"one\n/load {name}\n/show\n")
        assert code == (2 if "\0" in name else 3) and what in err
        assert "turns               1\n" in err, "the conversation is as before"
    os.truncate("other", (64 << 20) + 1)
    assert "other: is larger than 64 MiB" in chat(models / "taught", "/load other\n")[2]
