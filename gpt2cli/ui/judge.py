"""The display of `gpt2 judge`: its progress, and tables of grades or comparisons."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Self

from rich.console import Console

from gpt2cli.judge.aggregate import FEWEST, N_BINS, GradeSummary, PairSummary
from gpt2cli.judge.grade import CANARY_NAMES, GradeJudgement
from gpt2cli.judge.items import JudgeItem
from gpt2cli.judge.results import Judgement
from gpt2cli.ui.console import printable
from gpt2cli.ui.progress import State, showing

LINE_SECONDS = 10.0  # between plain progress lines
BAR_WIDTH = 30
LONGEST = 100  # characters of a text in the table
COLUMN = 13  # where the values begin
_TOO_FEW = f"n/a below {FEWEST}"


class JudgeProgress:
    """How many of `n_all` questions are judged, how fast, and how long the rest will take.

    For `with`, and for the callbacks of `judge`; nothing is shown before `begin`.
    """

    def __init__(self, console: Console, n_all: int, what: str) -> None:
        self._console, self._n_all, self._what = console, n_all, what
        self._n_done = self._n_before = 0
        self._started = time.monotonic()
        self._view = ExitStack()
        self._show: Callable[[State], None] = lambda state: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._view.close()

    def begin(self, n_missing: int) -> None:
        self._n_done = self._n_before = self._n_all - n_missing
        if n_missing:
            self._show = self._view.enter_context(showing(self._console, LINE_SECONDS))
            self._show(self._state())

    def add(self, judgement: Judgement) -> None:
        """Canaries and empty responses, which come first, are not in the rate."""
        self._n_done += not judgement.is_canary
        if judgement.is_canary or judgement.status == "empty":
            self._n_before, self._started = self._n_done, time.monotonic()
        self._show(self._state())

    def tell(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(printable(text))

    def _state(self) -> State:
        seconds, n_new = time.monotonic() - self._started, self._n_done - self._n_before
        pace = "waiting for the first answer"
        if n_new and seconds > 0:
            rate = n_new / seconds
            each = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
            pace = f"{each}, {duration((self._n_all - self._n_done) / rate)} left"
        facts = f"{self._n_done:,} of {self._n_all:,} {self._what}, {pace}"
        return State("judging", self._n_done, self._n_all, facts)


def print_grades(summary: GradeSummary, items: Mapping[int, JudgeItem], console: Console) -> None:
    """The same on a terminal and in a file; `items` by their index."""
    _row(console, "score", _mean(summary))
    _row(console, "coverage", grade_coverage(summary))
    for name, value in summary.criteria.items():
        _row(console, name, f"{value:.1f}")
    if summary.n_scored:
        _histogram(summary, console)
    for title, judgements in (("best", summary.best), ("worst", summary.worst)):
        for place, one in enumerate(judgements):
            _print_extreme("" if place else title, one, items, console)
    for one in summary.lost:
        _row(console, one.status, f"record {one.index}: {_short(one.why)}")
        if one.text:
            _row(console, "", f"     it wrote: {_short(one.text)}")
    if summary.n_flagged:
        _row(console, "flagged", f"{summary.n_flagged} {_responses(summary.n_flagged)} to speak to its judge")
    for place, one in enumerate(summary.canaries):
        said = f"{one.score.score:3.4g}" if one.score else "  -"
        _row(console, "" if place else "canaries", f"{said}  {CANARY_NAMES[one.index]}")


def print_warnings(summary: GradeSummary, console: Console) -> None:
    """Warnings from the canaries; on stderr, so that they are visible with --json too."""
    for one in summary.fooled:
        assert one.score is not None
        said = f"the judge gave {one.score.score:.4g} of 100 to {CANARY_NAMES[one.index]}"
        console.print(printable(f"warning: {said}: do not trust its scores"), style="bad")
    if summary.is_no_better and not summary.fooled:
        said = "the responses score no higher than the worthless answers mixed in among them"
        console.print(f"warning: {said}: they are as bad, or this judge cannot tell", style="bad")


def grade_coverage(summary: GradeSummary) -> str:
    """The number of items in the mean, and what happened to the others."""
    others = (
        (summary.n_unscored, "unscored"),
        (summary.n_truncated, "truncated"),
        (summary.n_empty, "empty"),
        (summary.n_missing, "not judged yet"),
    )
    return _counts(summary.n_scored, summary.n_items, "scored", others)


def print_pairs(summary: PairSummary, a: str, b: str, console: Console) -> None:
    """A's wins and losses against B."""
    rate = "n/a" if summary.win_rate is None else f"{summary.win_rate:.1%}  95% interval "
    if summary.win_rate is not None:
        ends = [f"{end:.1%}" for end in summary.interval or ()]
        rate += " to ".join(ends) or _TOO_FEW
    _row(console, "A", a)
    _row(console, "B", b)
    _row(console, "A's rate", f"{rate}  (a tie is half a win)")
    _row(console, "coverage", pair_coverage(summary))
    _row(console, "A wins", f"{summary.wins:,}")
    n_turned = summary.n_for_first + summary.n_for_second
    _row(console, "ties", f"{summary.ties:,}" + (f", {summary.n_same} the same text" * bool(summary.n_same)))
    _row(console, "B wins", f"{summary.losses:,}")
    if summary.p_value is not None:
        _row(console, "sign test", f"p = {summary.p_value:.3g}")
    if n_turned:
        _row(
            console,
            "position",
            f"{n_turned} of the ties because the judge preferred one place whatever stood there:"
            f" {summary.n_for_first} times the first, {summary.n_for_second} times the second",
        )


