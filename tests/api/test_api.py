"""`import gpt2cli`: the same texts as the command line, the same numbers as transformers."""

import doctest
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conversing import LETTERS
from inspected import CHARS, save
from lessons import lesson, write_lesson
from loud import loud
from runs import write_recipe

import gpt2cli
from gpt2cli.api import classifier, models, training
from gpt2cli.checkpoints.classifier import write_classifier
from gpt2cli.checkpoints.folder import write_manifest
from gpt2cli.templates import write_template
from gpt2cli.training.events import CheckpointSaved, EvalDone, StepDone, Stopped

Gpt2 = Callable[..., Any]
TEXT = "the cat"
NOTEBOOK = Path(__file__).parents[2] / "docs" / "python.ipynb"


@pytest.fixture
def blank_pictures() -> None:
    """Matplotlib draws."""


@pytest.fixture
def folder() -> Path:
    Path("runs").mkdir()
    return save(Path("runs/tiny"))


@pytest.fixture
def model(folder: Path) -> gpt2cli.LanguageModel:
    return gpt2cli.load(str(folder), device="cpu", threads=1)


@pytest.fixture
def theirs(folder: Path) -> transformers.GPT2LMHeadModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


USER = [{"role": "user", "content": "the cat"}]
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"seed": 3},
    {"temperature": 1.2, "top_k": 0, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 8},
    {"top_k": 5, "seed": 4, "max_new_tokens": 120},  # beyond the context
    {"seed": 5, "stop": ["a", "e"]},
]


def options_of(settings: dict[str, Any]) -> list[str]:
    """The settings as they are typed."""
    words = []
    for name, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(one)]
    return words


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_text_is_that_of_the_command_line(
    settings: dict[str, Any], gpt2: Gpt2, folder: Path, model: gpt2cli.LanguageModel
) -> None:
    n_written = 0
    for text in ("the cat", "on a mat", "zz"):
        done = gpt2("generate", text, "--model", folder, "--json", "--threads", "1", *options_of(settings))
        wanted = json.loads(done.out)["text"]
        assert model.generate(text, **settings) == wanted
        pieces = list(model.stream(text, **settings))
        assert "".join(pieces) == wanted and (len(pieces) > 3 or len(wanted) <= 3)
        n_written += len(wanted)
    assert n_written > 3


def test_without_a_seed_every_call_is_another_draw(model: gpt2cli.LanguageModel) -> None:
    assert len({model.generate(TEXT, temperature=2.0) for _ in range(4)}) > 1


@pytest.mark.parametrize("turns", [None, "single"])
def test_a_chat_is_that_of_the_command_line(
    turns: Any, gpt2: Gpt2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "chatting", 2, LETTERS)
    (folder / "manifest.json").unlink()
    write_template(folder, "chat", LETTERS, turns)
    questions = ["the cat", "sat", "on: what?"]
    Path("lines.txt").write_text("\n".join(questions), encoding="utf-8")
    with open("lines.txt", encoding="utf-8") as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        done = gpt2("chat", folder, "--json", "--seed", "2", "-n", "9", "--threads", "1")
    wanted = [json.loads(line)["reply"] for line in done.out.splitlines()]
    assert done.code == 0 and len("".join(wanted)) > 9
    model, messages = gpt2cli.load(folder, threads=1), list[dict[str, str]]()
    for question, reply in zip(questions, wanted, strict=True):
        messages.append({"role": "user", "content": question})
        assert model.chat(messages, seed=2, max_new_tokens=9) == reply
        messages.append({"role": "assistant", "content": reply})


