"""Grades of single responses: the schema, its strict reader, and what is asked and kept of each response."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt2cli.judge.injection import CANARY_ANSWERS, speaks_to_judge
from gpt2cli.judge.items import JudgeItem
from gpt2cli.judge.prompt import GRADE_PROMPT, grade_messages
from gpt2cli.judge.results import Judgement, checked_fields
from gpt2cli.judge.rubric import CRITERIA
from gpt2cli.judge.runner import JudgeQuestion, JudgeTask
from gpt2cli.judge.strict_json import REASON, object_schema, points_of, reason_of, strict_object

GRADED = (*CRITERIA, "score")
_POINTS: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 100}
GRADE_SCHEMA = object_schema({"reason": REASON, **dict.fromkeys(GRADED, _POINTS)})


@dataclass(frozen=True)
class Grade:
    """What the judge says of a response: points from 0 to 100, and why."""

    relevance: int
    correctness: int
    clarity: int
    score: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class GradeJudgement(Judgement):
    score: Grade | None  # where the status is "scored", and only there
    flagged: bool  # the response seems to speak to its judge; that changes nothing else


def parse_grade(text: str) -> Grade:
    """Raises AnswerError."""
    found = strict_object(text, ("reason", *GRADED))
    points = {name: points_of(found[name], name) for name in GRADED}
    return Grade(reason=reason_of(found["reason"]), **points)


def grade_questions(items: Sequence[JudgeItem]) -> list[JudgeQuestion]:
    """One question per response; before them the canaries, short prompts whose grades test the judge."""
    return [
        JudgeQuestion(
            {"index": item.index, "asked": item.asked, "flagged": speaks_to_judge(item.response)},
            grade_messages(item.instruction, item.input, item.reference, item.response)
            if item.response.strip()
            else None,
            is_sample=item.index < 0,
        )
        for item in (*canaries(items), *items)
    ]


def canaries(items: Sequence[JudgeItem]) -> list[JudgeItem]:
    """Trivial answers to the first questions: a judge that grades them high is not to be trusted."""
    made = []
    for number, (index, answer) in enumerate(CANARY_ANSWERS.items()):
        if items:
            of = items[number % len(items)]
            echo = f"{of.instruction}\n{of.input}".strip() or "?"
            made.append(JudgeItem(index, of.instruction, of.input, of.reference, answer or echo))
    return made


def _judgement(grade: Grade | None, fields: dict[str, Any]) -> GradeJudgement:
    return GradeJudgement(score=grade, **fields)


def _line(line: dict[str, Any]) -> GradeJudgement:
    """Raises ValueError, TypeError or KeyError for a line that is no such judgement."""
    grade = None if line["score"] is None else parse_grade(json.dumps(line["score"]))
    if (grade is not None) != (line["status"] == "scored"):
        raise ValueError("only what is scored has a score")
    return GradeJudgement(**{**checked_fields(line), "score": grade})


GRADING = JudgeTask(GRADE_SCHEMA, GRADE_PROMPT, parse_grade, _judgement, _line, key=("index", "asked"))
