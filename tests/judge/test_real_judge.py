"""`gpt2 judge` with a real judge: llama.cpp's server and a small instruct model.

What the scores of so small a judge are worth is printed, with -s: it is little, and no test rests on it.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import real_judge
from real_judge import ANSWERS, MODEL

Gpt2 = Callable[..., Any]
pytestmark = [
    pytest.mark.proofs,
    pytest.mark.skipif(bool(real_judge.missing()), reason=real_judge.missing() or "all is there"),
]
TOO_LONG = "word " * real_judge.CONTEXT


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with real_judge.serving(tmp_path_factory.mktemp("judge") / "server.log") as url:
        yield url


def write(path: Path, responses: list[str]) -> Path:
    """ANSWERS with these responses in the place of their own; beyond the last one it begins again."""
    records = [
        dict(zip(("instruction", "input", "output"), ANSWERS[i % len(ANSWERS)][:3], strict=True))
        | {"response": response}
        for i, response in enumerate(responses)
    ]
    path.write_text(json.dumps(records))
    return path


def test_twenty_responses_get_the_same_scores_twice(gpt2: Gpt2, url: str, tmp_path: Path) -> None:
    file = write(tmp_path / "responses.json", [answer[3] for answer in ANSWERS] + [TOO_LONG, ""])
    judge = ("--base-url", url, "--judge-model", MODEL, "--seed", "1", "--parallel", "1", "--json")
    first, second = (gpt2("judge", file, *judge, "--out", out) for out in ("one.jsonl", "two.jsonl"))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    one, two = json.loads(first.out), json.loads(second.out)
    assert (one.pop("judgements"), two.pop("judgements")) == ("one.jsonl", "two.jsonl")
    assert one == two
    assert (one["n_items"], one["n_truncated"], one["n_empty"], one["n_missing"]) == (22, 1, 1, 0)
    assert one["n_scored"] + one["n_unscored"] == 20 and one["n_scored"] >= 15
    assert [item["status"] for item in one["items"][20:]] == ["truncated", "empty"]
    assert "4096" in one["items"][20]["why"]  # the server's own words
    reasons = {item["reason"] for item in one["items"] if item["status"] == "scored"}
    assert len(reasons) > 1  # it has read them
    _print_worth(one)


def test_two_files_are_compared(gpt2: Gpt2, url: str, tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", [answer[2] for answer in ANSWERS[:4]])
    bad = write(tmp_path / "bad.json", ["zq zq ### zq the the of of", "no", "I don't know.", "."])
    outcome = gpt2("judge", good, bad, "--base-url", url, "--judge-model", MODEL, "--json")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["n_compared"] + facts["n_unscored"] == facts["n_pairs"] == 4 and facts["n_compared"] > 0
    shown = ("wins", "ties", "losses", "n_for_first", "n_for_second")
    print(", ".join(f"{name} {facts[name]}" for name in shown))


def test_a_model_that_the_server_lacks_is_said(gpt2: Gpt2, url: str, tmp_path: Path) -> None:
    file = write(tmp_path / "responses.json", ["Paris."])
    outcome = gpt2("judge", file, "--base-url", url, "--judge-model", "absent")
    assert outcome.code == 5 and "absent" in outcome.err and len(list(tmp_path.iterdir())) == 1


def _print_worth(facts: dict[str, Any]) -> None:
    pairs = [
        (answer[4], item["score"])
        for answer, item in zip(ANSWERS, facts["items"], strict=False)
        if item["status"] == "scored"
    ]
    known, given = zip(*pairs, strict=True)
    print(f"\n{MODEL}: {facts['n_scored']} of 20 scored, {sorted(given)}")
    print(f"canaries: {[one['score'] for one in facts['canaries']]}, fooled {facts['fooled']}")
    if len(set(given)) > 1:
        print(f"correlation with the known quality: {statistics.correlation(known, given):.2f}")
    else:
        print("correlation with the known quality: none, all scores are the same")
