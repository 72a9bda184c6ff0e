"""Training whose streams break, or which a signal hits, at any moment: no finished step is ever lost.

After a signal the run has saved its last step; without one it goes on to its end. Either way it becomes
the uninterrupted run, bit for bit.
"""

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import Interruption, Moment, run_interrupted
from lessons import write_lesson
from matplotlib.figure import Figure
from teaching import write_teaching
from tiny_run import PRETRAIN, Call, all_events, random_text, write_tokens

SEED = 1
ALIKE = ("optim.steps=9", "eval.every=4", "checkpoint.every=5", "run.threads=1")
RESULTS = ("report.json", "responses.jsonl", "scores.json")  # of the fine-tunes
# What happens, and the exit code: 0 where the run shall go on to its end.
INTERRUPTIONS = [
    (Interruption("tee", ("INT",)), 130),
    (Interruption("tee", ("reader",)), 0),
    (Interruption("tee", ("HUP", "HUP")), 129),
    (Interruption("tee", ("reader", "TERM")), 143),
    (Interruption("pipes", ("stdout",)), 0),
    (Interruption("pipes", ("stderr",)), 0),
    (Interruption("pipes", ("stdout", "stderr")), 0),
    (Interruption("pipes", ("stderr", "INT")), 130),
    (Interruption("pipes", ("HUP",), ignores_hup=True), 0),
    (Interruption("pty", ("INT",)), 130),
    (Interruption("pty", ("INT", "terminal")), 130),
    (Interruption("pty", ("terminal", "HUP")), 129),
    (Interruption("pty", ("TERM", "terminal")), 143),
    (Interruption("pty", ("terminal",), ignores_hup=True), 0),
    (Interruption("pty", ("terminal", "TERM"), ignores_hup=True), 143),
    (Interruption("files", ("INT", "HUP")), 130),
    (Interruption("files", ("HUP", "TERM")), 129),
    (Interruption("closed", ("INT",)), 130),
    (Interruption("closed", ("TERM",)), 143),
    (Interruption("closed", ("HUP", "HUP")), 129),
]
PHASES = ("step", "evaluation", "save")


def write_pretrain(gpt2: Call, folder: Path) -> Path:
    write_tokens(gpt2, random_text(260, seed=8))
    path = folder / "run.yaml"
    path.write_text(
        json.dumps({**PRETRAIN, "model": {**PRETRAIN["model"], "dropout": 0.2}}), encoding="utf-8"
    )
    return path


TASKS: dict[str, Any] = {
    "pretrain": write_pretrain,
    "finetune-classify": lambda gpt2, folder: write_lesson(folder),
    "finetune-instruct": lambda gpt2, folder: write_teaching(folder),
}
EACH_WITH_ITS_TASK = [
    (interruption, code, phase, [*TASKS][(i + j) % 3])
    for i, (interruption, code) in enumerate(INTERRUPTIONS)
    for j, phase in enumerate(PHASES)
]


def draw_moment(phase: str, whole: list[dict[str, Any]], draw: random.Random) -> Moment:
    """A moment in a phase, by the records of the uninterrupted run."""
    kind = {"step": "StepDone", "evaluation": "EvalDone", "save": "CheckpointSaved"}[phase]
    last_step = max(n for n, event in enumerate(whole) if event["event"] == "StepDone")
    before = draw.choice(
        [n for n, event in enumerate(whole) if event["event"] == kind and 0 < n <= last_step]
    )
    return Moment(before, in_save=phase == "save", calls=draw.randrange(200))


def same_end(run: Path, whole: Path) -> bool:
    """Records but for saves and stops, weights, AdamW's state, and the results."""

    def measured(folder: Path) -> list[dict[str, Any]]:
        return [event for event in all_events(folder) if event["event"] in ("StepDone", "EvalDone")]

    names = ["last/model.safetensors", "last/train_state.safetensors"]
    names += [name for name in RESULTS if (whole / name).exists()]
    return measured(run) == measured(whole) and all(
        (run / name).read_bytes() == (whole / name).read_bytes() for name in names
    )


def interrupt_all(task: str, cases: list[Any], gpt2: Call, folder: Path) -> None:
    recipe, whole = TASKS[task](gpt2, folder), folder / "whole"
    done = gpt2(task, recipe, *ALIKE, "--name", whole)
    assert done.code == 0, done.err
    records = all_events(whole)
    for n, (interruption, code, phase, _) in enumerate(cases):
        moment = draw_moment(phase, records, random.Random(f"{SEED} {task} {n}"))
        where = f"{interruption}, {moment}"
        run, log = folder / f"run-{n}", folder / f"run-{n}.log"
        start = [task, str(recipe), *ALIKE, "--name", str(run)]
        found = run_interrupted(start, interruption, moment, log)
        assert not log.exists(), where + log.read_text(encoding="utf-8")
        assert found == code, where
        if code:
            *_, stopped = all_events(run)
            finished = max(event["step"] for event in all_events(run) if event["event"] == "StepDone")
            state = json.loads((run / "last" / "train_state.json").read_text(encoding="utf-8"))
            assert (stopped["event"], stopped["signal"]) == ("Stopped", code - 128), where
            assert state["progress"]["step"] == stopped["step"] == finished, where
            said = f"{signal.Signals(code - 128).name}:".encode()
            files = [path for path in run.rglob("*") if path.is_file()]
            assert not [path for path in files if said in path.read_bytes()], where
            done = gpt2(task, recipe, "--name", run, "--resume")
            assert done.code == 0, where + done.err
        assert same_end(run, whole), where


@pytest.fixture(autouse=True)
def one_thread_and_no_pictures(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fork has no threads but its own, and the bits depend on their number. Drawing takes the longest."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("task", TASKS)
def test_a_broken_stream_or_a_signal_costs_no_step(task: str, gpt2: Call, tmp_path: Path) -> None:
    interrupt_all(task, [case for case in EACH_WITH_ITS_TASK[::7] if case[3] == task], gpt2, tmp_path)


@pytest.mark.proofs
@pytest.mark.parametrize("task", TASKS)
def test_sixty_interruptions(task: str, gpt2: Call, tmp_path: Path) -> None:
    assert len(EACH_WITH_ITS_TASK) == 60
    interrupt_all(task, [case for case in EACH_WITH_ITS_TASK if case[3] == task], gpt2, tmp_path)
