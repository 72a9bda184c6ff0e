"""Which of two models answers better: each question is asked twice, with the answers swapped.

A judge that prefers what it reads first, or last, would give that model the win. So only a preference
that survives the swap counts; one that follows the position is a tie, and is reported as position bias.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt2cli.errors import InputError
from gpt2cli.json_lines import digest_of
from gpt2cli.judge.items import JudgeItem
from gpt2cli.judge.prompt import COMPARISON_PROMPT, comparison_messages
from gpt2cli.judge.results import Judgement, checked_fields
from gpt2cli.judge.runner import JudgeQuestion, JudgeTask
from gpt2cli.judge.strict_json import REASON, object_schema, one_of, reason_of, strict_object

N_SAMPLES = 2  # the shortest pairs, asked first: they show how the server counts tokens
PLACES = ("first", "second", "tie")
COMPARISON_SCHEMA = object_schema({"reason": REASON, "better": {"type": "string", "enum": list(PLACES)}})


@dataclass(frozen=True)
class Pair:
    """The answers of two models to one question."""

    index: int  # of the record in A's file
    instruction: str
    input: str
    reference: str
    a: str
    b: str

    @property
    def asked(self) -> str:
        """A digest of everything the judge sees."""
        return digest_of([self.instruction, self.input, self.reference, self.a, self.b])

    @property
    def is_empty(self) -> bool:
        return not self.a.strip() or not self.b.strip()

    @property
    def is_same(self) -> bool:
        """A tie without asking: swapped, the question would be the same."""
        return self.a == self.b


@dataclass(frozen=True, kw_only=True)
class Comparison(Judgement):
    """The judge's preference for one pair in one order."""

    a_is_first: bool
    better: str  # "a", "b" or "tie" where it is scored, otherwise ""
    reason: str


def pairs_of(
    a: Sequence[JudgeItem], b: Sequence[JudgeItem], names: tuple[str, str] = ("A", "B")
) -> list[Pair]:
    """The questions that both answered, repeated ones too. Raises InputError if there are none."""
    waiting: dict[tuple[str, str], list[JudgeItem]] = defaultdict(list)
    for item in reversed(b):
        waiting[item.instruction, item.input].append(item)
    pairs = []
    for item in a:
        others = waiting[item.instruction, item.input]
        if others:
            other = others.pop()
            pairs.append(
                Pair(item.index, item.instruction, item.input, item.reference, item.response, other.response)
            )
    if not pairs:
        raise InputError(
            f"{names[0]} and {names[1]} have no question in common",
            f"none of {len(a)} instructions with their inputs is among the other {len(b)}",
            "compare answers to the same records",
        )
    return pairs


def comparison_questions(pairs: Sequence[Pair]) -> list[JudgeQuestion]:
    """Each pair in both orders; empty and equal responses are not asked about."""
    asked = [pair for pair in pairs if not pair.is_empty and not pair.is_same]
    # A short prompt is not truncated.
    shortest = sorted(asked, key=lambda p: len(p.instruction + p.input + p.reference + p.a + p.b))
    samples = {pair.index for pair in shortest[:N_SAMPLES]}
    return [
        JudgeQuestion(
            {"index": pair.index, "asked": pair.asked, "a_is_first": a_is_first},
            comparison_messages(pair.instruction, pair.input, pair.reference, *texts),
            is_sample=pair.index in samples,
        )
        for pair in asked
        for a_is_first, texts in ((True, (pair.a, pair.b)), (False, (pair.b, pair.a)))
    ]


def parse_preference(text: str) -> tuple[str, str]:
    """The preferred place, one of PLACES, and the reason. Raises AnswerError."""
    fields = strict_object(text, ("reason", "better"))
    return one_of(fields["better"], "better", PLACES), reason_of(fields["reason"])


def _comparison(preference: tuple[str, str] | None, fields: dict[str, Any]) -> Comparison:
    place, reason = preference or ("", "")
    first, second = ("a", "b") if fields["a_is_first"] else ("b", "a")
    return Comparison(better={"first": first, "second": second}.get(place, place), reason=reason, **fields)


def _line(line: dict[str, Any]) -> Comparison:
    """Raises ValueError, TypeError or KeyError for any other line."""
    comparison = Comparison(**checked_fields(line))
    if type(comparison.a_is_first) is not bool:
        raise TypeError("a comparison is of a pair in an order")
    if (comparison.better in ("a", "b", "tie")) != (comparison.status == "scored"):
        raise ValueError("a comparison says which is better, or why it does not")
    return comparison


COMPARING = JudgeTask(
    COMPARISON_SCHEMA,
    COMPARISON_PROMPT,
    parse_preference,
    _comparison,
    _line,
    key=("index", "asked", "a_is_first"),
)
