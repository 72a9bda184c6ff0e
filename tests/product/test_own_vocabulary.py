"""A vocabulary of one's own, from `gpt2 tokenizer train` to a chat and an export, and what a resume needs."""

import io
import json
import math
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from own_texts import TEXTS, russian, some_texts
from tiny_run import PRETRAIN, Call, all_events, events, random_text, rewound, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt2cli.data.token_dataset import open_dataset
from gpt2cli.tokenizer.files import load_tokenizer

FOLDER = "tokenizers/mine"
OWN: dict[str, Any] = {
    **PRETRAIN,
    "data": {"source": "own.txt", "tokenizer": FOLDER, "validation": 0.2},
    "optim": {"steps": 10, "lr": 1e-2},
}
TEXT = russian(300, 1)


@pytest.fixture
def own(gpt2: Call) -> Path:
    Path("own.txt").write_text(TEXT, encoding="utf-8")
    outcome = gpt2("tokenizer", "train", "own.txt", "--size", "400", "--out", FOLDER)
    assert outcome.code == 0, outcome.err
    return Path(FOLDER)


def same_tokenizer(one: Path, other: Path) -> bool:
    return load_tokenizer(one).fingerprint == load_tokenizer(other).fingerprint


def test_a_run_takes_a_folder_and_keeps_a_copy(own: Path, gpt2: Call) -> None:
    recipe = {**OWN, "checkpoint": {"every": 4, "keep": 9}}
    run = train(gpt2, recipe, "whole")
    assert json.loads((run / "last" / "config.json").read_text())["vocab_size"] == 400
    assert same_tokenizer(run / "last", own)
    ids = AutoTokenizer.from_pretrained(run / "last").encode(TEXT[:500])
    assert ids == load_tokenizer(own).encode(TEXT[:500])
    cut = rewound(run, "cut", 4)
    shutil.move(own, "elsewhere")
    train(gpt2, recipe, "cut", "--resume")
    assert all_events(cut) == all_events(run)
    assert gpt2("generate", "Анна", "--model", run, "--max-new-tokens", "3").code == 0
    said = gpt2("pretrain", "whole.yaml", "--name", "new")
    assert said.code == 2 and f"data.tokenizer: {FOLDER}" in said.err
    assert gpt2(*shlex.split(said.err.rpartition("fix: gpt2 ")[2].replace("TEXT.txt", "own.txt"))).code == 0
    assert gpt2("pretrain", "whole.yaml", "--name", "new", "optim.steps=1").code == 0


def test_a_resume_with_another_vocabulary_in_the_folder_is_refused(own: Path, gpt2: Call) -> None:
    train(gpt2, OWN, "run", "optim.steps=2")
    assert gpt2("tokenizer", "train", "own.txt", "--size", "300", "--out", FOLDER, "--force").code == 0
    refused = gpt2("pretrain", "run.yaml", "--name", "run", "--resume", "optim.steps=3")
    assert refused.code == 3 and "vocabulary: " in refused.err


def test_prepared_with_it_is_trained_with_it(own: Path, gpt2: Call) -> None:
    """`prepare --tokenizer FOLDER`, then `pretrain` on the result, whatever the recipe calls the folder."""
    done = gpt2(
        "prepare", "own.txt", "--tokenizer", own, "--out", "tokens", "--block", "8", "--validation", "0.2"
    )
    assert done.code == 0, done.err
    for name, tokenizer in (("null", None), ("folder", FOLDER), ("itself", "tokens")):
        data = {"source": "tokens", **({"tokenizer": tokenizer} if tokenizer else {})}
        run = train(gpt2, {**OWN, "data": data}, name, "optim.steps=1")
        assert same_tokenizer(run / "last", own)
    for other in ("gpt2", "chars", "bpe-300"):
        Path("other.yaml").write_text(
            yaml.safe_dump({**OWN, "data": {"source": "tokens", "tokenizer": other}})
        )
        refused = gpt2("pretrain", "other.yaml")
        assert refused.code == 2 and f"data.tokenizer is {other}" in refused.err
        command = re.search(r"made anew: gpt2 (.*)", refused.err)
        assert command and gpt2(*shlex.split(command[1])).code == 0
        assert gpt2("pretrain", "other.yaml", "--name", f"of-{other}", "optim.steps=1").code == 0


