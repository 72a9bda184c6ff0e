"""Responses that the stub of judge_server.py judges, and the grades that it must have given."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from judge_server import MODEL, Judge, grade

from gpt2cli.judge.endpoint import JudgeServer, openai_compatible
from gpt2cli.judge.grade import GRADING, Grade, GradeJudgement, grade_questions
from gpt2cli.judge.items import JudgeItem
from gpt2cli.judge.runner import JudgeOptions, judge, judgements_of

# One at a time, so that the order is known.
OPTIONS = JudgeOptions(timeout=5.0, n_parallel=1)
ITEMS = [JudgeItem(index, f"ask {index}", "", "right", f"say {index}") for index in range(4)]


def without_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock's part: nothing sleeps any more, and the list fills with what was slept."""
    sleep, pauses = asyncio.sleep, list[float]()

    async def at_once(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", at_once)
    return pauses


def run(
    server: Judge | JudgeServer,
    items: list[JudgeItem],
    path: Path,
    seen: list[GradeJudgement] | None = None,
    said: list[str] | None = None,
    model: str = MODEL,
    **options: object,
) -> list[GradeJudgement]:
    """What is judged anew, in the order in which it came; also in `seen`, for a run that ends early."""
    seen, said = [] if seen is None else seen, [] if said is None else said
    at = openai_compatible(server.base_url, model) if isinstance(server, Judge) else server
    given = replace(OPTIONS, **options)  # type: ignore[arg-type]
    judge(GRADING, grade_questions(items), at, path, given, keep=seen.append, tell=said.append)
    return seen


def judged(items: list[JudgeItem], path: Path) -> list[GradeJudgement]:
    return judgements_of(GRADING, grade_questions(items), path)


def score_of(item: JudgeItem) -> Grade:
    """What the stub says of it."""
    texts = {name: getattr(item, name) for name in ("instruction", "input", "reference", "response")}
    return Grade(**grade(texts))
