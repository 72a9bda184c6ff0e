"""Wrong command lines, one after another: each prints a command as its fix, and that one goes further."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_base import LETTERS
from tiny_run import PRETRAIN

from gpt2cli.cli.app import run

Gpt2 = Callable[..., Any]

# What is typed -> the fix. The folder has runs x (a language model) and spam (a classifier), the model 124M,
# my.yaml, novel.txt, and data for the fine-tunes.
FIXES = {
    # commands and options
    "pretrian my.yaml": "gpt2 pretrain my.yaml",
    "train my.yaml": "gpt2 pretrain my.yaml",
    "verdict": "gpt2 pretrain verdict",
    "finetune-text data.source=x.txt": "gpt2 pretrain finetune-text data.source=x.txt",
    "spam-tiny data.label=x": "gpt2 finetune-classify spam-tiny data.label=x",
    "help": "gpt2 --help",
    "help pretrain": "gpt2 pretrain --help",
    "recipes chek verdict": "gpt2 recipes check verdict",
    "pretrain": "gpt2 pretrain gpt2-mini",
    "finetune-classify": "gpt2 finetune-classify spam-tiny",
    "recipes show": "gpt2 recipes show verdict",
    "recipes copy verdict": "gpt2 recipes copy verdict verdict-copy.yaml",
    "prepare novel.txt": "gpt2 prepare novel.txt --out data/novel",
    "classify": "gpt2 classify runs/spam-tiny 'You have won a prize!'",
    "score": "gpt2 score lines.txt --model 124M",
    "convert": "gpt2 convert ckpt.pt --out models/mine",
    "generate hi --max-tokens 2": "gpt2 generate hi --max-new-tokens 2",
    "generate hi --max-tokens=2": "gpt2 generate hi --max-new-tokens=2",
    "generate hi -n 2 --temprature 0": "gpt2 generate hi -n 2 --temperature 0",
    "evaluate runs/tiny --on lambada:word --limit 0": "gpt2 evaluate --help",
    "generate hi -n 2 --top-k many": "gpt2 generate hi -n 2 --top-k 40",
    "generate hi --max-new-tokens many": "gpt2 generate hi --max-new-tokens 100",
    "generate hi there -n 2": "gpt2 generate -n 2 'hi there'",
    "generate -m runs/x hi there -n 2": "gpt2 generate -m runs/x -n 2 'hi there'",
    "generate hi -n 2 --logprobs": "gpt2 generate hi -n 2 --logprobs --json",
    "generate hi -n 2 --stop ''": "gpt2 generate hi -n 2 --stop .",
    "generate hi -n 2 --precision fp33": "gpt2 generate hi -n 2 --precision fp32",
    "generate hi -n 2 --device cdua": "gpt2 generate hi -n 2 --device cuda",
    "chat --model runs/x": "gpt2 chat runs/x",
    "chat runs/x hi you": "echo 'hi you' | gpt2 chat runs/x",
    "evaluate runs/x --no novel.txt": "gpt2 evaluate runs/x --on novel.txt",
    "download 355M --sorce openai": "gpt2 download 355M --source openai",
    "download 355M --source opneai": "gpt2 download 355M --source openai",
    "convert runs/x --to gguuf --out y": "gpt2 convert runs/x --to gguf --out y",
    "inspect x --attention a.png": "gpt2 inspect x --attention a.png --prompt 'The capital of France is'",
    # recipes and data
    "pretrain my.yml": "gpt2 pretrain my.yaml",
    "pretrain my.yaml train=lora": "gpt2 pretrain my.yaml train=lora init=124M",
    "pretrain verdit": "gpt2 pretrain verdict",
    "pretrain spam": "gpt2 finetune-classify spam",
    "finetune-classify my.yaml": "gpt2 pretrain my.yaml",
    "pretrain novel.txt": "gpt2 pretrain gpt2-mini data.source=novel.txt",
    "pretrain novel.txt optim.steps=60": "gpt2 pretrain gpt2-mini data.source=novel.txt optim.steps=60",
    "finetune-classify reviews.csv": "gpt2 finetune-classify spam-tiny data.source=reviews.csv"
    " data.text=review data.label=stars",
    "finetune-instruct qa.json": "gpt2 finetune-instruct instruct data.source=qa.json",
    "recipes check novel.txt": "gpt2 pretrain gpt2-mini data.source=novel.txt",
    "recipes check other.yaml": "gpt2 recipes copy verdict other.yaml",
    "recipes show verdct": "gpt2 recipes show verdict",
    "recipes copy verdct new.yaml": "gpt2 recipes copy verdict new.yaml",
    "recipes keys optin": "gpt2 recipes keys optim",
    "recipes keys lr": "gpt2 recipes keys optim.lr",
    # keys and values
    "pretrain my.yaml --steps 60": "gpt2 pretrain my.yaml optim.steps=60",
    "pretrain my.yaml --learning-rate=1e-3": "gpt2 pretrain my.yaml optim.lr=1e-3",
    "pretrain my.yaml --batch-size 2": "gpt2 pretrain my.yaml batch.micro_batch=2",
    "pretrain my.yaml --nmae y": "gpt2 pretrain my.yaml --name y",
    "pretrain my.yaml optim.lr 1e-2": "gpt2 pretrain my.yaml optim.lr=1e-2",
    "pretrain my.yaml optim.lrr=1e-2": "gpt2 pretrain my.yaml optim.lr=1e-2",
    "pretrain my.yaml lr=1e-2": "gpt2 pretrain my.yaml optim.lr=1e-2",
    "pretrain my.yaml max_iters=60": "gpt2 pretrain my.yaml optim.steps=60",
    "pretrain my.yaml optim=60": "gpt2 pretrain my.yaml optim.steps=60",
    "pretrain my.yaml optim.lr=high": "gpt2 pretrain my.yaml optim.lr=0.0006",
    "pretrain my.yaml optim.schedule=cosin": "gpt2 pretrain my.yaml optim.schedule=cosine",
    "pretrain my.yaml run.device=gpu": "gpt2 pretrain my.yaml run.device=cuda",
    "pretrain my.yaml optim.steps=2": "gpt2 pretrain my.yaml optim.steps=2 optim.warmup_steps=0",
    "pretrain my.yaml optim.min_lr=1": "gpt2 pretrain my.yaml optim.min_lr=0.001",
    "pretrain my.yaml model.n_embd=33": "gpt2 pretrain my.yaml model.n_embd=32",
    "pretrain verdict model.n_embd=64": "gpt2 pretrain verdict model.size=null model.n_layer=12"
    " model.n_head=8 model.n_embd=64",
    "pretrain my.yaml data.source=nvel.txt": "gpt2 pretrain my.yaml data.source=novel.txt",
    "pretrain my.yaml data.source=the-verdct": "gpt2 pretrain my.yaml data.source=the-verdict",
    "recipes check verdict optim.clipp=2": "gpt2 recipes check verdict optim.clip=2",
    "finetune-classify spam-tiny data.source=reviews.csv": "gpt2 finetune-classify spam-tiny"
    " data.source=reviews.csv data.text=review data.label=stars",
    # runs
    "pretrain my.yaml --name x": "gpt2 pretrain my.yaml --name x --resume",
    "pretrain my.yaml --resume": "gpt2 pretrain my.yaml",
    "pretrain my.yaml --name x --from last": "gpt2 pretrain my.yaml --name x --from last --resume",
    "pretrain my.yaml --name x --resume --from step-7": "gpt2 pretrain my.yaml --name x --resume --from best",
    "pretrain my.yaml init=runs/y": "gpt2 pretrain my.yaml init=x",
    "pretrain my.yaml init=elsewhere": "gpt2 pretrain my.yaml init=x",
    # models
    "generate -m runs/x/recipe.yaml -n 2 hi": "gpt2 generate -m runs/x -n 2 hi",
    "generate -m runs/x/best/config.json -n 2 hi": "gpt2 generate -m runs/x/best -n 2 hi",
    "generate -m runs/xx -n 2 hi": "gpt2 generate -m x -n 2 hi",
    "generate -m elsewhere -n 2 hi": "gpt2 generate -m x -n 2 hi",
    "classify elsewhere hi": "gpt2 classify spam hi",
    "generate -m 355M -n 2 hi": "gpt2 download 355M",
    "inspect spm": "gpt2 inspect spam",
    "evaluate novel.txt": "gpt2 evaluate --on novel.txt",
    "evaluate runs/x --on nvel.txt": "gpt2 evaluate runs/x --on novel.txt",
    "score nvel.txt": "gpt2 score novel.txt",
    "generate --file nvel.txt -n 2": "gpt2 generate --file novel.txt -n 2",
    "compile runs/x --precision fp8": "gpt2 compile runs/x --precision int8",
    "classify 'I loved it'": "gpt2 classify runs/spam 'I loved it'",
    "classify runs/x hi": "gpt2 finetune-classify spam init=runs/x",
    "classify spam --file reviews.csv --column text": "gpt2 classify spam --file reviews.csv --column review",
    "convert nothere": "gpt2 convert x",
    "convert novel.txt": "gpt2 pretrain gpt2-mini data.source=novel.txt",
    "download": "gpt2 download 124M",
    "download 77M": None,
    "judge": "gpt2 judge --ollama llama3.2",
    "judge runs/x --judge-model m": "gpt2 judge runs/x --judge-model m --base-url http://127.0.0.1:8080/v1",
    "prepare nvel.txt --out d": "gpt2 prepare novel.txt --out d",
    "prepare novel.txt --out d --tokenizer char": "gpt2 prepare novel.txt --out d --tokenizer chars",
    "prepare novel.txt --out d --validation 2": "gpt2 prepare novel.txt --out d --validation 0.1",
}


UNREADABLE = "error: (No such|Missing|Got unexpected|.*invalid value)"


class ReachedWorkError(Exception):
    """Raised where a command would begin to train, download, compile or ask a judge."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of FIXES; its runs are trained, in three steps."""
    folder = tmp_path_factory.mktemp("fixes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GPT2_HOME", str(folder / "home"))
        patch.delenv("GPT2_RUNS", raising=False)
        Path("novel.txt").write_text(LETTERS * 30 + "hi there, The capital of France is\n" * 20)
        Path("lines.txt").write_text("hi\n")
        Path("reviews.csv").write_text(
            "review,stars\n" + "".join(f"a text number {n} and more of it,{n % 2}\n" for n in range(40))
        )
        Path("qa.json").write_text(json.dumps([{"instruction": "hi", "output": "ho"}] * 20))
        recipe = PRETRAIN | {"data": {"source": "novel.txt", "tokenizer": "chars"}}
        Path("my.yaml").write_text(yaml.safe_dump(recipe))
        small = ("run.device=cpu", "run.precision=fp32", "run.threads=1", "optim.warmup_steps=0")
        assert run(["pretrain", "my.yaml", "--name", "x", "optim.steps=3", *small]) == 0
        own = ("data.source=reviews.csv", "data.text=review", "data.label=stars", "init=runs/x")
        steps = ("optim.steps=2", "eval.every=2", "data.max_tokens=8", "model.context=8")
        assert run(["finetune-classify", "spam-tiny", "--name", "spam", *own, *steps, *small]) == 0
        Path("home/models").mkdir(parents=True, exist_ok=True)
        Path("home/models/124M").symlink_to(Path("runs/x/best").resolve())
        yield folder