def test_an_init_with_another_vocabulary_is_refused_with_both_ways_out(own: Path, gpt2: Call) -> None:
    train(gpt2, {**OWN, "data": {**OWN["data"], "tokenizer": "chars"}}, "letters", "optim.steps=1")
    further = {**OWN, "init": "letters", "model": {"context": 8}}
    Path("further.yaml").write_text(yaml.safe_dump(further))
    refused = gpt2("pretrain", "further.yaml")
    assert refused.code == 2 and "init=letters has another tokenizer" in refused.err
    assert not Path("runs/further").exists()
    assert gpt2("pretrain", "further.yaml", "data.tokenizer=null", "optim.steps=1").code == 0
    run = train(gpt2, OWN, "mine", "optim.steps=1")
    again = train(gpt2, {**further, "init": "mine"}, "again", "optim.steps=1")
    assert same_tokenizer(run / "last", again / "last")


def test_a_recipe_learns_its_vocabulary_from_its_training_split_alone(gpt2: Call) -> None:
    """A word that stands in the held out tail only is no token, though it is the most frequent one there."""
    text = random_text(4000, 1, "abcdef ") + "zyxwv " * 60
    Path("own.txt").write_text(text, encoding="utf-8")
    recipe = {**OWN, "data": {"source": "own.txt", "tokenizer": "bpe-300", "validation": 0.1}}
    run = train(gpt2, recipe, "run", "optim.steps=1")
    tokenizer = load_tokenizer(run / "last")
    assert tokenizer.n_vocab == 300 and len(tokenizer.encode("zyxwv")) == 5
    (prepared,) = Path(os.environ["GPT2_HOME"]).glob("prepared/*")
    with open_dataset(prepared) as data:
        kept = tokenizer.decode(data.train.read(0, data.train.n_tokens).tolist())
    assert text.startswith(kept) and len(kept) > 0.7 * len(text)
    n_files = len(list(prepared.iterdir()))
    said = train_again(gpt2, "run", "two")
    assert "merging" not in said and len(list(prepared.iterdir())) == n_files, "it is learnt once"
    assert same_tokenizer(Path("runs/two/last"), run / "last")
    everything = gpt2(
        "prepare", "own.txt", "--tokenizer", "bpe-300", "--validation", "0", "--out", "all", "--block", "8"
    )
    assert everything.code == 0 and len(load_tokenizer(Path("all")).encode("zyxwv")) < 5


def train_again(gpt2: Call, recipe: str, name: str) -> str:
    outcome = gpt2("pretrain", f"{recipe}.yaml", "--name", name, "optim.steps=1")
    assert outcome.code == 0, outcome.err
    return str(outcome.err)


@pytest.mark.parametrize("kind", ["dense head", "dense tail"])
def test_the_training_split_always_holds_the_text_of_its_vocabulary(kind: str, gpt2: Call) -> None:
    """Where tokens are long at one end and short at the other, shares of bytes are not those of tokens."""
    long, short = "abcdefghi " * 300, random_text(1500, 2, "jklmnopqrstu")
    text = long + short if kind == "dense tail" else short + long
    Path("own.txt").write_text(text, encoding="utf-8")
    done = gpt2(
        "prepare", "own.txt", "--tokenizer", "bpe-280", "--validation", "0.3", "--out", "p", "--block", "2"
    )
    assert done.code == 0, done.err
    tokenizer = load_tokenizer(Path("p"))
    with open_dataset(Path("p")) as data:
        kept = tokenizer.decode(data.train.read(0, data.train.n_tokens).tolist())
        assert data.validation.n_tokens
    # The first 1 - 1.2 * 0.3 of the bytes, by hand.
    assert len(kept) >= int(len(text) * 0.64) and text.startswith(kept)


def test_a_text_too_small_for_its_vocabulary_has_a_smaller_one(gpt2: Call) -> None:
    Path("own.txt").write_text("to be or not to be " * 20, encoding="utf-8")
    done = gpt2(
        "prepare", "own.txt", "--tokenizer", "bpe-8192", "--out", "p", "--block", "2", "--validation", "0"
    )
    found = re.search(r"the vocabulary has (\d+) tokens, not 8,192", done.err)
    assert done.code == 0 and found and int(found[1]) == load_tokenizer(Path("p")).n_vocab < 300
    again = gpt2(
        "prepare", "own.txt", "--tokenizer", "bpe-8192", "--out", "p", "--block", "2", "--validation", "0"
    )
    assert again.code == 0 and "Nothing to do" in again.err


