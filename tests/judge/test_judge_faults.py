"""Scripted faults in hundreds of orders, and kills: no judgement is lost, doubled, invented or misplaced.

What has to come out of a script is worked out here a second time, question by question.
"""

import json
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from judge_server import BROKEN, BUSY, FAULTS, FINAL, MODEL, SLOW, TEXTS, Judge, grade, judging

from gpt2cli.errors import ServiceError
from gpt2cli.judge.asking import ANSWERS
from gpt2cli.judge.client import PATIENCE, TIME_OUTS
from gpt2cli.judge.items import Item
from gpt2cli.judge.rubric import Score
from gpt2cli.judge.runner import Judgement, canaries, judge, judged
from gpt2cli.judge.server import openai_compatible

QUICK = replace(PATIENCE, stall=3.0, window=3.0, total=3.0, first_pause=0.0, attempts=4)
LOST = {*BUSY, *BROKEN, *SLOW, "429-late"}
ENDS = {"401", "403", "404", "404-model", "redirect"}
WRONG = {*TEXTS, "length", "filtered"}
# Slow ones cost a time-out each.
WEIGHTS = {kind: 0.03 if kind in SLOW else 1.0 for kind in FAULTS} | {"ok": 12.0}


def fields_of(item: Item) -> dict[str, str]:
    shown = asdict(item)
    del shown["index"]
    return shown


def right(item: Item) -> Score:
    return Score(**grade(fields_of(item)))


def items_of(name: str, n: int) -> list[Item]:
    """The last one is empty. No two responses of a sequence are equal."""
    items = [Item(3 * i, f"{name}: ask {i}", "", f"right {i}", f"{name}: say {i}") for i in range(n)]
    return [*items, Item(3 * n, "ask", "", "right", " ")]


@dataclass
class Expected:
    """What becomes of one question, whose faults come in a row; begun anew after each end of a run."""

    faults: list[str]

    def status(self) -> str:
        """The final status, or "again" where the run has to be started again."""
        for _ in range(ANSWERS):
            n_lost = n_slow = 0
            while True:
                kind = self.faults.pop(0) if self.faults else "ok"
                n_lost, n_slow = n_lost + 1, n_slow + (kind in SLOW)
                passes = kind in LOST and kind not in ("429-late", "die")
                if not passes or n_lost == QUICK.attempts or n_slow == TIME_OUTS:
                    break
            if kind in LOST or kind in ENDS:
                return "again" if kind in ("die", *ENDS) else "unanswered"
            if kind in ("400", "400-context"):
                return "unscored" if kind == "400" else "truncated"
            if kind == "few-tokens":
                return "truncated"
            if kind not in WRONG:
                return "scored"
        return "unscored"


def expected_statuses(items: list[Item], faults: dict[str, list[str]]) -> dict[int, str]:
    """For one question at a time, as reruns go; `faults` are by response, and used up."""
    asked = [item for item in (*canaries(items), *items) if item.response.strip()]
    questions = {item.index: Expected(list(faults[item.response])) for item in asked}
    statuses = {i.index: "empty" for i in items if not i.response.strip()}
    for _ in range(1000):
        if all(item.index in statuses for item in items):  # then nobody asks about canaries any more
            return statuses
        n_unanswered = 0
        for item in (*canaries(items), *items):
            if item.index in statuses:
                continue
            status = questions[item.index].status()
            if item.index >= 0:  # a canary's is nothing
                n_unanswered = n_unanswered + 1 if status == "unanswered" else 0
            if status == "again" or n_unanswered == 3:
                break
            if status != "unanswered":
                statuses[item.index] = status
    raise AssertionError("no end")


def run_to_the_end(server: Judge, items: list[Item], path: Path, n_parallel: int) -> list[Judgement]:
    """Judge, again after each exit 5; returns what was yielded, in all runs."""
    seen: list[Judgement] = []
    for _ in range(100):
        server.is_dead = False
        runs = judge(
            items, openai_compatible(server.base_url, MODEL), path, n_parallel=n_parallel, patience=QUICK
        )
        try:
            for judgement in runs:
                seen.append(judgement)
        except ServiceError:
            continue
        return seen
    raise AssertionError("no end")


