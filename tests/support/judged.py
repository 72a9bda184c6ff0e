"""Responses that are judged by the stub of judge_server.py, and the scores that it must have given."""

from dataclasses import replace
from pathlib import Path

from judge_server import MODEL, Judge, grade

from gpt2cli.judge.client import PATIENCE
from gpt2cli.judge.items import Item
from gpt2cli.judge.rubric import Score
from gpt2cli.judge.runner import Judgement, judge
from gpt2cli.judge.server import openai_compatible

QUICK = replace(PATIENCE, stall=2.0, window=2.0, total=2.0, first_pause=0.0, attempts=3)
ITEMS = [Item(index, f"ask {index}", "", "right", f"say {index}") for index in range(4)]


def run(server: Judge, items: list[Item], path: Path, **more: object) -> list[Judgement]:
    """One at a time, so that the order is known."""
    more = {"n_parallel": 1, "patience": QUICK, "model": MODEL, **more}
    judge_of = openai_compatible(server.base_url, str(more.pop("model")))
    return list(judge(items, judge_of, path, **more))  # type: ignore[arg-type]


def score_of(item: Item) -> Score:
    """What the stub says of it."""
    texts = {name: getattr(item, name) for name in ("instruction", "input", "reference", "response")}
    return Score(**grade(texts))
