"""`gpt2 chat` with a model that was fine-tuned on single exchanges, or on whole conversations."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2cli.checkpoints.folder import MANIFEST, read_manifest, write_manifest, write_model
from gpt2cli.cli import app
from gpt2cli.files import sha256_of
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.templates import TEMPLATES, Turn, prompt_ids
from gpt2cli.tokenizer.chars import Chars

ANSWERS = {
    "Sky?": "blue",
    "Snow?": "white",
    "Coal?": "black",
    "Grass?": "green",
    "Sun?": "yellow",
    "Blood?": "red",
    "Mud?": "brown",
    "Ash?": "grey",
}
LETTERS = Chars.from_text(["\n :?.", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"])
RECIPE = """\
task: finetune-instruct
seed: 1
init: {init}
template: chat
data: {{source: {source}, validation: 0.05, test: 0.05}}
model: {{dropout: 0.0}}
batch: {{micro_batch: 8}}
optim: {{steps: {steps}, lr: 1e-2, warmup_steps: 20}}
log: {{every: 100}}
eval: {{every: {steps}, max_new_tokens: 8}}
checkpoint: {{every: {steps}}}
run: {{threads: 1, device: cpu, precision: fp32}}
"""
Chat = Callable[..., tuple[list[str], str]]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(folder: Path, records: Any, steps: int, *overrides: str) -> Path:
    """A little model of letters, fine-tuned on the records; the run's folder."""
    base = folder / "base"
    base.mkdir(parents=True)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=256, vocab_size=LETTERS.n_vocab)
    write_manifest(base, write_model(base, new_model(config, 1), LETTERS, "task: pretrain\n"))
    (folder / "records.json").write_text(json.dumps(records))
    recipe = folder / "teach.yaml"
    recipe.write_text(RECIPE.format(init=base, source=folder / "records.json", steps=steps))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert app.run(["finetune-instruct", str(recipe), *overrides]) == 0
    return folder / "runs/teach"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [{"instruction": asked, "output": said} for asked, said in ANSWERS.items()] * 5
    return train(tmp_path_factory.mktemp("single"), records, 240)