def check_all(seen: list[Judgement], items: list[Item], path: Path) -> dict[int, Judgement]:
    """What holds whatever the faults were; returns the judgements by index."""
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert lines == [json.loads(json.dumps(asdict(judgement))) for judgement in seen], "kept as it came"
    everything = {item.index: item for item in (*canaries(items), *items)}
    found = {judgement.index: judgement for judgement in seen}
    assert len(found) == len(seen), "nothing twice"
    assert set(found) <= set(everything) and {item.index for item in items} <= set(found)
    for index, judgement in found.items():
        assert judgement.asked == everything[index].asked
        assert (judgement.status == "scored") == (judgement.score is not None) == (not judgement.why)
        if judgement.score is not None:
            assert replace(judgement.score, reason="") == replace(right(everything[index]), reason="")
            assert judgement.score.reason in (right(everything[index]).reason, "half ?")
    assert judged(items, path) == [found[index] for index in sorted(found)]
    return found


def draw(generator: random.Random, items: list[Item], kinds: list[str]) -> dict[str, list[str]]:
    weights = [WEIGHTS[kind] for kind in kinds]
    return {
        item.response: generator.choices(kinds, weights, k=generator.choice((0, 0, 1, 2, 3, 5)))
        for item in (*canaries(items), *items)
    }


def one_at_a_time(seed: int, folder: Path) -> None:
    """Everything that can happen, and exactly what has to become of it."""
    generator, items = random.Random(seed), items_of(f"sequence {seed}", 2)
    faults = draw(generator, items, list(WEIGHTS))
    with judging() as server:
        server.faults = {response: list(kinds) for response, kinds in faults.items()}
        seen = run_to_the_end(server, items, folder / f"{seed}.jsonl", n_parallel=1)
    found = check_all(seen, items, folder / f"{seed}.jsonl")
    statuses = {index: judgement.status for index, judgement in found.items()}
    assert statuses == expected_statuses(items, faults), (seed, faults)


def several_at_once(seed: int, folder: Path) -> None:
    """Faults that concern one question each: what becomes of it does not depend on the others."""
    generator, items = random.Random(seed), items_of(f"sequence {seed}", 4)
    kinds = [kind for kind in WEIGHTS if kind not in (*ENDS, "die", "400", "429-late")]
    faults = draw(generator, items, kinds)
    expected = {}
    for item in (*canaries(items), *items):
        while (status := Expected(list(faults[item.response])).status()) == "unanswered":
            faults[item.response].pop()
        expected[item.index] = status if item.response.strip() else "empty"
    with judging() as server:
        server.faults = {response: list(kinds) for response, kinds in faults.items()}
        seen = run_to_the_end(server, items, folder / f"{seed}.jsonl", generator.randint(2, 4))
        n_right = sum(len(faults[item.response]) == 0 for item in items if item.response.strip())
        assert len(server.asked()) >= n_right
    found = check_all(seen, items, folder / f"{seed}.jsonl")
    assert {index: judgement.status for index, judgement in found.items()} == expected, (seed, faults)


def several_at_once_and_the_server_dies(seed: int, folder: Path) -> None:
    """Whatever is under way when a run ends is asked again by the next one."""
    generator, items = random.Random(seed), items_of(f"sequence {seed}", 4)
    faults = draw(generator, items, list(WEIGHTS))
    with judging() as server:
        server.faults = {response: list(kinds) for response, kinds in faults.items()}
        seen = run_to_the_end(server, items, folder / f"{seed}.jsonl", generator.randint(2, 4))
    found = check_all(seen, items, folder / f"{seed}.jsonl")
    for item in items:
        kinds, status = faults[item.response], found[item.index].status
        n_wrong = sum(kind in WRONG for kind in kinds)
        possible = {"scored": True, "empty": not item.response.strip()}
        possible["truncated"] = bool({"few-tokens", "400-context"} & set(kinds))
        possible["unscored"] = n_wrong >= ANSWERS or "400" in kinds
        assert possible[status], (seed, kinds, status)


@pytest.mark.parametrize(
    ("sequence", "seeds"),
    [
        (one_at_a_time, range(80)),
        (several_at_once, range(100, 160)),
        (several_at_once_and_the_server_dies, range(200, 260)),
    ],
)
def test_200_sequences_of_faults(sequence, seeds: range, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda seed: sequence(seed, tmp_path), seeds))) == len(seeds)