@torch.no_grad()
def test_log_probabilities_and_candidates_are_those_of_transformers(
    model: gpt2cli.LanguageModel, theirs: transformers.GPT2LMHeadModel
) -> None:
    ids = CHARS.encode(TEXT)
    logits = theirs(torch.tensor([[CHARS.end_of_text, *ids]])).logits[0].double().log_softmax(-1)
    scored = model.logprobs(TEXT)
    assert [(token.id, token.text) for token in scored] == list(zip(ids, TEXT, strict=True))
    wanted = [float(logits[t, id]) for t, id in enumerate(ids)]
    assert [token.logprob for token in scored] == pytest.approx(wanted, abs=1e-4)
    after = model.logprobs("cat", after="the ")
    logits = theirs(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    wanted = [float(logits[t - 1, ids[t]]) for t in (4, 5, 6)]
    assert [token.logprob for token in after] == pytest.approx(wanted, abs=1e-4)
    best = logits[-1].exp().topk(4)
    found = model.next(TEXT, n=4)
    assert [one.id for one in found] == best.indices.tolist()
    assert [one.probability for one in found] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [token.id for token in model.tokens(TEXT)] == ids
    assert list(model.logprobs("")) == [] == list(model.tokens(""))


@torch.no_grad()
def test_attention_is_that_of_transformers(
    model: gpt2cli.LanguageModel, theirs: transformers.GPT2LMHeadModel
) -> None:
    found = model.attention(TEXT)
    wanted = torch.cat(theirs(torch.tensor([CHARS.encode(TEXT)]), output_attentions=True).attentions).numpy()
    assert found.shape == wanted.shape and found.tokens == tuple(TEXT)
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5)
    assert found._repr_png_().startswith(b"\x89PNG")


def test_a_notebook_gets_tables_that_nothing_in_a_text_breaks(model: gpt2cli.LanguageModel) -> None:
    shown = model.tokens("$\x1b a")._repr_html_()
    assert shown.count("<tr>") == 5 and "\x1b" not in shown and "&#x27;$&#x27;" in shown


