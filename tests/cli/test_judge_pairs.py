"""`gpt2 judge A B`: two files of responses, compared in both orders."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import MODEL, Judge, judging, prefer
from judged import without_pauses

Gpt2 = Callable[..., Any]
N = 6


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    without_pauses(monkeypatch)
    with judging() as judge:
        yield judge


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two runs; the last question has the same answer in both."""
    for name in ("one", "two"):
        records = [
            {"instruction": f"Question {i}", "input": "", "output": "x", "response": f"{name} says {i}"}
            for i in range(N)
        ]
        path = tmp_path / "runs" / name / "responses.jsonl"
        path.parent.mkdir(parents=True)
        records[-1]["response"] = "the same"
        path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return ["one", "two"]


def compare(gpt2: Gpt2, server: Judge, *arguments: str) -> Any:
    return gpt2("judge", *arguments, "--base-url", server.base_url, "--judge-model", MODEL)


def better(i: int) -> str:
    return {"first": "win", "second": "loss"}[
        prefer({"first": f"one says {i}", "second": f"two says {i}"})["better"]
    ]


def test_each_pair_is_asked_in_both_orders_and_counted(gpt2: Gpt2, server: Judge, runs: list[str]) -> None:
    outcome = compare(gpt2, server, *runs, "--json")
    facts = json.loads(outcome.out)
    expected = [better(i) for i in range(N - 1)] + ["tie"]
    assert outcome.code == 0 and [one["outcome"] for one in facts["items"]] == expected
    assert (facts["wins"], facts["losses"]) == (expected.count("win"), expected.count("loss"))
    assert (facts["ties"], facts["n_same"], facts["n_compared"]) == (1, 1, N)
    assert facts["win_rate"] == pytest.approx((facts["wins"] + 0.5) / N)
    asked = {(one["instruction"], one["first"], one["second"]) for one in server.asked()}
    assert len(server.asked()) == len(asked) == 2 * (N - 1)
    assert {(question, second, first) for question, first, second in asked} == asked
    assert Path(facts["judgements"]) == Path("runs/one/judgements-vs-two.jsonl")

    mirrored = json.loads(compare(gpt2, server, *reversed(runs), "--json").out)
    assert (mirrored["wins"], mirrored["losses"]) == (facts["losses"], facts["wins"])


def test_a_judge_with_an_eye_for_the_place_gives_ties_and_is_told(
    gpt2: Gpt2, server: Judge, runs: list[str]
) -> None:
    server.answer = lambda fields: {"reason": "It is the first.", "better": "first"}
    outcome = compare(gpt2, server, *runs)
    lines = outcome.out.splitlines()
    assert outcome.code == 0 and lines[2].startswith("A's rate     50.0%  95% interval 50.0% to 50.0%")
    assert f"ties         {N}, 1 the same text" in lines
    assert (
        lines[-1].startswith(f"position     {N - 1} of the ties") and f"{N - 1} times the first" in lines[-1]
    )


def test_a_rerun_asks_for_the_rest_alone(gpt2: Gpt2, server: Judge, runs: list[str]) -> None:
    server.script = ["ok"] * 4 + ["die"]
    lost = compare(gpt2, server, *runs, "--parallel", "1")
    assert lost.code == 5 and "is lost" in lost.err
    assert f"coverage     3 of {N} compared, 3 not judged yet" in lost.out.splitlines()
    assert "A's rate " in lost.out and "95% interval n/a below 5" in lost.out
    server.is_dead = False
    n_before = len(server.asked())
    again = compare(gpt2, server, *runs)
    assert again.code == 0 and len(server.asked()) - n_before == 2 * (N - 1) - 4
    assert f"coverage     {N} of {N} compared" in again.out.splitlines()
    n_before = len(server.asked())
    assert compare(gpt2, server, *runs).out == again.out and len(server.asked()) == n_before


def test_a_pair_without_two_judgements_is_left_out_and_counted(
    gpt2: Gpt2, server: Judge, runs: list[str], tmp_path: Path
) -> None:
    server.script = ["prose"] * 3
    path = tmp_path / "runs" / "two" / "responses.jsonl"
    path.write_text(path.read_text().replace("two says 4", ""))
    outcome = compare(gpt2, server, *runs, "--parallel", "1")
    assert outcome.code == 0
    expected = f"coverage     {N - 2} of {N} compared, 1 unscored, 1 with an empty response"
    assert expected in outcome.out.splitlines()


def test_a_run_against_itself_is_all_ties_and_needs_no_server(gpt2: Gpt2, runs: list[str]) -> None:
    outcome = gpt2(
        "judge", "one", "one", "--base-url", "http://127.0.0.1:9/v1", "--judge-model", "m", "--json"
    )
    assert outcome.code == 0 and outcome.err.startswith(f"nothing to ask about {N} pairs of runs/one/")
    facts = json.loads(outcome.out)
    assert (facts["ties"], facts["n_same"], facts["win_rate"], facts["p_value"]) == (N, N, 0.5, 1.0)


def test_nothing_compared_is_5(gpt2: Gpt2, server: Judge, runs: list[str]) -> None:
    server.answer = lambda fields: {"reason": "?", "better": "neither"}
    outcome = compare(gpt2, server, *runs, "--limit", "2")
    assert outcome.code == 5 and "A's rate     n/a" in outcome.out
    assert (
        "no pair could be compared\nwhy: 0 of 2 compared, 2 unscored: better is 'neither', not one of"
        in outcome.err
    )
    assert f"note: left out: {2 * (N - 2)} responses" in outcome.err


def test_conversations_are_compared_whole(gpt2: Gpt2, server: Judge, tmp_path: Path) -> None:
    """Both runs end every conversation with the same words; two of the conversations are the same."""
    for name, towns in (("one", "Rome Oslo Bonn"), ("two", "Bonn Kyiv Rome Riga")):
        lines = [
            {
                "instruction": "And then?",
                "input": "",
                "output": "x",
                "response": f"{name} on {town}",
                "messages": [
                    {"role": "system", "content": "Be a guide."},
                    {"role": "user", "content": town},
                    {"role": "assistant", "content": "A town."},
                    {"role": "user", "content": "And then?"},
                ],
            }
            for town in towns.split()
        ]
        (path := tmp_path / "runs" / name / "responses.jsonl").parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = compare(gpt2, server, "one", "two")
    assert outcome.code == 0 and "coverage     2 of 2 compared" in outcome.out
    assert "2 questions are shared, 1 only in A, 2 only in B" in outcome.err
    for fields in server.asked():
        town = fields["conversation"][1]["content"]  # type: ignore[index]
        assert {fields["first"], fields["second"]} == {f"one on {town}", f"two on {town}"}
    assert compare(gpt2, server, "one").code == 0, "a single one is shown the conversation too"
    assert server.asked()[-1]["conversation"][0] == {"role": "system", "content": "Be a guide."}  # type: ignore[comparison-overlap]


def test_grades_and_comparisons_do_not_share_a_file(gpt2: Gpt2, server: Judge, runs: list[str]) -> None:
    assert compare(gpt2, server, runs[0]).code == 0
    outcome = compare(gpt2, server, *runs, "--out", "runs/one/judgements.jsonl")
    assert outcome.code == 3 and "not a judgement of this kind" in outcome.err