def test_the_sequences_hold_every_fault() -> None:
    drawn = set()
    for seed in range(80):
        items = items_of("x", 2)
        drawn |= {k for ks in draw(random.Random(seed), items, list(WEIGHTS)).values() for k in ks}
    assert drawn >= set(FAULTS) - set(SLOW) and set(FINAL) <= drawn


# Judges in a process of its own; exits as the program does: 130 by Ctrl-C, 143 by SIGTERM.
JUDGE = """
import signal, sys
from pathlib import Path
from gpt2cli.cli.signals import stop_on_signal
from gpt2cli.judge.items import read_items
from gpt2cli.judge.runner import judge
from gpt2cli.judge.server import openai_compatible
with stop_on_signal("what is judged is kept") as stop:
    server = openai_compatible(sys.argv[1], sys.argv[2])
    for judgement in judge(read_items(Path(sys.argv[3])), server, Path(sys.argv[4]), n_parallel=2, stop=stop):
        print(judgement.index, flush=True)
    sys.exit(128 + stop() if stop() else 0)
"""


def start(server: Judge, folder: Path) -> "subprocess.Popen[str]":
    arguments = [server.base_url, MODEL, str(folder / "items.json"), str(folder / "judgements.jsonl")]
    return subprocess.Popen([sys.executable, "-c", JUDGE, *arguments], stdout=subprocess.PIPE, text=True)


def write_items(items: list[Item], folder: Path) -> None:
    names = {"instruction": "instruction", "input": "input", "reference": "output", "response": "response"}
    records = [{"index": i.index} | {names[k]: v for k, v in fields_of(i).items()} for i in items]
    (folder / "items.json").write_text(json.dumps(records))


def kill_and_go_on(folder: Path, n_items: int, seed: int) -> int:
    """Judge, killed at random moments, until all is judged; returns the kills."""
    generator, items = random.Random(seed), items_of("killed", n_items)
    write_items(items, folder)
    path, said = folder / "judgements.jsonl", set[int]()
    with judging() as server:
        for n_kills in range(1000):
            process = start(server, folder)
            assert process.stdout is not None
            said |= {int(word) for word in process.stdout.readline().split()}
            time.sleep(generator.uniform(0, 0.1))
            process.kill()
            said |= {int(word) for word in process.stdout.read().split()}
            code = process.wait()
            kept = judged(items, path)
            assert said <= {judgement.index for judgement in kept}, "what was said is kept"
            if code == 0:
                lines = [json.loads(line)["index"] for line in path.read_text().split("\n")[:-1]]
                assert len(lines) == len(set(lines)) == len(items) + 3 == len(kept)
                by_index = {item.index: item for item in (*canaries(items), *items)}
                assert all(j.score in (None, right(by_index[j.index])) for j in kept)
                return n_kills
    raise AssertionError("no end")


def test_killed_while_it_judges(tmp_path: Path) -> None:
    assert kill_and_go_on(tmp_path, 40, seed=1) >= 1


@pytest.mark.proofs
def test_killed_while_it_judges_often(tmp_path: Path) -> None:
    assert kill_and_go_on(tmp_path, 1000, seed=2) >= 20


@pytest.mark.proofs
@pytest.mark.parametrize("sequence", [one_at_a_time, several_at_once, several_at_once_and_the_server_dies])
def test_2000_sequences_of_faults(sequence, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda seed: sequence(seed, tmp_path), range(10_000, 10_667)))) == 667


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once_while_the_server_thinks(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    items = items_of("interrupted", 5)
    write_items(items, tmp_path)
    with judging() as server:
        server.faults = {item.response: ["hang"] for item in items[2:5]}
        process = start(server, tmp_path)
        while sum(fields["response"] in server.faults for fields in server.asked()) < 2:
            server.arrived.wait(10)
            server.arrived.clear()
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=10) == code and time.monotonic() - began < 3
        kept = judged(items, tmp_path / "judgements.jsonl")
        assert {judgement.index for judgement in kept} == {-3, -2, -1, 0, 3, 15}
        n_before = len(server.asked())
        server.faults = {}
        assert start(server, tmp_path).wait(timeout=30) == 0
        assert len(server.asked()) == n_before + 3, "the rest only"
    assert {j.index for j in judged(items, tmp_path / "judgements.jsonl")} == {-3, -2, -1, 0, 3, 6, 9, 12, 15}