MISTAKES: dict[str, tuple[Callable[[gpt2cli.LanguageModel], object], int, str]] = {
    "a value": (lambda m: m.generate(TEXT, top_p=2.0), 2, "top_p is 2.0"),
    "a length": (lambda m: m.generate(TEXT, max_new_tokens=0), 2, "max_new_tokens is 0"),
    "an empty stop": (lambda m: m.generate(TEXT, stop=""), 2, "stop is empty"),
    "a long text": (lambda m: m.stream("a" * 81), 3, "the text has 81 tokens"),
    "a character": (lambda m: m.next("A"), 3, "A"),
    "no messages": (lambda m: m.chat([]), 3, "messages"),
    "a role": (lambda m: m.chat([{"role": "boss", "content": "a"}]), 3, "message 0: the role 'boss'"),
    "an answer": (
        lambda m: m.chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
        3,
        "the last message is the assistant's",
    ),
    "two questions": (
        lambda m: m.chat([{"role": "user", "content": "a"}] * 2),
        3,
        "message 1: the role is user",
    ),
    "system alone": (lambda m: m.chat([{"role": "system", "content": "a"}]), 3, ""),
    "a model": (lambda m: gpt2cli.load("runs/none"), 3, "runs/none: no such model"),
    "an adapter": (lambda m: gpt2cli.load("runs/tiny", adapter="runs/tiny"), 2, "is no adapter"),
    "a device": (lambda m: gpt2cli.load("runs/tiny", device="warp"), 2, "device warp"),
    "a precision": (lambda m: gpt2cli.load("runs/tiny", precision="fp64"), 2, "precision is 'fp64'"),
    "int8 words": (lambda m: gpt2cli.load_classifier("x", precision="int8"), 2, "precision is 'int8'"),
    "threads": (lambda m: gpt2cli.load("runs/tiny", threads=-1), 2, "threads is -1"),
    "a stream's length": (lambda m: m.stream(TEXT, max_new_tokens=0), 2, "max_new_tokens is 0"),
    "half a length": (lambda m: m.stream(TEXT, max_new_tokens=2.5), 2, "max_new_tokens is 2.5"),
    "half a top_k": (lambda m: m.generate(TEXT, top_k=2.5), 2, "top_k is 2.5"),
    "half a seed": (lambda m: m.generate(TEXT, seed=1.5), 2, "seed is 1.5"),
    "a word for a number": (lambda m: m.chat(USER, temperature="hot"), 2, "temperature is 'hot'"),
    "no text": (lambda m: m.generate(None), 2, "the text is None"),
    "bytes": (lambda m: m.logprobs(b"the"), 2, "the text is b'the'"),
    "a number to stop at": (lambda m: m.stream(TEXT, stop=[5]), 2, "stop is 5"),
    "one message": (lambda m: m.chat(USER[0]), 2, "a list of messages"),
    "half a thread": (lambda m: gpt2cli.load("runs/tiny", threads=1.5), 2, "threads is 1.5"),
    "a compiled step": (lambda m: gpt2cli.load("runs/tiny", compile="yes"), 2, "compile is 'yes'"),
    "candidates": (lambda m: m.next(TEXT, n=0), 2, "n is 0"),
    "a classifier": (lambda m: gpt2cli.load_classifier("runs/tiny"), 3, "not a classifier"),
    "a recipe": (lambda m: gpt2cli.train("nothing"), 2, "nothing: no such recipe"),
    "a key": (lambda m: gpt2cli.train("verdict", optim__lrr=1), 2, "optim.lrr"),
    "a kind": (lambda m: gpt2cli.train("verdict", optim__lr={1}), 2, "optim__lr is a set"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_every_error_is_one_of_ours_and_comes_at_once(name: str, model: gpt2cli.LanguageModel) -> None:
    call, code, what = MISTAKES[name]
    with pytest.raises(gpt2cli.Gpt2Error) as caught:
        call(model)
    assert caught.value.exit_code == code and what in caught.value.what
    assert "--" not in str(caught.value) and not caught.value.fix.startswith("--")


def test_a_fix_is_an_argument(model: gpt2cli.LanguageModel, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    with pytest.raises(gpt2cli.Gpt2Error) as caught:
        gpt2cli.load("runs/tiny", device="warp")
    assert caught.value.fix == 'device="cpu"'
    with pytest.raises(gpt2cli.Gpt2Error) as caught:
        gpt2cli.train("tiny.yaml", optim__lrr=1)
    assert caught.value.fix == "did you mean optim__lr?"
    list(gpt2cli.train("tiny.yaml", name="once", optim__steps=2))
    with pytest.raises(gpt2cli.Gpt2Error) as caught:
        list(gpt2cli.train("tiny.yaml", name="once"))
    assert caught.value.fix == "resume=True" and "--" not in str(caught.value)


def test_a_training_that_is_open_holds_its_run_and_nobody_is_told_to_kill_this_process(
    tmp_path: Path,
) -> None:
    write_recipe(tmp_path)
    events = gpt2cli.train("tiny.yaml", name="held", optim__steps=4)
    next(events)
    with pytest.raises(gpt2cli.Gpt2Error) as caught:
        next(gpt2cli.train("tiny.yaml", name="held", optim__steps=4))
    assert caught.value.exit_code == 4 and "kill" not in caught.value.fix
    events.close()  # type: ignore[attr-defined]


def test_a_stream_that_is_open_at_the_end_of_python_says_nothing(folder: Path) -> None:
    script = f"import gpt2cli; pieces = gpt2cli.load({str(folder)!r}).stream('the cat'); next(pieces)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not done.stderr


def labels(folder: Path) -> Path:
    """A classifier of three labels."""
    _, task = lesson(folder)
    path = Path("runs/labels")
    path.mkdir(parents=True)
    classifier = loud(task.fresh_model("formula"))
    hashes = write_classifier(path, classifier, task.data.labels, task.tokenizer, 20, "task: x\n")
    write_manifest(path, hashes)
    return path


def test_labels_are_those_of_the_command_line(gpt2: Gpt2, tmp_path: Path) -> None:
    path, texts = labels(tmp_path), ["win cash now", "see you soon", "bill due"]
    done = gpt2("classify", path, *texts, "--json")
    found = gpt2cli.load_classifier(path).classify(texts)
    for line, one in zip(done.out.splitlines(), found, strict=True):
        wanted = json.loads(line)
        assert (one.label, list(one.probabilities)) == (wanted["label"], list(wanted["probabilities"]))
        assert list(one.probabilities.values()) == pytest.approx(list(wanted["probabilities"].values()))
    with pytest.raises(gpt2cli.Gpt2Error, match="list of texts"):
        gpt2cli.load_classifier(path).classify("one text")


def figures(run: Path) -> list[dict[str, Any]]:
    """All that metrics.jsonl says, but for times."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "utilisation")} for line in lines
    ]


def test_a_training_is_that_of_the_command_line(gpt2: Gpt2, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    words = ("optim.steps=6", "optim.lr=0.002", "eval.every=3", "data.source=story.txt")
    assert gpt2("pretrain", recipe, *words, "--name", "typed").code == 0
    events = gpt2cli.train(
        recipe, name="called", optim__steps=6, optim__lr=2e-3, eval__every=3, data__source=Path("story.txt")
    )
    assert not Path("runs/called").exists(), "nothing happens before the first event"
    seen = list(events)
    assert [type(event) for event in seen].count(StepDone) == 6 and isinstance(seen[-1], Stopped)
    typed, called = Path("runs/typed"), Path("runs/called")
    assert figures(called) == figures(typed)
    assert (called / "recipe.yaml").read_bytes() == (typed / "recipe.yaml").read_bytes()
    assert (called / "loss.png").exists()
    weights = "best/model.safetensors"
    assert (called / weights).read_bytes() == (typed / weights).read_bytes()
    # And on: with more steps, in Python and by the printed command alike.
    more = list(gpt2cli.train(recipe, name="called", resume=True, optim__steps=9))
    assert [event.step for event in more if isinstance(event, StepDone)] == [7, 8, 9]
    assert gpt2("pretrain", recipe, "--name", "typed", "--resume", "optim.steps=9").code == 0
    assert figures(called) == figures(typed)


def test_a_pruned_run_is_refused_as_on_the_command_line(gpt2: Gpt2, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    list(gpt2cli.train(recipe, name="pruned", optim__steps=2))
    assert gpt2("runs", "prune", "pruned", "--yes").code == 0
    refused = gpt2("pretrain", recipe, "--name", "pruned", "--resume", "optim.steps=4")
    with pytest.raises(gpt2cli.Gpt2Error, match="its optimizer state is gone") as error:
        list(gpt2cli.train(recipe, name="pruned", resume=True, optim__steps=4))
    assert refused.code == 3 and str(error.value.what) in refused.err


def test_who_leaves_the_loop_keeps_the_checkpoints(gpt2: Gpt2, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for event in gpt2cli.train(recipe, name="left", optim__steps=30, checkpoint__every=2):
        if isinstance(event, CheckpointSaved):
            break
    assert Path("runs/left/last").is_dir()
    assert gpt2("pretrain", recipe, "--name", "left", "--resume", "optim.steps=4").code == 0


def test_a_classifier_is_trained_and_its_report_comes_with_the_command(gpt2: Gpt2, tmp_path: Path) -> None:
    recipe = write_lesson(tmp_path)
    events = list(gpt2cli.train(recipe, name="spam", optim__steps=4, eval__every=2))
    assert any("accuracy" in event.metrics for event in events if isinstance(event, EvalDone))
    assert len(gpt2cli.load_classifier("runs/spam").labels) == 3
    assert not Path("runs/spam/report.json").exists()
    assert gpt2("finetune-classify", "runs/spam/recipe.yaml", "--resume").code == 0
    assert Path("runs/spam/report.json").exists()


def test_importing_it_costs_nothing() -> None:
    code = (
        "import sys, gpt2cli; heavy = {'torch', 'numpy', 'pydantic', 'yaml', 'rich', 'typer', 'tiktoken'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert {'load', 'load_classifier', 'train', 'Gpt2Error'} <= set(dir(gpt2cli))\n"
        "assert not hasattr(gpt2cli, 'nothing')\n"
        "gpt2cli.load, gpt2cli.train, gpt2cli.Gpt2Error\n"
        "assert not {'rich', 'typer', 'matplotlib'} & set(sys.modules), 'the API needs no terminal'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", [models, classifier, training], ids=["models", "classifier", "training"])
def test_the_examples_of_the_docstrings(module: Any, folder: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    text = Path("tiny.yaml").read_text(encoding="utf-8").replace("n_layer: 2", "n_layer: 1")
    Path("tiny.yaml").write_text(text, encoding="utf-8")
    labels(tmp_path)
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    assert tests
    given = {"gpt2cli": gpt2cli, "model": gpt2cli.load("runs/tiny", device="cpu")}
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    for test in tests:
        test.globs.update(given)
        said: list[str] = []
        result = doctest.DocTestRunner(optionflags=flags).run(test, out=said.append, clear_globs=False)
        assert not result.failed, "".join(said)


@pytest.mark.filterwarnings("ignore:.*cannot be downloaded")
def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Each cell's last expression is shown, as a notebook would."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    printed = capsys.readouterr().out
    assert "step 60: validation loss" in printed and "no-such-model: no such model" in printed
    assert names["classifier"].labels == ("ham", "spam")
