"""`gpt2 finetune-instruct` as a person meets it: the run, its answers, the stop, the resume."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from teaching import some_records, write_teaching

from gpt2cli import paths
from gpt2cli.generation import batch as answering
from gpt2cli.templates import TEMPLATES, read_template
from gpt2cli.training.run_dir import RunDir, newest_valid_checkpoint

Gpt2 = Callable[..., Any]
COMMAND = "finetune-instruct"
SHORT = ("optim.steps=4",)
FOLDER = Path("runs/teach")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_teaching(tmp_path)


def responses() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / "responses.jsonl").read_text().splitlines()]


def test_a_run_leaves_everything_that_was_promised(gpt2: Gpt2, recipe: Path) -> None:
    done = gpt2(COMMAND, recipe, *SHORT)
    assert done.code == 0, done.err
    assert done.out == "runs/teach\n", "stdout is data: the run's folder"
    kinds = [json.loads(line)["event"] for line in (FOLDER / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("StepDone") == 4 and kinds.count("EvalDone") == 2 and kinds[-1] == "Stopped"
    samples = (FOLDER / "samples.txt").read_text()
    assert samples.count("--- step") == 2 and "User:\nSay it" in samples and "\n\nAssistant:\n" in samples
    record = json.loads((FOLDER / "run.json").read_text())["sessions"][0]["data"]
    assert record["records"] == 20 and record["init"].endswith("base") and record["cut"] == 0
    assert read_template(paths.find_model("teach")) == TEMPLATES["chat"]
    answers, source = responses(), some_records()
    assert len({answer["index"] for answer in answers}) == len(answers) == 4
    for answer in answers:
        asked = source[answer["index"]]
        assert {key: answer[key] for key in asked} == asked
        assert answer["ended"] == (answer["finish_reason"] != "length") and answer["tokens"] <= 6
    scores = json.loads((FOLDER / "scores.json").read_text())
    n_ended = sum(answer["ended"] for answer in answers)
    assert scores["responses"] == 4 and scores["ended"] == n_ended and "rouge1" not in scores
    assert f"{n_ended} of 4 answers end by themselves" in done.err and "\x1b" not in done.err
    assert "gpt2 chat runs/teach" in done.err
    again = gpt2(COMMAND, recipe, "--resume")
    assert again.code == 0 and "nothing to do" in again.err and "answering" not in again.err


def test_test_prompts_that_are_trained_on_are_counted(gpt2: Gpt2, recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "same.json"
    path.write_text(json.dumps([{"instruction": "Say hi.", "output": "hi"}] * 10), encoding="utf-8")
    said = gpt2(COMMAND, recipe, f"data.source={path}", "data.test=0.2", "--dry-run").err
    assert "note: 2 of the 2 test prompts are in the training split too" in said
    assert "test prompts" not in gpt2(COMMAND, recipe, "--dry-run").err


def test_rouge_is_scored_when_asked(gpt2: Gpt2, recipe: Path) -> None:
    assert gpt2(COMMAND, recipe, *SHORT, "eval.rouge=true").code == 0
    scores = json.loads((FOLDER / "scores.json").read_text())
    assert all(0 <= scores[name] <= 1 for name in ("rouge1", "rouge2", "rouge_l"))


def test_answers_are_made_by_the_best_checkpoint_and_again_when_it_changes(gpt2: Gpt2, recipe: Path) -> None:
    assert gpt2(COMMAND, recipe, *SHORT).code == 0
    first = json.loads((FOLDER / "scores.json").read_text())
    assert first["checkpoint"] == (FOLDER / "best").resolve().name
    assert gpt2(COMMAND, recipe, "--resume", "optim.steps=8").code == 0
    second = json.loads((FOLDER / "scores.json").read_text())
    assert second["checkpoint"] == (FOLDER / "best").resolve().name == "step-000008"
    assert {answer["key"] for answer in responses()} == {second["key"]} != {first["key"]}


def test_what_is_answered_stays_and_the_rest_is_answered_on_resume(
    gpt2: Gpt2, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpt2(COMMAND, recipe, *SHORT, "batch.micro_batch=1").code == 0
    path = FOLDER / "responses.jsonl"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_text(lines[0] + lines[1] + lines[2][: len(lines[2]) // 2])  # killed in mid-write
    (FOLDER / "scores.json").unlink()
    asked: list[int] = []
    original = answering.answer_batch

    def counted(*arguments: Any) -> Any:
        asked.append(len(arguments[2]))
        return original(*arguments)

    monkeypatch.setattr(answering, "answer_batch", counted)
    done = gpt2(COMMAND, recipe, "--resume")
    assert done.code == 0, done.err
    assert sum(asked) == 2 and path.read_text() == whole
    assert "answering 2 test prompts, 2 are answered" in done.err
    assert (FOLDER / "scores.json").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_answering_ends_politely_and_a_resume_finishes(
    gpt2: Gpt2, recipe: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    original, calls = answering.answer_batch, [0]

    def told(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:  # samples go through the command's own name
            os.kill(os.getpid(), number)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(answering, "answer_prompts", _through(told))
        done = gpt2(COMMAND, recipe, *SHORT, "batch.micro_batch=1")
    assert done.code == code, done.err
    assert len(responses()) == 1 and not (FOLDER / "scores.json").exists()
    assert "--resume" in done.err
    again = gpt2(COMMAND, recipe, "--resume")
    assert again.code == 0 and len(responses()) == 4 and (FOLDER / "scores.json").exists(), again.err


def _through(answer_batch: Callable[..., Any]) -> Callable[..., Any]:
    """`answer_prompts` with another way of answering a batch."""
    original = answering.answer_prompts

    def answers(*arguments: Any, **options: Any) -> Any:
        before = answering.answer_batch
        answering.answer_batch = answer_batch
        try:
            yield from original(*arguments, **options)
        finally:
            answering.answer_batch = before

    return answers


def test_a_signal_while_training_saves_and_a_resume_ends_in_the_same_weights(
    gpt2: Gpt2, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2cli.training import loop

    assert gpt2(COMMAND, recipe, *SHORT, "--name", "whole").code == 0
    step, calls = loop.train_step, [0]

    def told(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", told)
        assert gpt2(COMMAND, recipe, *SHORT).code == 143
    checkpoint, problems = newest_valid_checkpoint(RunDir(FOLDER))
    assert checkpoint is not None and checkpoint.name == "step-000002" and not problems
    assert gpt2(COMMAND, recipe, "--resume").code == 0
    one, other = (Path("runs") / name / "last" / "model.safetensors" for name in ("whole", "teach"))
    assert one.read_bytes() == other.read_bytes()


def test_lora_through_the_whole_course(gpt2: Gpt2, recipe: Path) -> None:
    done = gpt2(COMMAND, recipe, *SHORT, "train=lora", "lora.rank=2")
    assert done.code == 0, done.err
    assert (FOLDER / "best" / "adapter_model.safetensors").exists() and len(responses()) == 4
    assert "trainable)" in done.err


def test_dry_run_marks_what_is_learnt(gpt2: Gpt2, recipe: Path) -> None:
    done = gpt2(COMMAND, recipe, "--dry-run", "packing=true")
    assert done.code == 0, done.err
    assert "the loss counts what is marked" in done.out and "records in" in done.out
    marked = [line for line in done.out.splitlines() if "«" in line]
    assert len(marked) >= 3
    for line in marked:
        assert line.startswith("  User:\\nSay it ") and line.endswith("<|endoftext|>»")
        assert "\\n\\nAssistant:\\n«" in line and line.count("«") == 1
    assert not Path("runs").exists()


def _said(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_over_long_records_are_counted(gpt2: Gpt2, tmp_path: Path) -> None:
    records = [
        *some_records(),
        {"instruction": "why " * 70, "output": "so"},
        {"instruction": "Go on.", "output": "and " * 70},
        {"instruction": "Say nothing.", "output": ""},
        {"messages": [*_said("Hello", "Hi"), *_said("why " * 70, "so")]},
    ]
    done = gpt2(COMMAND, write_teaching(tmp_path, records), "--dry-run")
    assert done.code == 0, done.err
    for said in (
        "2 of 24 records cut: longer than 64 tokens",
        "1 of 24 records left out: the prompt alone fills 64 tokens",
        "1 of 24 records used for training only: the last answer begins after 64 tokens",
        "1 of 24 records left out: no answer",
    ):
        assert said in done.err, done.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["data.source=nothing.json"], 3, "nothing.json: neither a file nor a known corpus"),
        (["data.output=answer"], 3, "record 0: field 'answer' is missing"),
        (["data.max_tokens=100"], 2, "data.max_tokens=64"),
        (["init=124M"], 3, "init=newest"),
        (["init=scratch", "train=lora"], 2, "lora needs a trained model"),
        (["template=llama"], 2, "template"),
    ],
)
def test_mistakes_are_named_before_any_training(
    gpt2: Gpt2, recipe: Path, arguments: list[str], code: int, said: str
) -> None:
    done = gpt2(COMMAND, recipe, *arguments)
    assert done.code == code and said in done.err, done
    assert done.err.count("\n") <= 4 and "Traceback" not in done.err
    assert not (FOLDER / "last").exists()


@pytest.mark.parametrize("name", ["instruct", "instruct-lora", "summarize"])
def test_the_shipped_recipes_load_and_say_their_command(name: str) -> None:
    from gpt2cli.recipe.loader import load_recipe

    path = Path(__file__).parents[2] / "recipes" / f"{name}.yaml"
    loaded = load_recipe(str(path), []).recipe
    text = path.read_text()
    assert loaded.task == COMMAND and loaded.init == "124M"
    assert f"# command:  gpt2 {COMMAND} {name}" in text and len(text.splitlines()) <= 40


@pytest.mark.parametrize("change", ["eval.temperature=0.9", "eval.max_new_tokens=3"])
def test_other_ways_of_asking_answer_all_again(gpt2: Gpt2, recipe: Path, change: str) -> None:
    assert gpt2(COMMAND, recipe, *SHORT).code == 0
    first = json.loads((FOLDER / "scores.json").read_text())
    done = gpt2(COMMAND, recipe, "--resume", change)
    assert done.code == 0 and "nothing to do" not in done.err, done.err
    second = json.loads((FOLDER / "scores.json").read_text())
    assert first["checkpoint"] == second["checkpoint"] and first["key"] != second["key"]
    assert {answer["key"] for answer in responses()} == {second["key"]} and len(responses()) == 4
    if "max" in change:
        assert all(answer["tokens"] <= 3 for answer in responses())


def test_answers_of_two_ways_of_asking_are_never_mixed(gpt2: Gpt2, recipe: Path) -> None:
    assert gpt2(COMMAND, recipe, *SHORT).code == 0
    path = FOLDER / "responses.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    (FOLDER / "scores.json").unlink()
    assert gpt2(COMMAND, recipe, "--resume", "eval.max_new_tokens=2").code == 0
    assert len(responses()) == 4 and all(answer["tokens"] <= 2 for answer in responses())


def test_a_test_record_that_changed_is_asked_again(gpt2: Gpt2, recipe: Path) -> None:
    assert gpt2(COMMAND, recipe, *SHORT).code == 0
    index, records = responses()[0]["index"], some_records()
    records[index]["output"] = "something else"
    (recipe.parent / "records.json").write_text(json.dumps(records))
    done = gpt2(COMMAND, recipe, "--resume")
    assert done.code == 0 and "nothing to do" not in done.err, done.err
    assert {answer["index"]: answer["output"] for answer in responses()}[index] == "something else"


def test_rouge_that_is_asked_for_later_is_computed_without_answering_again(gpt2: Gpt2, recipe: Path) -> None:
    assert gpt2(COMMAND, recipe, *SHORT).code == 0
    before = (FOLDER / "responses.jsonl").read_text()
    done = gpt2(COMMAND, recipe, "--resume", "eval.rouge=true")
    assert done.code == 0 and "nothing to do" not in done.err, done.err
    assert "rouge_l" in json.loads((FOLDER / "scores.json").read_text())
    assert (FOLDER / "responses.jsonl").read_text() == before
    again = gpt2(COMMAND, recipe, "--resume")
    assert again.code == 0 and "nothing to do" in again.err


@pytest.mark.parametrize("packing", ["true", "false"])
def test_a_resume_with_another_limit_is_refused(gpt2: Gpt2, recipe: Path, packing: str) -> None:
    assert gpt2(COMMAND, recipe, *SHORT, f"packing={packing}").code == 0
    done = gpt2(COMMAND, recipe, "--resume", "data.max_tokens=60")
    assert done.code == 3 and "data.max_tokens: 64 -> 60" in done.err, done.err


def test_the_hint_can_be_pasted(gpt2: Gpt2, recipe: Path) -> None:
    done = gpt2(COMMAND, recipe, *SHORT, "--name", "with a space")
    assert done.code == 0 and "gpt2 chat 'runs/with a space'" in done.err, done.err


def test_documents_and_summaries_are_learnt_by_their_names(gpt2: Gpt2, tmp_path: Path) -> None:
    records = [{"document": f"It rained {i} days.", "summary": f"Rain, {i}."} for i in range(20)]
    done = gpt2(
        COMMAND,
        write_teaching(tmp_path, records),
        *SHORT,
        *("data.input=document", "data.output=summary", "data.task=Sum it up."),
    )
    assert done.code == 0, done.err
    for answer in responses():
        record = records[answer["index"]]
        assert answer["instruction"] == "Sum it up." and answer["input"] == record["document"]
        assert answer["output"] == record["summary"]


def test_the_shipped_recipe_for_summaries_says_what_is_asked_of_documents() -> None:
    from gpt2cli.recipe.loader import load_recipe

    path = Path(__file__).parents[2] / "recipes" / "summarize.yaml"
    loaded: Any = load_recipe(str(path), [])
    assert loaded.recipe.data.task == "Summarize the text in one sentence."
    assert "data.source=YOURS.jsonl data.input=document data.output=summary" in path.read_text()


def test_answers_keep_the_conversation_they_were_asked(gpt2: Gpt2, tmp_path: Path) -> None:
    talk = [("system", "Be kind."), ("user", "Hi {0}"), ("assistant", "Ho {0}"), ("user", "Why {0}?")]
    records = [
        {
            "messages": [
                *({"role": role, "content": text.format(i)} for role, text in talk),
                {"role": "assistant", "content": "So."},
            ]
        }
        for i in range(20)
    ]
    assert gpt2(COMMAND, write_teaching(tmp_path, records), *SHORT).code == 0
    answers = responses()
    assert len({answer["digest"] for answer in answers}) == len(answers) == 4
    for answer in answers:
        assert answer["messages"] == records[answer["index"]]["messages"][:-1]
        assert answer["instruction"] == answer["messages"][-1]["content"]
    older = [{k: v for k, v in answer.items() if k not in ("messages", "digest")} for answer in answers]
    path = FOLDER / "responses.jsonl"
    path.write_text("".join(json.dumps(answer) + "\n" for answer in older[:2]))  # of an earlier version
    (FOLDER / "scores.json").unlink()
    assert (
        "answering 2 test prompts, 2 are answered" in gpt2(COMMAND, "runs/teach/recipe.yaml", "--resume").err
    )
    assert [answer["index"] for answer in responses()] == [answer["index"] for answer in answers]
