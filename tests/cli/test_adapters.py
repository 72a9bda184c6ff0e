"""`--adapter`, repeated: the sum of several adapters over one base, against peft; and what is refused."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from adapters import IDS, Base, Lora, by_somebody_else, save_adapter, save_base
from safetensors.torch import load_file, save_file

from gpt2cli.convert.open_model import open_model

Gpt2 = Callable[..., Any]
LORAS = {"one": Lora(), "two": Lora(rank=2, alpha=3.0), "attn": Lora(rank=3, targets=("c_attn",))}


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """The folder base and three adapters over it, the working directory around them."""
    base = save_base(Path("base").absolute())
    for number, (name, lora) in enumerate(LORAS.items()):
        save_adapter(Path(name), base, lora)
        _shift(Path(name), number)
    return base


def _shift(folder: Path, number: int) -> None:
    """Other numbers than those that every adapter of the support file has."""
    (folder / "manifest.json").unlink()
    path = folder / "adapter_model.safetensors"
    save_file(
        {name: tensor.roll(number) * (1 - 0.3 * number) for name, tensor in load_file(path).items()}, path
    )


def theirs_over(base: Base) -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel.from_pretrained(base.folder).eval()


def by_hand(base: Base, *names: str) -> torch.Tensor:
    """Logits of the base with each adapter's B A * alpha / rank added to its matrices."""
    model = theirs_over(base)
    for name in names:
        tensors, lora = load_file(Path(name) / "adapter_model.safetensors"), LORAS[name]
        for key, a in tensors.items():
            if ".lora_A." in key:
                matrix = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                update = (
                    tensors[key.replace("lora_A", "lora_B")].double() @ a.double() * lora.alpha / lora.rank
                )
                model.get_parameter(f"{matrix}.weight").data += update.T.float()  # Conv1D is (in, out)
    return model(IDS).logits


def ours(*names: str) -> torch.Tensor:
    return open_model(Path("base"), [Path(name) for name in names]).model(IDS)


@torch.no_grad()
def test_two_adapters_are_pefts_weighted_sum(base: Base) -> None:
    reference = peft.PeftModel.from_pretrained(theirs_over(base), "one", adapter_name="one")
    reference.load_adapter("two", adapter_name="two")
    reference.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both", combination_type="cat")
    reference.set_adapter("both")
    wanted = reference.eval()(IDS).logits
    for alone in ("one", "two"):
        assert (ours(alone) - wanted).abs().max() > 0.5, "each of them counts"
    torch.testing.assert_close(ours("one", "two"), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours("two", "one"), wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_adapters_of_other_matrices_are_added_too(base: Base) -> None:
    wanted = by_hand(base, "one", "attn", "two")
    torch.testing.assert_close(ours("attn", "one", "two"), wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_each_command_takes_them(base: Base, gpt2: Gpt2) -> None:
    given = ("--adapter", "one", "--adapter", "attn")
    options = ("-n", "12", "--temperature", "0", "--json", "--threads", "1", "--precision", "fp32")
    found = [
        json.loads(gpt2("generate", "some text", *words, *options).out)
        for words in (("--model", "base", *given), given, ("--model", "one", "--adapter", "attn"), given[:2])
    ]
    assert found[0]["ids"] == found[1]["ids"] == found[2]["ids"] != found[3]["ids"]
    assert [Path(path).name for path in found[0]["adapters"]] == ["one", "attn"]
    model, ids = (
        open_model(Path("base"), [Path("one"), Path("attn")]).model,
        base.tokenizer.encode("some text"),
    )
    for token in found[0]["ids"]:
        assert model(torch.tensor([ids]))[0, -1].argmax() == token
        ids.append(token)

    Path("text.txt").write_text("a story begins, and ends. " * 8)
    measured = gpt2("evaluate", "base", *given, "--on", "text.txt", "--json", "--threads", "1")
    alone = gpt2("evaluate", "base", "--on", "text.txt", "--json", "--threads", "1")
    merged = gpt2("convert", "one", "--merge", "--out", "merged")
    assert merged.code == 0, merged.err
    over_one = gpt2("evaluate", "merged", "--on", "text.txt", "--json", "--threads", "1")
    losses = [json.loads(one.out)["loss"] for one in (measured, alone, over_one)]
    assert len(set(losses)) == 3 and json.loads(measured.out)["model"] == "base + one + attn"


def test_a_chat_with_two(base: Base, gpt2: Gpt2, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for given in (("base", "--adapter", "one", "--adapter", "attn"), ("one", "--adapter", "attn"), ("one",)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
        done = gpt2("chat", *given, "-n", "12", "--temperature", "0", "--threads", "1")
        assert done.code == 0, done.err
        answers.append(done.out)
    assert answers[0] == answers[1] != answers[2]


def test_the_chat_template_is_the_first_adapters_or_the_models(base: Base) -> None:
    def named() -> str:
        return open_model(Path("base"), [Path("one"), Path("attn")]).folder.name

    found = [named()]
    for name in ("base", "attn", "one"):
        (Path(name) / "prompt.json").write_text('{"template": "chat"}')
        found.append(named())
    assert found == ["one", "base", "attn", "one"] and open_model(Path("two")).folder.name == "two"


def other_base(base: Base) -> tuple[str, ...]:
    save_adapter(Path("foreign"), save_base(Path("elsewhere").absolute(), seed=5), Lora())
    return "--model", "base", "--adapter", "one", "--adapter", "foreign"


def other_base_of_peft(base: Base) -> tuple[str, ...]:
    """peft records a name alone: what lies there has other weights."""
    save_base(Path("elsewhere").absolute(), seed=5)
    (Path("attn") / "base.json").unlink()
    by_somebody_else(Path("attn"), base_model_name_or_path=str(Path("elsewhere").absolute()))
    return "--model", "base", "--adapter", "one", "--adapter", "attn"


def a_classifier(base: Base) -> tuple[str, ...]:
    by_somebody_else(Path("attn"), task_type="SEQ_CLS")
    return "--model", "base", "--adapter", "one", "--adapter", "attn"


REFUSED: dict[str, tuple[Callable[[Base], tuple[str, ...]], int, str]] = {
    "another base": (other_base, 3, "foreign: was trained over another base than"),
    "another base, by peft": (other_base_of_peft, 3, "attn: was trained over another base than"),
    "another head": (a_classifier, 3, "attn/adapter_config.json: task_type is 'SEQ_CLS'"),
    "a whole model": (lambda base: ("--adapter", "base"), 2, "--adapter base:"),
    "twice": (lambda base: ("--adapter", "one", "--adapter", "one"), 2, "one is given twice"),
    "nothing": (lambda base: ("--adapter", "nowhere"), 3, "nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_belong_together_is_refused_by_name(case: str, base: Base, gpt2: Gpt2) -> None:
    make, code, said = REFUSED[case]
    done = gpt2("generate", "a", *make(base))
    assert done.code == code and said in " ".join(done.err.split()), done.err
    assert "\nfix: " in done.err or "\nwhy: " in done.err


def test_peft_may_name_a_base_that_is_not_here(base: Base, gpt2: Gpt2) -> None:
    """An adapter from a hub, trained on another machine: --model says what its base is here."""
    (Path("attn") / "base.json").unlink()
    by_somebody_else(Path("attn"), base_model_name_or_path="/home/them/gpt2")
    assert gpt2("generate", "a", "--adapter", "attn").code == 3
    done = gpt2("generate", "a", "--model", "base", "--adapter", "attn", "-n", "2")
    assert done.code == 0, done.err
