"""The number of threads: what was asked for, what the machine allows, what the work is worth."""

import json
import os
from pathlib import Path

import pytest
from tiny_run import PRETRAIN, Call, random_text, train, write_tokens

from gpt2cli.cores import choose_threads, crowded, forward_seconds, let_threads_sleep, usable_cores

HUGE = 1e3  # seconds of a forward


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)


def test_cores_are_those_of_the_affinity_and_the_quota(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    for text, cores in (
        ("max 100000", 8),
        ("250000 100000", 3),
        ("900000 100000", 8),
        ("50 100000", 1),
        ("", 8),
    ):
        quota.write_text(text)
        assert usable_cores(quota) == cores, text
    assert usable_cores(tmp_path / "none") == 8


@pytest.mark.parametrize(
    ("load", "running", "spins"), [(0.1, 1, "10000"), (3.0, 1, "10000"), (1.4, 3, "1000")]
)
def test_waiting_threads_sleep_sooner_beside_other_programs(
    load: float, running: int, spins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has just ended is in the load of a minute, but does not run now."""
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: f"{load} {load} {load} {running}/99 1")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)  # which the tests set
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    let_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "7", "what the user has set stays"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    let_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == spins


def test_small_work_gets_one_thread_and_the_rest_one_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, a_token_of_124m = forward_seconds(100_000, 4 * 64), forward_seconds(124_000_000, 1)
    assert [choose_threads(0, forward) for forward in (tiny, a_token_of_124m, HUGE)] == [1, 8, 8]
    assert choose_threads(0, HUGE, processes=3) == 2
    assert [choose_threads(n, tiny) for n in (1, 5, 10_000)] == [1, 5, 32]
    for text, wide, narrow in (("3", 3, 3), ("6,2", 6, 6), ("many", 8, 1), ("0", 8, 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert (choose_threads(0, HUGE), choose_threads(0, tiny)) == (wide, narrow), text
        assert choose_threads(2, tiny) == 2


def test_that_others_use_the_cores_is_said_with_what_to_type() -> None:
    assert (
        crowded(8, 0.3, "--threads ") == crowded(1, 16.0, "--threads ") == crowded(8, 8.0, "--threads ") == ""
    )
    assert "--threads 5 " in crowded(8, 11.0, "--threads ") and "run.threads=1 " in crowded(
        8, 40.0, "run.threads="
    )


def test_a_resumed_run_keeps_its_number_of_threads(gpt2: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokens(gpt2, random_text(400, seed=1))
    recipe = {**PRETRAIN, "optim": {"steps": 2}, "run": {**PRETRAIN["run"], "threads": 0}}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    run = train(gpt2, recipe, "run")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    go_on = ["pretrain", "runs/run/recipe.yaml", "--resume"]
    kept = gpt2(*go_on, "optim.steps=3")
    assert kept.code == 0 and "threads stay at 2" in kept.err, kept.err
    changed = gpt2(*go_on, "optim.steps=4", "run.threads=1")
    assert changed.code == 0 and "threads stay" not in changed.err
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    assert [session["machine"]["threads"] for session in sessions] == [2, 2, 1]
