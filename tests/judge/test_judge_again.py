"""What is asked again: after a failure at once, in the next run, and by --retry."""

from dataclasses import replace
from pathlib import Path

import pytest
from judge_server import BUSY, MODEL, TEXTS, judging
from judged import ITEMS, QUICK, run, score_of

from gpt2cli.errors import ServiceError
from gpt2cli.judge import asking
from gpt2cli.judge.runner import canaries, judge, judged
from gpt2cli.judge.server import openai_compatible


def test_the_server_dies_and_a_rerun_asks_for_the_rest_only(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with judging(*["ok"] * 5, "die") as server:
        kept, items = [], [*ITEMS, replace(ITEMS[0], index=4), replace(ITEMS[0], index=5)]
        with pytest.raises(ServiceError, match="is lost") as caught:
            for judgement in judge(
                items, openai_compatible(server.base_url, MODEL), path, n_parallel=1, patience=QUICK
            ):
                kept.append(judgement)
        assert [j.index for j in kept] == [-1, -2, -3, 0, 1] and "the same command again" in caught.value.fix
        assert judged(ITEMS, path) == sorted(kept, key=lambda j: j.index)
        server.is_dead, n_before = False, len(server.asked())
        assert [j.index for j in run(server, ITEMS, path)] == [2, 3]
        assert [fields["response"] for fields in server.asked()[n_before:]] == ["say 2", "say 3"]


def test_one_question_that_gets_no_answer_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with judging() as server:
        server.faults = {"say 1": ["500"] * 3}
        with pytest.raises(ServiceError) as caught:
            run(server, ITEMS, path)
        assert "no answer to 1 of 4 questions" in caught.value.what and "out of luck" in caught.value.why
        assert [j.index for j in judged(ITEMS, path)] == [-3, -2, -1, 0, 2, 3]
        assert [(j.index, j.score) for j in run(server, ITEMS, path)] == [(1, score_of(ITEMS[1]))]


def test_nothing_is_made_of_a_canary_without_an_answer(tmp_path: Path) -> None:
    said: list[str] = []
    with judging() as server:
        server.faults = {item.response: ["500"] * 3 for item in canaries(ITEMS)}
        assert [j.index for j in run(server, ITEMS, tmp_path / "j.jsonl", tell=said.append)] == [0, 1, 2, 3]
        assert [line for line in said if line.startswith("no answer about what only tests the judge")]
        n_asked = len(server.asked())
        assert run(server, ITEMS, tmp_path / "j.jsonl") == [] and len(server.asked()) == n_asked


@pytest.mark.parametrize("kind", [*BUSY, "cut", "cut-unmarked", "reset", "hang"])
def test_what_passes_is_tried_again_and_never_scored(kind: str, tmp_path: Path) -> None:
    quick, n = replace(QUICK, stall=0.5, window=0.5, total=0.5), 1 if kind == "hang" else 2
    with judging() as server:
        server.faults = {"say 2": [kind] * n}
        found = {j.index: j for j in run(server, ITEMS, tmp_path / "j.jsonl", patience=quick)}
    assert found[2].score == score_of(ITEMS[2]) and found[2].attempts == n + 1


def test_a_time_out_is_tried_twice_and_the_way_on_is_a_longer_one(tmp_path: Path) -> None:
    quick = replace(QUICK, stall=0.2, window=0.2, total=0.2, attempts=6)
    with judging() as server:
        server.faults = {"say 2": ["hang"] * 6}
        with pytest.raises(ServiceError, match="no answer to 1 of 4 questions") as caught:
            run(server, ITEMS, tmp_path / "j.jsonl", patience=quick)
        assert [fields["response"] for fields in server.asked()].count("say 2") == 2
    assert caught.value.fix.startswith("--timeout SECONDS")


def test_attempts_in_vain_are_told_at_once_and_then_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with judging() as server:
        server.faults = {item.response: ["500", "500"] for item in ITEMS}
        run(server, ITEMS, tmp_path / "one", tell=said.append)
        assert said == ["no answer yet: the server answers 500: out of luck; trying again, 2 of 3"]
        monkeypatch.setattr(asking, "TELL_SECONDS", 0.0)
        server.faults = {item.response: ["500", "500"] for item in ITEMS}
        run(server, ITEMS, tmp_path / "two", tell=said.append)
        assert len(said) == 1 + 8 and said[2].endswith("trying again, 3 of 3")


def test_retry_asks_for_what_is_not_scored_and_the_last_word_stands(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    items = [*ITEMS, replace(ITEMS[0], index=9, response=" ")]
    with judging() as server:
        server.faults = {"say 1": ["prose"] * 3, "say 2": ["few-tokens"], "I don't know.": ["prose"] * 3}
        run(server, items, path)
        assert run(server, items, path) == []
        assert [j.index for j in run(server, items, path, retry=True)] == [-2, 1, 2]
        assert {j.index: j.score for j in judged(items, path)} == {
            i.index: score_of(i) if i.response.strip() else None for i in (*canaries(items), *items)
        }
        assert len(path.read_text().splitlines()) == 8 + 3 and run(server, items, path, retry=True) == []


def test_other_ends_than_stop_are_no_answers(tmp_path: Path) -> None:
    with judging() as server:
        server.faults = {"say 0": ["filtered"] * 3, "say 1": ["length"] * 3, "say 2": ["no-finish"]}
        found = {j.index: j for j in run(server, ITEMS, tmp_path / "j.jsonl")}
    assert "filter cut the answer off" in found[0].why and "for its length" in found[1].why
    assert found[2].status == "scored"


@pytest.mark.parametrize("kind", [*TEXTS, "length"])
def test_what_is_no_answer_is_asked_again_and_then_unscored(kind: str, tmp_path: Path) -> None:
    with judging() as server:
        server.faults = {"say 1": [kind] * 3, "say 2": [kind]}
        found = {j.index: j for j in run(server, ITEMS, tmp_path / "j.jsonl")}
        seeds = [r.body["seed"] for r in server.requests if r.fields.get("response") == "say 1"]
    assert (found[1].status, found[1].score, found[1].attempts) == ("unscored", None, 3) and found[1].why
    assert (found[2].status, found[2].attempts) == ("scored", 2)
    assert seeds == [123, 124, 125]