def test_bits_per_byte_are_those_of_the_held_out_text(own: Path, gpt2: Call) -> None:
    """By hand: the nats of the validation loss, over the bytes after the first token of the held out text."""
    for tokenizer in (FOLDER, "chars"):
        data = {**OWN["data"], "tokenizer": tokenizer}
        run = train(gpt2, {**OWN, "data": data}, f"of-{tokenizer[:5]}", "optim.steps=1")
        (prepared,) = (Path(os.environ["GPT2_HOME"]) / "prepared").iterdir()
        with open_dataset(prepared) as held_out:
            first, *rest = held_out.validation.read(0, held_out.validation.n_tokens).tolist()
            n_bytes = len(TEXT.encode()) - len(
                held_out.tokenizer.decode_bytes([*held_out.train.read(0, held_out.train.n_tokens), first])
            )
        assert rest[-1] == held_out.tokenizer.end_of_text  # which is a target, and no text
        for event in events(run, "EvalDone"):
            bits = event["loss"] * event["n_tokens"] / math.log(2) / n_bytes
            assert event["n_tokens"] == len(rest) and event["bits_per_byte"] == pytest.approx(bits)
        shutil.rmtree(prepared)


def test_from_a_text_to_a_chat_and_back_to_hugging_face(
    own: Path, gpt2: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = train(gpt2, {**OWN, "model": {**OWN["model"], "context": 64}}, "base", "optim.steps=3")
    records = [
        {"instruction": f"Скажи {n} раз.", "output": line} for n, line in enumerate(TEXT.splitlines()[:20])
    ]
    Path("records.json").write_text(json.dumps(records), encoding="utf-8")
    tuned = train(
        gpt2,
        {
            "task": "finetune-instruct",
            "init": "base",
            "template": "chat",
            "data": {"source": "records.json", "validation": 0.2, "test": 0.2},
            "optim": {"steps": 2, "lr": 1e-3},
            "eval": {"max_new_tokens": 4},
            "run": {"device": "cpu", "precision": "fp32", "threads": 1},
        },
        "tuned",
        command="finetune-instruct",
    )
    assert same_tokenizer(tuned / "last", base / "last")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Скажи 3 раз.\n".encode())))
    reply = gpt2("chat", "tuned", "--max-new-tokens", "4", "--temperature", "0")
    assert reply.code == 0 and reply.out.strip(), reply.err
    assert gpt2("evaluate", "base", "--on", "own.txt").code == 0
    assert gpt2("convert", "tuned", "--to", "folder", "--out", "hf").code == 0
    theirs, ids = (
        AutoModelForCausalLM.from_pretrained("hf"),
        AutoTokenizer.from_pretrained("hf")("Анна читает"),
    )
    assert theirs.config.vocab_size == 400 and theirs.config.eos_token_id == 399
    assert ids["input_ids"] == load_tokenizer(own).encode("Анна читает")
    for target in ("gguf", "nanogpt"):
        made = gpt2("convert", "base", "--to", target, "--out", f"base.{target}")
        assert made.code == 0, made.err


@pytest.mark.parametrize("kind", TEXTS)
def test_llama_cpp_gives_our_ids(kind: str, gpt2: Call) -> None:
    Path("own.txt").write_text(TEXTS[kind], encoding="utf-8")
    recipe = {**OWN, "data": {**OWN["data"], "tokenizer": "bpe-1000"}}
    run = train(gpt2, recipe, "run", "optim.steps=1")
    assert gpt2("convert", run, "--to", "gguf", "--out", "run.gguf").code == 0
    tokenizer = load_tokenizer(run / "last")
    assert tokenizer.n_vocab == 1000
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    llama = llama_cpp.Llama("run.gguf", vocab_only=True, verbose=False)
    texts = some_texts(kind)
    for text in texts:
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text), text
    assert len(texts) == 200 and llama.token_eos() == tokenizer.end_of_text
