"""The tour, shortened, in a folder of its own: every step must have had its effect."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.checkpoints.classifier import load_classifier
from gpt2cli.checkpoints.folder import load_model
from gpt2cli.data.token_dataset import open_dataset
from gpt2cli.evaluation.responses import Response, read_responses
from gpt2cli.judge.grade import parse_grade
from gpt2cli.judge.prompt import grade_messages
from gpt2cli.recipe.loader import load_recipe

ROOT = Path(__file__).parents[1]
TEXTS = ("story.txt", "messages.tsv", "instructions.json")
NEEDED = (
    *(f"tour/{name}" for name in ("tour.sh", "tour.yaml", "word_judge.py")),
    *(f"gpt2cli/bundled/{name}" for name in TEXTS),
    *("recipes/spam-tiny.yaml", "recipes/instruct.yaml"),
)
PATIENCE = 240  # seconds; on an idle machine it takes half a minute


def load_word_judge() -> Any:
    spec = importlib.util.spec_from_file_location("word_judge", ROOT / "tour/word_judge.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


word_judge = load_word_judge()


def copied(folder: Path) -> Path:
    """A folder with all that the tour names, and no more of the project."""
    for name in NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run_tour(folder: Path, **env: str) -> tuple[int, str]:
    """Its exit code and what it prints. Without a network, as far as an environment can say so."""
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GPT2_HOME": str(folder / "home"),
        "GPT2_MIRROR": str(folder / "no-mirror"),
        "HTTPS_PROXY": "http://127.0.0.1:1",
        "TOUR_JUDGE": "llama3.2",
    }
    with subprocess.Popen(
        ["bash", "tour/tour.sh"],
        cwd=folder,
        env=os.environ | own | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as tour:
        try:
            said, _ = tour.communicate(timeout=PATIENCE)
        except BaseException:
            os.killpg(tour.pid, signal.SIGKILL)  # with whatever it has started
            raise
    return tour.returncode, said


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an earlier tour has left something, and somebody else too."""
    folder = copied(tmp_path_factory.mktemp("tour"))
    for name in ("runs/tour/run.json", "runs/tour-spam/stale", "runs/touring/kept", "runs/mine/kept"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(scope="session")
def said(place: Path) -> str:
    """What the shortened tour prints where no Ollama answers; it is run once."""
    with socket.socket() as taken:  # bound but not listening: who connects is refused
        taken.bind(("127.0.0.1", 0))
        code, said = run_tour(place, TOUR_SHORT="1", OLLAMA_HOST=f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 0, said
    return said


@pytest.fixture
def rehearsal(tmp_path: Path) -> Path:
    """A folder with a `gpt2` that does nothing, so that the whole tour takes no time."""
    rehearsed = copied(tmp_path) / "bin/gpt2"
    rehearsed.parent.mkdir()
    rehearsed.write_text("#!/bin/sh\nmkdir -p runs\ncat > /dev/null\n")
    rehearsed.chmod(0o755)
    return tmp_path


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that lists llama3.2, as Ollama does."""
    monkeypatch.setattr(word_judge, "NAME", "llama3.2:latest")
    server = word_judge.ThreadingHTTPServer(("127.0.0.1", 0), word_judge.Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def after(said: str, command: str) -> str:
    """What is printed between a command and its time."""
    _, found, rest = said.partition(f"$ {command}")
    assert found, f"{command} is not in:\n{said}"
    return rest.partition("\n# (")[0].partition("\n")[2]


@pytest.mark.timeout(PATIENCE)
def test_every_training_leaves_a_model_that_loads(said: str, place: Path) -> None:
    with open_dataset(place / "runs/tour-text") as data:
        assert (data.train.n_tokens, data.validation.n_tokens) == (5080, 564)
    for command, name in (("pretrain", "tour"), ("finetune-instruct", "tour-assistant")):
        assert "finished at step 3 of 3; best validation loss" in after(said, f"gpt2 {command} ")
        assert load_model(place / "runs" / name / "best").config.n_embd == 128
    assert load_classifier(place / "runs/tour-spam/best").labels == ("ham", "spam")


def test_it_begins_afresh_and_takes_nothing_of_others(said: str, place: Path) -> None:
    assert not (place / "runs/tour-spam/stale").exists()
    assert (place / "runs/touring/kept").exists() and (place / "runs/mine/kept").exists()
    made = {path.name for path in (place / "runs").iterdir()} - {"touring", "mine"}
    assert all(name == "tour" or name.startswith("tour-") for name in made)
    assert {path.name for path in place.iterdir()} - {"home"} == {"tour", "gpt2cli", "recipes", "runs"}


def test_the_classifier_is_measured_and_used(said: str, place: Path) -> None:
    report = json.loads((place / "runs/tour-spam/report.json").read_text())
    assert f"accuracy {report['accuracy']:.4f}" in after(said, "gpt2 finetune-classify")
    lines = after(said, "gpt2 classify").splitlines()
    assert [line.split("\t")[2] for line in lines] == [
        "URGENT! Your number has won a 500 gift card. Reply CLAIM before midnight",
        "Shall we have lunch on Friday?",
    ]
    assert all(line.split("\t")[0] in ("ham", "spam") and float(line.split("\t")[1]) >= 0.5 for line in lines)


def test_every_response_has_the_score_that_it_deserves(said: str, place: Path) -> None:
    assert "what follows is no judge, but a program that counts shared words" in said
    run = place / "runs/tour-assistant"
    responses = {response.index: response for response in read_responses(run / "responses.jsonl")}
    judged = [json.loads(line) for line in (run / "judgements.jsonl").read_text().splitlines()]
    found = {judgement["index"]: judgement for judgement in judged if judgement["index"] >= 0}
    assert len(responses) == 21 and found.keys() == responses.keys()
    for index, response in responses.items():
        assert found[index]["score"] == (deserved(response) if response.response.strip() else None)
    assert any(response.response.strip() for response in responses.values()), "nothing was judged"


def deserved(response: Response) -> dict[str, Any]:
    return word_judge.grade(response.instruction, response.input, response.output, response.response)


def test_the_stand_in_for_a_judge_ends_with_the_tour(said: str, place: Path) -> None:
    url = (place / "runs/tour-judge.url").read_text().strip()
    port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/v1", url)[1])  # type: ignore[index]
    with socket.socket() as connection:
        assert connection.connect_ex(("127.0.0.1", port)) != 0


def test_the_chat_answers_three_times(said: str, place: Path) -> None:
    replies = after(said, "printf").split("all turns are forgotten")
    assert len(replies) == 3 and all(reply.strip() for reply in replies)


def test_the_exported_model_is_whole(said: str, place: Path) -> None:
    reader = GGUFReader(place / "runs/tour-assistant.gguf")
    assert {f"blk.{layer}.attn_qkv.weight" for layer in range(4)} <= {t.name for t in reader.tensors}


@pytest.mark.timeout(60)
def test_it_ends_at_the_first_command_that_fails(tmp_path: Path) -> None:
    (copied(tmp_path) / "gpt2cli/bundled/story.txt").write_text("too short")
    code, said = run_tour(tmp_path)
    assert code == 3
    assert said.count("\n$ ") == 2
    assert "The tour ends here: exit code 3 of\n  gpt2 prepare" in said


@pytest.mark.timeout(60)
def test_a_judge_is_taken_where_there_is_one(rehearsal: Path, ollama: str) -> None:
    code, said = run_tour(
        rehearsal, PATH=f"{rehearsal / 'bin'}{os.pathsep}{os.environ['PATH']}", OLLAMA_HOST=ollama
    )
    assert code == 0, said
    assert "\n$ gpt2 judge runs/tour-assistant --ollama llama3.2\n" in said and "word_judge" not in said


@pytest.mark.timeout(60)
def test_the_long_tour_asks_for_what_recipes_can_be(rehearsal: Path, ollama: str) -> None:
    _, said = run_tour(
        rehearsal, PATH=f"{rehearsal / 'bin'}{os.pathsep}{os.environ['PATH']}", OLLAMA_HOST=ollama
    )
    tasks = []
    for command in re.findall(r"^\$ gpt2 ((?:pretrain|finetune).*)$", said, re.MULTILINE):
        task, recipe, *rest = shlex.split(command)
        loaded = load_recipe(recipe, [word for word in rest if "=" in word]).recipe
        assert loaded.task == task and loaded.optim.steps > 50
        tasks.append(task)
    assert tasks == ["pretrain", "finetune-classify", "finetune-instruct"]


def test_its_recipe_keeps_to_the_house_rules() -> None:
    loaded = load_recipe(str(ROOT / "tour/tour.yaml"))
    text = loaded.path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert "# command:  gpt2 prepare" in text and "# measured: " in text
    shaping = ("seed", "model.context", "model.dropout", "batch.", "optim.")
    assert not [
        key
        for key, origin in loaded.origins.items()
        if key.startswith(shaping)
        and origin == "default"
        and key not in ("optim.name", "optim.schedule", "optim.decay_steps")  # adamw, cosine
    ]


@pytest.mark.parametrize(
    ("question", "reference", "response", "score"),
    [
        ("What is the capital of Portugal?", "The capital of Portugal is Lisbon.", "Lisbon", 100),
        ("What is the capital of Portugal?", "The capital of Portugal is Lisbon.", "lisbon or Porto", 50),
        ("What is the capital of Portugal?", "The capital of Portugal is Lisbon.", "It is Porto.", 0),
        ("Is it positive or negative?", "negative", "Negative.", 100),
        ("Is it positive or negative?", "negative", "Is it positive or negative?", 33),
        ("What is the capital of Portugal?", "The capital of Portugal is Lisbon.", "", 0),
    ],
)
def test_shared_words_are_counted(question: str, reference: str, response: str, score: int) -> None:
    assert word_judge.grade(question, "", reference, response)["score"] == score


@pytest.mark.parametrize("trivial", ["What is the capital of Portugal?", "I don't know.", "Give 100."])
def test_trivial_answers_get_nothing(trivial: str) -> None:
    question, reference = "What is the capital of Portugal?", "The capital of Portugal is Lisbon."
    assert word_judge.grade(question, "", reference, trivial)["score"] == 0


@given(st.text(), st.text(), st.text(), st.text())
def test_every_grade_keeps_to_the_schema(instruction: str, input: str, reference: str, response: str) -> None:
    asked = json.loads(grade_messages(instruction, input, reference, response)[-1]["content"])
    graded = word_judge.grade(*(asked[field] for field in word_judge.FIELDS))
    assert parse_grade(json.dumps(graded)).score == graded["score"]
