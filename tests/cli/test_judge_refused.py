"""`gpt2 judge` where there is nothing to judge, no judge or no answer: what it says, and how it ends."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answers import RECORDS, at, low, rows, scores, write
from judge_server import BUSY, FINAL, MODEL, Judge

from gpt2cli.judge.client import ATTEMPTS

Gpt2 = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--parallel", "0"], 2, "error: --parallel is 0"),
        (["--limit", "0"], 2, "error: --limit is 0"),
        (["--seed", "-1"], 2, "error: --seed is -1"),
        (["--timeout", "0"], 2, "error: --timeout is 0"),
        (["--timeout", "nan"], 2, "error: --timeout is nan"),
        (["--timeout", "inf"], 2, "error: --timeout is inf"),
        (["--ollama", "x"], 2, "error: there are two judges"),
        (["a", "b", "c"], 2, "error: there are 3 targets"),
        (["absent"], 3, "error: absent: no responses here"),
        ([""], 3, "error: '': no responses here"),
        (["empty"], 3, "error: empty: no responses here"),
        ([], 3, "error: there are no responses here yet"),
        (["/dev/zero"], 3, "error: /dev/zero: is not a regular file"),
        (["loop"], 3, "error: loop: "),
        (["list.json"], 3, "error: list.json:1, record 0: not a JSON object"),
        (["good.json", "list.json"], 3, "error: list.json:1, record 0: not a JSON object"),
        (["good.json", "other.json"], 3, "error: good.json and other.json have no question in common"),
        (["nothing.json"], 3, "error: nothing.json"),
        (["nothing.jsonl"], 3, "error: nothing.jsonl"),
        (["good.json", "--out", "empty"], 3, "error: empty: is a directory"),
    ],
)
def test_what_cannot_be_judged_is_said_before_anything_is_asked(
    gpt2: Gpt2, server: Judge, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "nothing.json").write_text("[]")
    (tmp_path / "nothing.jsonl").write_text("")
    write(tmp_path / "good.json", RECORDS)
    write(tmp_path / "other.json", [{**RECORDS[0], "instruction": "Something else."}])
    outcome = gpt2("judge", *arguments, *at(server))
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert outcome.err.startswith(message) and len(outcome.err.splitlines()) <= 4
    assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: there is no judge"),
        (["--judge-model", "m"], "error: --base-url is missing"),
        (["--base-url", "http://127.0.0.1:1/v1"], "error: --judge-model is missing"),
        (["--base-url", "nowhere", "--judge-model", "m"], "error: --base-url: nowhere is not the address"),
    ],
)
def test_who_judges_has_to_be_said(gpt2: Gpt2, file: Path, arguments: list[str], message: str) -> None:
    outcome = gpt2("judge", file, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(message) and "\nfix: " in outcome.err


def test_no_server_and_no_model_are_said_with_what_to_type(
    gpt2: Gpt2, server: Judge, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.base_url.removeprefix("http://").removesuffix("/v1"))
    missing = gpt2("judge", file, "--ollama", "llama3.2")
    assert missing.code == 5 and "fix: ollama pull llama3.2" in missing.err
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    down = gpt2("judge", file, "--ollama", "llama3.2")
    assert down.code == 5 and "fix: ollama serve" in down.err
    found = rows(down.out)
    assert (found["score"], found["coverage"]) == ("n/a", "0 of 6 scored, 6 not judged yet")
    assert not (file.parent / "answers.judgements.jsonl").exists()


def test_a_server_that_dies_costs_nothing_but_the_rest(gpt2: Gpt2, server: Judge, file: Path) -> None:
    server.script = ["ok"] * (3 + 2) + ["die"]
    outcome = gpt2("judge", file, *at(server), "--parallel", "1")
    assert outcome.code == 5 and "error: the judge at http" in outcome.err
    assert rows(outcome.out)["coverage"] == "2 of 6 scored, 4 not judged yet"
    assert rows(outcome.out)["score"].startswith(f"{statistics.fmean(scores()[:2]):.1f} of 100")
    still = gpt2("judge", file, *at(server), "--parallel", "1", "--json")
    assert still.code == 5 and "error: " in still.err
    assert [one["score"] for one in json.loads(still.out)["items"]] == scores()[:2]
    server.is_dead = False
    n_before = len(server.asked())
    again = gpt2("judge", file, *at(server), "--parallel", "1", "--json")
    assert again.code == 0 and "; 2 of 6 are there\n" in again.err
    assert len(server.asked()) - n_before == 4
    assert [one["score"] for one in json.loads(again.out)["items"]] == scores()


@pytest.mark.parametrize("kind", ["prose", "few-tokens"])
def test_nothing_scored_is_not_available_and_5(gpt2: Gpt2, server: Judge, file: Path, kind: str) -> None:
    server.faults = {one["response"]: [kind] * 3 for one in RECORDS}
    outcome = gpt2("judge", file, *at(server))
    assert outcome.code == 5 and rows(outcome.out)["score"] == "n/a"
    status = "truncated" if kind == "few-tokens" else "unscored"
    assert rows(outcome.out)["coverage"] == f"0 of 6 scored, 6 {status}"
    assert f"error: {file}: no response could be scored\nwhy: 0 of 6 scored, 6 {status}: " in outcome.err
    assert ("larger context" if status == "truncated" else "look into ") in outcome.err
    assert "--retry" in outcome.err
    facts = json.loads(gpt2("judge", file, *at(server), "--json").out)
    assert (facts["mean"], facts["interval"]) == (None, None)


def test_empty_responses_alone_need_no_server(gpt2: Gpt2, file: Path) -> None:
    write(file, [{**one, "response": ""} for one in RECORDS])
    outcome = gpt2("judge", file, "--base-url", "http://127.0.0.1:9/v1", "--judge-model", "m")
    assert outcome.code == 5 and rows(outcome.out)["coverage"] == "0 of 6 scored, 6 empty"


def test_another_judge_is_refused_and_fresh_begins_again(gpt2: Gpt2, server: Judge, file: Path) -> None:
    server.models = [MODEL, "other"]
    assert gpt2("judge", file, *at(server)).code == 0
    n_asked, other = len(server.asked()), ("--base-url", server.base_url, "--judge-model", "other")
    refused = gpt2("judge", file, *other)
    assert (refused.code, refused.out) == (3, "") and "were judged before" not in refused.err
    assert f"model was {MODEL}, is other" in refused.err and len(server.asked()) == n_asked
    assert gpt2("judge", file, *at(server), "--seed", "7").code == 3
    assert gpt2("judge", file, *other, "--out", "b.jsonl").code == 0
    assert gpt2("judge", file, *other, "--fresh").code == 0
    assert {one.body["model"] for one in server.requests[-9:]} == {"other"}


def test_a_question_without_an_answer_leaves_the_others_printed(
    gpt2: Gpt2, server: Judge, file: Path
) -> None:
    server.faults = {RECORDS[2]["response"]: ["500"] * ATTEMPTS}
    outcome = gpt2("judge", file, *at(server))
    assert outcome.code == 5 and rows(outcome.out)["coverage"] == "5 of 6 scored, 1 not judged yet"
    lines = outcome.err.splitlines()
    assert lines[1] == "no answer yet: the server answers 500: out of luck; trying again"
    assert lines[2].endswith("no answer to 1 of 6 questions") and lines[4].startswith(
        "fix: look into the server"
    )


KEY = "sk-proj-0123456789abcdef"
BEARER = f"Bearer {KEY}"
ECHOES: dict[str, tuple[int, bytes]] = {
    "error": (500, json.dumps({"error": {"message": f"bad key: {BEARER}"}}).encode()),
    "page": (502, f"<html>{' ' * 190}{BEARER}</html>".encode()),
    "refusal": (401, BEARER.encode()),
    "wrong": (400, BEARER.encode()),
}


@pytest.mark.parametrize("kind", [*ECHOES, "bad-head", "reason", "name", "listing"])
def test_no_byte_anywhere_holds_the_key(
    gpt2: Gpt2, server: Judge, file: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    if kind in ECHOES:
        status, body = ECHOES[kind]
        monkeypatch.setitem(BUSY, "500", (status, {"X-Key": KEY}, body))
        server.script = ["500"] * 90
    elif kind == "bad-head":
        server.script = ["bad-head"] * 90
    elif kind == "listing":
        monkeypatch.setitem(FINAL, "401", (401, {}, BEARER.encode()))
        server.listing = ["401"] * 2
    else:
        server.answer = lambda fields: low(fields) | {"reason": KEY} if kind == "reason" else {KEY: KEY}
    for debug in ((), ("--debug",)):
        outcome = gpt2("judge", file, *at(server), "--json", *debug)
        assert outcome.code in (0, 5) and KEY not in outcome.out + outcome.err
    assert all(KEY not in path.read_text() for path in file.parent.rglob("*") if path.is_file())
    assert "(the key)" in outcome.out + outcome.err