def pair_coverage(summary: PairSummary) -> str:
    others = (
        (summary.n_unscored, "unscored"),
        (summary.n_truncated, "truncated"),
        (summary.n_empty, "with an empty response"),
        (summary.n_missing, "not judged yet"),
    )
    return _counts(summary.n_compared, summary.n_pairs, "compared", others)


def duration(seconds: float) -> str:
    """For people: 8 s, 2 min 05 s, 1 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _mean(summary: GradeSummary) -> str:
    if summary.mean is None or summary.median is None:
        return "n/a"
    ends = [f"{end:.1f}" for end in summary.interval or ()]
    interval = " to ".join(ends) or _TOO_FEW
    return f"{summary.mean:.1f} of 100  95% interval {interval}  median {summary.median:g}"


def _counts(n: int, n_all: int, what: str, others: Iterable[tuple[int, str]]) -> str:
    return ", ".join(
        [f"{n:,} of {n_all:,} {what}", *(f"{count:,} {name}" for count, name in others if count)]
    )


def _histogram(summary: GradeSummary, console: Console) -> None:
    most, width = max(summary.histogram), 100 // N_BINS
    for place, count in enumerate(summary.histogram):
        last = 100 if place + 1 == N_BINS else (place + 1) * width - 1
        bar = "#" * -(-count * BAR_WIDTH // most)  # what is there shows, however little
        _row(
            console,
            "" if place else "histogram",
            f"{place * width:3} to {last:3}  {count:4,}  {bar}".rstrip(),
        )


def _print_extreme(title: str, one: GradeJudgement, items: Mapping[int, JudgeItem], console: Console) -> None:
    assert one.score is not None
    item = items[one.index]
    flag = "  (seems to speak to its judge)" if one.flagged else ""
    _row(console, title, f"{one.score.score:3.4g}  record {one.index}: {_short(_question(item))}{flag}")
    _row(console, "", f"     -> {_short(item.response)}")
    _row(console, "", f"     because: {_short(one.score.reason)}")


def _question(item: JudgeItem) -> str:
    return f"{item.instruction} {item.input}".strip()


def _responses(n: int) -> str:
    return "response seems" if n == 1 else "responses, each of which seems"


def _short(text: str) -> str:
    line = " ".join(printable(text).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def _row(console: Console, title: str, value: str) -> None:
    console.print(f"{title:{COLUMN}}{printable(value)}".rstrip())