@pytest.fixture
def chat(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Pipe lines into `gpt2 chat`; gives the replies and stderr."""

    def run(folder: Path, lines: str, *arguments: str) -> tuple[list[str], str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        capsys.readouterr()
        assert app.run(["chat", str(folder), "--threads", "1", "-t", "0", "-n", "12", *arguments]) == 0
        captured = capsys.readouterr()
        return captured.out.splitlines(), captured.err

    return run


def right(replies: list[str]) -> int:
    return sum(reply == said for reply, said in zip(replies, ANSWERS.values(), strict=True))


def test_single_exchanges_are_asked_one_by_one(chat: Chat, single: Path) -> None:
    in_a_row, said = chat(single, "\n".join(ANSWERS))
    cleared, _ = chat(single, "\n/clear\n".join(ANSWERS), "--history", "all")
    together, unsaid = chat(single, "\n".join(ANSWERS), "--history", "all")
    assert in_a_row == cleared and right(in_a_row) >= 7, in_a_row
    assert right(together) < right(in_a_row), "what it was never trained on"
    assert "fine-tuned on single exchanges" in said and "--history all" in said
    assert "single exchanges" not in unsaid


def test_the_number_of_previous_turns_is_an_option_and_a_command(chat: Chat, single: Path) -> None:
    def prompts(lines: str, *arguments: str) -> list[int]:
        replies, _ = chat(single, lines, "--json", *arguments)
        return [json.loads(reply)["prompt_tokens"] for reply in replies]

    def written(*texts: str) -> int:
        roles = ["user", "assistant"] * len(texts)
        turns = [Turn(role, text) for role, text in zip(roles, texts, strict=False)]  # type: ignore[arg-type]
        return len(prompt_ids(TEMPLATES["chat"], turns, LETTERS))

    replies, _ = chat(single, "Sky?\nSnow?\nCoal?\n", "--history", "1")
    asked = ["Sky?", replies[0], "Snow?", replies[1], "Coal?"]
    alone, one, every = written("Coal?"), written(*asked[2:]), written(*asked)
    assert prompts("Sky?\nSnow?\nCoal?\n", "--history", "1")[2] == one
    assert prompts("Sky?\nSnow?\n/history 0\nCoal?\n", "--history", "1")[2] == alone
    assert prompts("Sky?\nSnow?\n/history all\nCoal?\n", "--history", "1")[2] == every
    assert prompts("Sky?\n/undo\nSnow?\n/retry\nSnow?\n") == [written("Sky?"), *[written("Snow?")] * 3]
    said = chat(single, "/history\n/history 2\n/show\n")[1]
    assert "history: 0: each message is answered by itself" in said
    assert "history             2: previous turns are shown" in said


@pytest.mark.parametrize("value", ["-1", "some", "", "1.5", "9" * 20, "٣"])
def test_what_is_no_number_of_turns_is_refused(
    value: str, single: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["chat", str(single), f"--history={value}"]) == 2
    assert "--history is" in (said := capsys.readouterr().err) and "--history all" in said


def test_tokens_are_exactly_what_the_model_is_fed(chat: Chat, single: Path) -> None:
    def shown(said: str) -> list[int]:
        rows = [line.split() for line in said.splitlines()]
        return [int(row[1]) for row in rows if len(row) > 2 and row[0].isdigit() and row[1].isdigit()]

    def fed(*turns: Turn) -> list[int]:
        return prompt_ids(TEMPLATES["chat"], turns, LETTERS)

    sky, snow = Turn("user", "Sky?"), Turn("user", "Snow?")
    assert shown(chat(single, "Sky?\nSnow?\n/tokens\n")[1]) == fed(snow)
    assert shown(chat(single, "Sky?\n/tokens Snow?\n")[1]) == fed(snow)
    replies, said = chat(single, "Sky?\n/tokens Snow?\n", "--history", "all")
    assert shown(said) == fed(sky, Turn("assistant", replies[0]), snow)
    assert shown(chat(single, "/tokens\n", "--system", "Be brief.")[1]) == fed(
        Turn("system", "Be brief."), Turn("user", "")
    )
    assert shown(chat(single, "Sky?\n/undo\n/tokens\n")[1]) == fed(Turn("user", ""))
    said = chat(single, "/tokens Sky?\n")[1]
    assert "to Sky?: " in said and "'\\n'" in said, "one token per line"


def test_a_saved_conversation_keeps_its_history(chat: Chat, single: Path, tmp_path: Path) -> None:
    lines = "Sky?\nSnow?\nCoal?\n"
    for name, arguments in (("one", ["--history", "1"]), ("all", ["--history", "all"]), ("none", [])):
        path = tmp_path / f"{name}.json"
        whole = chat(single, f"{lines}/save {path}\nSun?\n", *arguments)[0]
        rest, said = chat(single, f"/load {path}\nSun?\n")
        assert rest == whole[-1:]
        assert ("history: " in said) == (name != "none"), "a change is said"
    assert "history" not in json.loads((tmp_path / "all.json").read_text()), "as earlier versions wrote it"


def test_the_model_knows_what_it_was_trained_on_wherever_it_goes(
    chat: Chat, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.run(["convert", str(single), "--out", "copy"]) == 0
    assert "single exchanges" in chat(tmp_path / "copy", "Sky?\n")[1]
    talk = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)
    ]
    plain = [{"instruction": asked, "output": said} for asked, said in ANSWERS.items()]
    both = train(
        tmp_path / "both", [*plain, {"messages": talk}, {"messages": talk}], 2, "optim.warmup_steps=0"
    )
    assert "single exchanges" not in chat(both, "Sky?\n")[1]
    template = (both / "best" / "prompt.json").read_text()
    assert json.loads(template) == {"template": "chat", "turns": "multi"}
    for older in ({"template": "chat"}, {"template": "chat", "turns": "of a later version"}):
        (path := tmp_path / "copy/prompt.json").write_text(json.dumps(older))
        hashes = {**read_manifest(path.parent), path.name: sha256_of(path)}
        (path.parent / MANIFEST).unlink()
        write_manifest(path.parent, hashes)
        assert "single exchanges" not in chat(tmp_path / "copy", "Sky?\n")[1], "all, as before"


def test_adapters_and_resumed_runs_say_the_same(
    chat: Chat, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = single.parent.parent / "teach.yaml"
    short = ["optim.steps=4", "eval.every=2", "checkpoint.every=2", "optim.warmup_steps=0"]
    assert app.run(["finetune-instruct", str(recipe), *short, "train=lora", f"init={single}"]) == 0
    assert app.run(["finetune-instruct", str(recipe), "--resume", "optim.steps=6"]) == 0
    for checkpoint in sorted(Path("runs/teach/checkpoints").iterdir()):
        assert json.loads((checkpoint / "prompt.json").read_text())["turns"] == "single"
    assert "single exchanges" in chat(Path("runs/teach"), "Sky?\n")[1]
    assert app.run(["convert", "runs/teach", "--merge", "--out", "merged"]) == 0
    assert "single exchanges" in chat(Path("merged"), "Sky?\n")[1]
