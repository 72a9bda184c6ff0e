"""Owns which of two models answers better: the same questions, each asked twice with the order swapped.

A judge that likes what it reads first, or last, would give that model the win. So only a preference
that outlives the swap counts; one that turns with it is a tie, and counted as what it is.
How a server is asked is `asking.py`'s business.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2cli.errors import InputError
from gpt2cli.json_lines import digest_of, read_ledger
from gpt2cli.judge.aggregate import bootstrap
from gpt2cli.judge.asking import N_PARALLEL, RETRIED, Messages, Question, Reply, Status, ask_all
from gpt2cli.judge.client import PATIENCE
from gpt2cli.judge.items import Item
from gpt2cli.judge.rubric import REASON, object_schema, one_of, reason_of, strict_object
from gpt2cli.judge.server import Server
from gpt2cli.judge.terms import Terms, require_ours, resuming, terms_from, terms_of
from gpt2cli.patience import Patience
from gpt2cli.templates import PAIR_VERSION, pair_messages

N_SAMPLES = 2  # pairs, the shortest ones; asked first, they show how many tokens the server makes of a text
PLACES = ("first", "second", "tie")
SCHEMA = object_schema({"reason": REASON, "better": {"type": "string", "enum": list(PLACES)}})
Outcome = Literal["win", "tie", "loss"]  # of A


@dataclass(frozen=True)
class Pair:
    """What two models answered to one question."""

    index: int  # of the record in A's file
    instruction: str
    input: str
    reference: str
    a: str
    b: str

    @property
    def asked(self) -> str:
        """A digest of all that a judge is shown."""
        return digest_of([self.instruction, self.input, self.reference, self.a, self.b])

    @property
    def is_empty(self) -> bool:
        return not self.a.strip() or not self.b.strip()

    @property
    def is_same(self) -> bool:
        """A tie without asking: swapped, the question would be the same, and so would the answer."""
        return self.a == self.b

    @property
    def needs_asking(self) -> bool:
        return not self.is_empty and not self.is_same


@dataclass(frozen=True)
class Verdict:
    """What was said of one pair in one order. `better` is "a", "b" or "tie" where it is scored."""

    index: int
    a_is_first: bool
    status: Status
    better: str
    reason: str
    why: str  # "" where it is scored
    attempts: int
    seconds: float
    prompt_tokens: int | None
    asked: str  # Pair.asked
    terms: Terms


@dataclass(frozen=True)
class PairSummary:
    """Counts of pairs. The rate counts a tie as half a win; None where nothing was compared."""

    n_pairs: int
    n_compared: int
    n_unscored: int
    n_truncated: int
    n_empty: int
    n_missing: int  # not asked yet, or in one order only
    wins: int
    ties: int
    losses: int
    n_same: int  # ties because the two texts are one
    n_for_first: int  # ties because the judge took what stood first, both times
    n_for_second: int
    win_rate: float | None
    interval: tuple[float, float] | None
    p_value: float | None  # of the exact two-sided sign test, ties left out
    outcomes: dict[int, Outcome]  # by the pair's index


def pairs_of(a: Sequence[Item], b: Sequence[Item], names: tuple[str, str] = ("A", "B")) -> list[Pair]:
    """The questions that both answered, each as often as both did. Raises InputError for none."""
    waiting: dict[tuple[str, str], list[Item]] = defaultdict(list)
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


def compare(
    pairs: Sequence[Pair],
    server: Server,
    path: Path,
    *,
    seed: int,
    n_parallel: int = N_PARALLEL,
    stop: Callable[[], int] = lambda: 0,
    patience: Patience = PATIENCE,
    fresh: bool = False,
    retry: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[Verdict]:
    """Ask what has no verdict in `path` yet; each is appended, then yielded. All else is as in `judge`."""
    terms = terms_of(server, PAIR_VERSION, SCHEMA, seed)

    def missing(there: Sequence[Verdict]) -> list[tuple[Pair, bool]]:
        last = {(one.index, one.asked, one.a_is_first): one.status for one in there}
        done = {name for name, status in last.items() if not (retry and status in RETRIED)}
        both = [(pair, a_is_first) for pair in pairs if pair.needs_asking for a_is_first in (True, False)]
        return [(pair, first) for pair, first in both if (pair.index, pair.asked, first) not in done]

    def is_asked(there: Sequence[Verdict]) -> bool:
        return bool(missing(there))

    opened = resuming(path, _verdict, terms, server, is_asked, fresh=fresh, patience=patience, stop=stop)
    with opened as ledger:
        if ledger is None:
            return
        asked, samples = missing(ledger.values), _samples(pairs)
        replies = ask_all(
            [Question(i, _messages(*one), is_sample=one[0] in samples) for i, one in enumerate(asked)],
            server,
            SCHEMA,
            parse_preference,
            seed=seed,
            stop=stop,
            n_parallel=n_parallel,
            patience=patience,
            tell=tell,
            known=_known(samples, ledger.values),
        )
        for reply in replies:
            verdict = _judged(*asked[reply.number], reply, terms)
            ledger.add(verdict)
            yield verdict


def compared(pairs: Sequence[Pair], path: Path) -> list[Verdict]:
    """The verdicts of a file that stand for these pairs as they are now, by index; none without a file.

    Raises InputError for a file that is none of verdicts.
    """
    content = read_ledger(path, _verdict)
    require_ours(path, content)
    wanted = {(pair.index, pair.asked) for pair in pairs}
    found = {
        (one.index, not one.a_is_first): one for one in content.values if (one.index, one.asked) in wanted
    }
    return [found[key] for key in sorted(found)]


def summarize_pairs(pairs: Sequence[Pair], verdicts: Iterable[Verdict], seed: int = 0) -> PairSummary:
    """`seed` is that of the interval's resamples."""
    said: dict[int, dict[bool, Verdict]] = defaultdict(dict)
    for verdict in verdicts:
        said[verdict.index][verdict.a_is_first] = verdict
    outcomes: dict[int, Outcome] = {}
    n_same = n_empty = 0
    turned: list[str] = []  # the place that was preferred in both orders
    lost: list[Status] = []
    for pair in pairs:
        both = said[pair.index]
        failed = [one.status for one in both.values() if one.status != "scored"]
        if pair.is_empty:
            n_empty += 1
        elif pair.is_same:
            n_same += 1
            outcomes[pair.index] = "tie"
        elif failed:
            lost.append(failed[0])
        elif len(both) == 2:
            outcomes[pair.index] = _outcome(both[True].better, both[False].better)
            turned += {("a", "b"): ["first"], ("b", "a"): ["second"]}.get(
                (both[True].better, both[False].better), []
            )
    found = list(outcomes.values())
    wins, ties, losses = (found.count(kind) for kind in ("win", "tie", "loss"))
    worth = [{"win": 1.0, "tie": 0.5, "loss": 0.0}[outcome] for outcome in found]
    return PairSummary(
        n_pairs=len(pairs),
        n_compared=len(found),
        n_unscored=lost.count("unscored"),
        n_truncated=lost.count("truncated"),
        n_empty=n_empty,
        n_missing=len(pairs) - len(found) - len(lost) - n_empty,
        wins=wins,
        ties=ties,
        losses=losses,
        n_same=n_same,
        n_for_first=turned.count("first"),
        n_for_second=turned.count("second"),
        win_rate=math.fsum(worth) / len(worth) if worth else None,
        interval=bootstrap(worth, seed),
        p_value=sign_test(wins, losses) if found else None,
        outcomes=outcomes,
    )


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided probability of a result at least this uneven, were both equally good."""
    n, term, total = wins + losses, 1, 0
    for k in range(min(wins, losses) + 1):
        total += term  # n over k
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * total / (1 << n))


def parse_preference(text: str) -> tuple[str, str]:
    """The preferred place, one of PLACES, and the reason. Raises AnswerError."""
    fields = strict_object(text, ("reason", "better"))
    return one_of(fields["better"], "better", PLACES), reason_of(fields["reason"])


def _samples(pairs: Sequence[Pair]) -> list[Pair]:
    """A prompt that is short is read whole; were even these cut, only their words would tell."""
    shortest = sorted(pairs, key=lambda p: len(p.instruction + p.input + p.reference + p.a + p.b))
    return [pair for pair in shortest if pair.needs_asking][:N_SAMPLES]


def _known(samples: Sequence[Pair], there: Sequence[Verdict]) -> list[tuple[Messages, int]]:
    of = {(pair.index, pair.asked): pair for pair in samples}
    return [
        (_messages(of[one.index, one.asked], one.a_is_first), one.prompt_tokens)
        for one in there
        if one.prompt_tokens and one.status != "truncated" and (one.index, one.asked) in of
    ]


def _messages(pair: Pair, a_is_first: bool) -> Messages:
    first, second = (pair.a, pair.b) if a_is_first else (pair.b, pair.a)
    return pair_messages(pair.instruction, pair.input, pair.reference, first, second)


def _judged(pair: Pair, a_is_first: bool, reply: Reply[tuple[str, str]], terms: Terms) -> Verdict:
    place, reason = reply.value or ("", "")
    models = {"first": "a", "second": "b"} if a_is_first else {"first": "b", "second": "a"}
    return Verdict(
        index=pair.index,
        a_is_first=a_is_first,
        status=reply.status,
        better=models.get(place, place),
        reason=reason,
        why=reply.why,
        attempts=reply.attempts,
        seconds=reply.seconds,
        prompt_tokens=reply.prompt_tokens,
        asked=pair.asked,
        terms=terms,
    )


def _outcome(one: str, swapped: str) -> Outcome:
    if one != swapped or one == "tie":
        return "tie"
    return "win" if one == "a" else "loss"


def _verdict(fields: dict[str, Any]) -> Verdict:
    """A line of the file. Raises ValueError, TypeError or KeyError for what is none."""
    verdict = Verdict(**{**fields, "terms": terms_from(fields["terms"])})
    is_scored = verdict.status == "scored"
    if type(verdict.index) is not int or type(verdict.a_is_first) is not bool:
        raise TypeError("a verdict is of a pair in an order")
    if (verdict.better in ("a", "b", "tie")) != is_scored or not isinstance(verdict.asked, str):
        raise ValueError("a verdict says which is better, or why it does not")
    return verdict