@pytest.fixture
def stopped_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long is not done: to have got there is enough."""

    def reached(*_: object, **__: object) -> None:
        raise ReachedWorkError

    for name in (
        "gpt2cli.training.setup.set_up_training",
        "gpt2cli.cli.download._fetch",
        "gpt2cli.cli.judge._grade",
        "gpt2cli.ui.progress.show_compiling",
        "gpt2cli.data.corpora._download",
    ):
        monkeypatch.setattr(name, reached)


def told(line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit code and stderr of a pasted line, which may be `echo TEXT | gpt2 ...`."""
    piped = re.fullmatch(r"echo (.*) \| (.*)", line)
    text = shlex.split(piped[1])[0] if piped else ""
    words = shlex.split(piped[2] if piped else line)[1:]
    Path("stdin").write_text(f"{text}\n" if text else "")
    capfd.readouterr()
    with open("stdin", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code = run(words)
    return code, capfd.readouterr().err


@pytest.mark.parametrize("line", FIXES)
def test_the_fix_goes_further(
    place: Path,
    line: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stopped_short: None,
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("GPT2_HOME", str(place / "home"))
    code, err = told(f"gpt2 {line}", capfd, monkeypatch)
    assert code in (2, 3), err
    error, *_, last = (one for one in err.splitlines() if one.startswith(("error: ", "fix: ")))
    fix = last.removeprefix("fix: ")
    assert fix == (FIXES[line] or fix) and fix.startswith(("gpt2 ", "echo "))
    code, err = told(fix, capfd, monkeypatch)
    assert error not in err, "the same error again"
    if code and "ReachedWorkError" not in err:
        # The next hurdle, which is another one; never a command line that cannot be read.
        assert code in (2, 3, 4, 5) and "fix: " in err and not re.search(UNREADABLE, err), err


@pytest.mark.parametrize("word", ["hf", "transformers", "HuggingFace"])
def test_a_format_by_another_word_is_the_one_that_is_meant(gpt2: Gpt2, word: str) -> None:
    refused = gpt2("convert", "x", "--to", word, "--out", "y")
    assert refused.code == 2 and "fix: gpt2 convert x --to folder --out y" in refused.err
