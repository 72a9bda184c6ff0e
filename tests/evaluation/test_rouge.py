"""ROUGE: our means against the definition, and what is said without the package."""

import sys
from collections import Counter

import pytest

from gpt2cli.errors import UsageError
from gpt2cli.evaluation.rouge import rouge

PAIRS = [
    ("the cat sat on the mat", "the cat lay on a mat"),
    ("Yes, it rains.", "it rains, yes"),
    ("one two three", "four five"),
    ("same words", "same words"),
    ("something", ""),
]


def f1(overlap: int, wanted: int, said: int) -> float:
    return 2 * overlap / (wanted + said) if overlap else 0.0


def words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
    found = words(text)
    return Counter(tuple(found[i : i + n]) for i in range(len(found) - n + 1))


def longest(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest(a[:-1], b[:-1])
    return max(longest(a[:-1], b), longest(a, b[:-1]))


def test_the_means_are_those_of_the_definition() -> None:
    wanted = {
        f"rouge{n}": sum(
            f1((grams(a, n) & grams(b, n)).total(), grams(a, n).total(), grams(b, n).total())
            for a, b in PAIRS
        )
        / len(PAIRS)
        for n in (1, 2)
    }
    wanted["rouge_l"] = sum(
        f1(longest(words(a), words(b)), len(words(a)), len(words(b))) for a, b in PAIRS
    ) / len(PAIRS)
    assert rouge(PAIRS) == pytest.approx(wanted)
    assert 0 < wanted["rouge2"] < wanted["rouge_l"] <= wanted["rouge1"] < 1


def test_nothing_scores_nothing() -> None:
    assert rouge([]) == {"rouge1": 0.0, "rouge2": 0.0, "rouge_l": 0.0}


def test_without_the_package_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UsageError, match="needs rouge-score") as caught:
        rouge(PAIRS)
    assert "pip install rouge-score" in caught.value.fix
