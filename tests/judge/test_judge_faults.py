"""Seeded faults in hundreds of orders, and kills: no judgement is lost, doubled, invented or misplaced.

What has to come out of a sequence is worked out here a second time, question by question.
"""

import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from judge_server import BROKEN, BUSY, FAULTS, FINAL, MODEL, SLOW, TEXTS, Judge, judging
from judged import judged, run, score_of

from gpt2cli.errors import ServiceError
from gpt2cli.judge.client import ATTEMPTS, TIMED_OUT_ATTEMPTS
from gpt2cli.judge.endpoint import JudgeServer
from gpt2cli.judge.grade import GradeJudgement, canaries
from gpt2cli.judge.items import JudgeItem
from gpt2cli.judge.runner import MAX_BAD_ANSWERS, MAX_UNANSWERED

TIMEOUT = 3.0
LOST = {*BUSY, *BROKEN, *SLOW, "429-late"}
ENDS = {"401", "403", "404", "404-model", "redirect"}
WRONG = {*TEXTS, "length", "filtered"}
# Slow ones cost a time-out each.
WEIGHTS = {kind: 0.03 if kind in SLOW else 1.0 for kind in FAULTS} | {"ok": 12.0}


def items_of(name: str, n: int) -> list[JudgeItem]:
    """The last one is empty. No two responses of a sequence are equal."""
    items = [JudgeItem(3 * i, f"{name}: ask {i}", "", f"right {i}", f"{name}: say {i}") for i in range(n)]
    return [*items, JudgeItem(3 * n, "ask", "", "right", " ")]


@dataclass
class Expected:
    """What becomes of one question, whose faults come in a row; begun anew after each end of a run."""

    faults: list[str]

    def status(self) -> str:
        """The final status, or "again" where the run has to be started again."""
        for _ in range(MAX_BAD_ANSWERS):
            n_lost = n_slow = 0
            while True:
                kind = self.faults.pop(0) if self.faults else "ok"
                n_lost, n_slow = n_lost + 1, n_slow + (kind in SLOW)
                passes = kind in LOST and kind not in ("429-late", "die")
                if not passes or n_lost == ATTEMPTS or n_slow == TIMED_OUT_ATTEMPTS:
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


def expected_statuses(items: list[JudgeItem], faults: dict[str, list[str]]) -> dict[int, str]:
    """For one question at a time, as reruns go; `faults` are by response, and used up."""
    asked = [item for item in (*canaries(items), *items) if item.response.strip()]
    questions = {item.index: Expected(list(faults[item.response])) for item in asked}
    statuses = {i.index: "empty" for i in items if not i.response.strip()}
    for _ in range(1000):
        if all(item.index in statuses for item in items):  # then no canary is asked about any more
            return statuses
        n_unanswered = 0
        for item in (*canaries(items), *items):
            if item.index in statuses:
                continue
            status = questions[item.index].status()
            if item.index >= 0:  # a canary's is nothing
                n_unanswered = n_unanswered + 1 if status == "unanswered" else 0
            if status == "again" or n_unanswered == MAX_UNANSWERED:
                break
            if status != "unanswered":
                statuses[item.index] = status
    raise AssertionError("no end")


def run_to_the_end(
    server: Judge, items: list[JudgeItem], path: Path, n_parallel: int, is_ollama: bool
) -> list[GradeJudgement]:
    """Judge, again after each exit 5; returns what was kept, in all runs."""
    url = server.base_url.removesuffix("/v1") if is_ollama else server.base_url
    seen: list[GradeJudgement] = []
    for _ in range(100):
        server.is_dead = False
        at = JudgeServer(url, MODEL, is_ollama=is_ollama)
        try:
            run(at, items, path, seen, n_parallel=n_parallel, timeout=TIMEOUT)
        except ServiceError:
            continue
        return seen
    raise AssertionError("no end")


