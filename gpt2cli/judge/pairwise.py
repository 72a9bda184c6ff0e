"""Which of two models answers better: each question is asked twice, with the answers swapped.

A judge that prefers what it reads first, or last, would give that model the win. So only a preference
that survives the swap counts; one that follows the position is a tie, and is reported as position bias.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2cli.errors import InputError
from gpt2cli.evaluation.responses import Message
from gpt2cli.judge.items import JudgeItem, digest_asked
from gpt2cli.judge.prompt import COMPARISON_PROMPT, Messages, comparison_messages
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
    reference: str | None
    a: str
    b: str
    conversation: tuple[Message, ...] = ()  # before the question: system text and history

    @property
    def asked(self) -> str:
        """A digest of everything the judge sees."""
        texts = [self.instruction, self.input, self.reference, self.a, self.b]
        return digest_asked(texts, self.prompt(a_is_first=True), self.conversation)

    def prompt(self, a_is_first: bool) -> Messages:
        """What the judge is asked."""
        answers = (self.a, self.b) if a_is_first else (self.b, self.a)
        return comparison_messages(self.instruction, self.input, self.reference, *answers, self.conversation)

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
    """The questions that both answered, repeated ones too. Raises InputError if there are none.

    A question is the same where its whole conversation is. Files of earlier versions hold its end alone:
    against the whole one of another file, the same reference answer tells that it is the same record.
    """
    found = _matched(dict(enumerate(a)), b, lambda item, _: item.digest)
    partners = {id(other) for other in found.values()}
    found |= _matched(
        {place: item for place, item in enumerate(a) if place not in found},
        [other for other in b if id(other) not in partners],
        lambda item, is_a: (item.instruction, item.input, item.reference, item.is_whole is is_a),
    )
    pairs = []
    for place, other in sorted(found.items(), key=lambda match: match[0]):
        item = a[place]
        texts = (
            item.instruction,
            item.input,
            other.reference if item.reference is None else item.reference,
            item.response,
            other.response,
        )
        pairs.append(Pair(item.index, *texts, item.conversation or other.conversation))
    if not pairs:
        raise InputError(
            f"{names[0]} and {names[1]} have no question in common",
            f"none of {len(a)} questions, each with its system text and history, is among the other {len(b)}",
            "compare answers to the same records",
        )
    return pairs


def _matched(
    a: Mapping[int, JudgeItem], b: Sequence[JudgeItem], key: Callable[[JudgeItem, bool], Hashable]
) -> dict[int, JudgeItem]:
    """{place in a: the item of b with the same key}, each used once. `key` is told whether it is of a."""
    waiting: dict[Hashable, list[JudgeItem]] = defaultdict(list)
    for other in reversed(b):
        waiting[key(other, False)].append(other)
    keys = {place: key(item, True) for place, item in a.items()}
    return {place: waiting[key].pop() for place, key in keys.items() if waiting[key]}


def comparison_questions(pairs: Sequence[Pair]) -> list[JudgeQuestion]:
    """Each pair in both orders; empty and equal responses are not asked about."""
    asked = [pair for pair in pairs if not pair.is_empty and not pair.is_same]
    # A short prompt is not truncated.
    shortest = sorted(asked, key=lambda pair: len(pair.prompt(True)[1]["content"]))
    samples = {pair.index for pair in shortest[:N_SAMPLES]}
    return [
        JudgeQuestion(
            {"index": pair.index, "asked": pair.asked, "a_is_first": a_is_first},
            pair.prompt(a_is_first),
            is_sample=pair.index in samples,
        )
        for pair in asked
        for a_is_first in (True, False)
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