def check_all(seen: list[GradeJudgement], items: list[JudgeItem], path: Path) -> dict[int, GradeJudgement]:
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
            assert replace(judgement.score, reason="") == replace(score_of(everything[index]), reason="")
            reason = judgement.score.reason.removeprefix("</think> ```3``` ")
            assert reason in (score_of(everything[index]).reason, "half ?")
    assert judged(items, path) == [found[index] for index in sorted(found)]
    return found


def draw(generator: random.Random, items: list[JudgeItem], kinds: list[str]) -> dict[str, list[str]]:
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
        seen = run_to_the_end(server, items, folder / f"{seed}.jsonl", 1, seed % 2 == 0)
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
        seen = run_to_the_end(server, items, folder / f"{seed}.jsonl", generator.randint(2, 4), seed % 2 == 0)
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
        seen = run_to_the_end(server, items, folder / f"{seed}.jsonl", generator.randint(2, 4), seed % 2 == 0)
    found = check_all(seen, items, folder / f"{seed}.jsonl")
    for item in items:
        kinds, status = faults[item.response], found[item.index].status
        n_wrong = sum(kind in WRONG for kind in kinds)
        possible = {"scored": True, "empty": not item.response.strip()}
        possible["truncated"] = bool({"few-tokens", "400-context"} & set(kinds))
        possible["unscored"] = n_wrong >= MAX_BAD_ANSWERS or "400" in kinds
        assert possible[status], (seed, kinds, status)


SEQUENCES = [one_at_a_time, several_at_once, several_at_once_and_the_server_dies]


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_60_sequences_of_faults(sequence, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda seed: sequence(seed, tmp_path), range(20)))) == 20


@pytest.mark.proofs
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_510_sequences_of_faults(sequence, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda seed: sequence(seed, tmp_path), range(10_000, 10_170)))) == 170


def test_the_sequences_of_the_proofs_hold_every_fault() -> None:
    drawn = set()
    for seed in range(10_000, 10_170):
        items = items_of("x", 2)
        drawn |= {k for ks in draw(random.Random(seed), items, list(WEIGHTS)).values() for k in ks}
    assert drawn >= set(FAULTS) - set(SLOW) and set(FINAL) <= drawn


# Judges in a process of its own, and says what is kept.
JUDGE = """
import sys
from pathlib import Path
from gpt2cli.judge.grade import GRADING, grade_questions
from gpt2cli.judge.items import read_items
from gpt2cli.judge.runner import JudgeOptions, judge
from gpt2cli.judge.endpoint import openai_compatible
server = openai_compatible(sys.argv[1], sys.argv[2])
questions = grade_questions(read_items(Path(sys.argv[3])))
say = lambda judgement: print(judgement.index, flush=True)
judge(GRADING, questions, server, Path(sys.argv[4]), JudgeOptions(n_parallel=2), keep=say)
"""


def start(server: Judge, folder: Path) -> "subprocess.Popen[str]":
    arguments = [server.base_url, MODEL, str(folder / "items.json"), str(folder / "judgements.jsonl")]
    return subprocess.Popen([sys.executable, "-c", JUDGE, *arguments], stdout=subprocess.PIPE, text=True)


def write_items(items: list[JudgeItem], folder: Path) -> None:
    names = {"instruction": "instruction", "input": "input", "reference": "output", "response": "response"}
    records = [{names.get(k, k): v for k, v in asdict(item).items()} for item in items]
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
            assert said <= {judgement.index for judgement in kept}, "what was kept is in the file"
            if code == 0:
                lines = [json.loads(line)["index"] for line in path.read_text().split("\n")[:-1]]
                assert len(lines) == len(set(lines)) == len(items) + 3 == len(kept)
                by_index = {item.index: item for item in (*canaries(items), *items)}
                assert all(j.score in (None, score_of(by_index[j.index])) for j in kept)
                return n_kills
    raise AssertionError("no end")


def test_killed_while_it_judges(tmp_path: Path) -> None:
    assert kill_and_go_on(tmp_path, 40, seed=1) >= 1


@pytest.mark.proofs
def test_killed_while_it_judges_often(tmp_path: Path) -> None:
    assert kill_and_go_on(tmp_path, 1000, seed=2) >= 20
