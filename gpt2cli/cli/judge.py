"""`gpt2 judge`: responses in, an LLM judge's scores out; or two models' responses, and which are better.

How a judge is asked and what its answers mean is `judging/`'s work.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli.judge_report import facts_of, judge_of, nothing, pair_facts
from gpt2cli.cli.judge_target import EXAMPLE, kept_of, newest_responses, responses_of, server_of
from gpt2cli.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import Console

    from gpt2cli.errors import ServiceError
    from gpt2cli.judge.aggregate import Summary
    from gpt2cli.judge.pairwise import PairSummary, Verdict
    from gpt2cli.judge.runner import Judgement
    from gpt2cli.judge.server import Server
    from gpt2cli.judge.terms import Terms


def judge(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET",
            help="A run, a model folder or a file of responses; by default the newest run with responses."
            " Two are compared with each other.",
            show_default=False,
        ),
    ] = None,
    ollama: Annotated[
        str | None,
        typer.Option(
            "--ollama", metavar="NAME", help="The judge: a model that Ollama serves.", show_default=False
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            metavar="URL",
            help="The judge's server, OpenAI-compatible; its key comes from OPENAI_API_KEY.",
            show_default=False,
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(
            "--judge-model", metavar="NAME", help="The judge: a model at --base-url.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="For the judge's sampling and the confidence interval.", show_default="123"
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", help="Requests at the same time.", show_default="4"),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Per attempt.", show_default="300"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where to keep the judgements; by default judgements.jsonl in the run, or"
            " NAME.judgements.jsonl beside a file NAME.json.",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard earlier judgements and ask for all again.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Ask again where the judgement is unscored or truncated.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="Judge only the first N responses.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let an LLM grade a model's responses from 0 to 100, or compare the responses of two models.

    If interrupted, run the same command again to continue.
    Prints a table to stdout, or with --json one object.
    """
    from gpt2cli.errors import UsageError
    from gpt2cli.judge.asking import N_PARALLEL
    from gpt2cli.judge.client import patience_of
    from gpt2cli.judge.runner import SEED

    if len(targets or ()) > 2:
        raise UsageError(
            f"there are {len(targets or ())} targets", "one is judged, two are compared", EXAMPLE + " A B"
        )
    for name, value in (("--parallel", parallel), ("--limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}", "it must be at least 1")
    if seed is not None and seed < 0:
        raise UsageError(f"--seed is {seed}", "it must be at least 0")
    if timeout is not None and not 0 < timeout < float("inf"):
        raise UsageError(f"--timeout is {timeout:g}", "it is a number of seconds above 0")
    server = server_of(ollama, base_url, judge_model)
    seed = SEED if seed is None else seed
    given: dict[str, Any] = {
        "seed": seed,
        "n_parallel": N_PARALLEL if parallel is None else parallel,
        "patience": patience_of(timeout),
        "fresh": fresh,
        "retry": retry,
    }
    found = [responses_of(target) for target in targets or ()] or [newest_responses()]
    work = _judge_one if len(found) == 1 else _compare_two
    work(found, server, out, limit, as_json, given)


def _judge_one(
    found: "list[Path]",
    server: "Server",
    out: Path | None,
    limit: int | None,
    as_json: bool,
    given: dict[str, Any],
) -> None:
    from gpt2cli.judge.aggregate import summarize
    from gpt2cli.judge.items import read_items
    from gpt2cli.judge.rubric import SCHEMA
    from gpt2cli.judge.runner import judge, judged
    from gpt2cli.judge.terms import terms_of
    from gpt2cli.templates import JUDGE_VERSION
    from gpt2cli.ui.console import err, print_json
    from gpt2cli.ui.console import out as stdout
    from gpt2cli.ui.judge import coverage, print_summary, print_warnings, show_judging

    (path,) = found
    items = read_items(path)[:limit]
    place, console = out or kept_of(path), err()
    terms = terms_of(server, JUDGE_VERSION, SCHEMA, given["seed"])
    n_done = _n_done([one for one in judged(items, place) if not one.is_canary], terms, given)
    _announce(f"{len(items):,} responses of {path}", server, n_done, len(items), given["n_parallel"])

    def summed() -> "Summary":
        return summarize(judged(items, place), len(items), given["seed"])

    answers = show_judging(
        judge(items, server, place, tell=_teller(console), **given),
        console,
        n_done,
        len(items),
        "responses",
        lambda one: not one.is_canary,
        lambda one: one.status != "empty",
    )
    lost = _drain(answers, lambda: coverage(summed()))
    summary = summed()
    if as_json:
        about = {"responses": str(path), "judgements": str(place), **judge_of(server, given["seed"])}
        print_json({**about, **facts_of(summary, judged(items, place))})
    else:
        print_summary(summary, {item.index: item for item in items}, stdout())
    print_warnings(summary, console)
    if lost:
        raise lost
    if not summary.n_scored:
        own = [one for one in judged(items, place) if not one.is_canary]
        raise nothing("no response could be scored", coverage(summary), own, path, place)


def _compare_two(
    found: "list[Path]",
    server: "Server",
    out: Path | None,
    limit: int | None,
    as_json: bool,
    given: dict[str, Any],
) -> None:
    from gpt2cli.judge.items import read_items
    from gpt2cli.judge.pairwise import SCHEMA, compare, compared, pairs_of, summarize_pairs
    from gpt2cli.judge.terms import terms_of
    from gpt2cli.templates import PAIR_VERSION
    from gpt2cli.ui.console import err, print_json
    from gpt2cli.ui.console import out as stdout
    from gpt2cli.ui.judge import pair_coverage, print_pairs, show_judging

    a, b = found
    items = [read_items(path) for path in found]
    pairs = pairs_of(items[0], items[1], (str(a), str(b)))[:limit]
    place, console = out or kept_of(a, b), err()
    n_asked = 2 * sum(pair.needs_asking for pair in pairs)
    terms = terms_of(server, PAIR_VERSION, SCHEMA, given["seed"])
    n_done = _n_done(compared(pairs, place), terms, given)
    what = f"{len(pairs):,} pairs of {a} and {b} in both orders"
    _announce(what, server, n_done, n_asked, given["n_parallel"])
    if apart := [len(one) - len(pairs) for one in items if len(one) > len(pairs)]:
        _say(f"note: {sum(apart):,} responses are left out: no counterpart, or beyond --limit")

    def summed() -> "PairSummary":
        return summarize_pairs(pairs, compared(pairs, place), given["seed"])

    verdicts = compare(pairs, server, place, tell=_teller(console), **given)
    answers = show_judging(verdicts, console, n_done, n_asked, "verdicts")
    lost = _drain(answers, lambda: pair_coverage(summed()))
    summary = summed()
    if as_json:
        about = {"a": str(a), "b": str(b), "judgements": str(place), **judge_of(server, given["seed"])}
        print_json({**about, **pair_facts(summary, pairs)})
    else:
        print_pairs(summary, str(a), str(b), stdout())
    if lost:
        raise lost
    if not summary.n_compared:
        said = pair_coverage(summary)
        raise nothing("no pair could be compared", said, compared(pairs, place), a, place)


def _n_done(there: "Sequence[Judgement | Verdict]", terms: "Terms", given: dict[str, Any]) -> int:
    """How many of the judgements that stand will not be asked for again."""
    from gpt2cli.judge.asking import RETRIED

    left = RETRIED if given["retry"] else ()
    return 0 if given["fresh"] else sum(one.terms == terms and one.status not in left for one in there)


def _announce(what: str, server: "Server", n_done: int, n_all: int, n_parallel: int) -> None:
    from gpt2cli.judge.server import shown

    if n_done >= n_all:
        _say(
            f"all {what} were judged before; --fresh asks again" if n_all else f"nothing to ask about {what}"
        )
        return
    before = f"; {n_done:,} of {n_all:,} are there" if n_done else ""
    _say(f"judging {what} with {server.model} at {shown(server)}, {n_parallel} at a time{before}")


def _drain(answers: "Iterable[object]", standing: "Callable[[], str]") -> "ServiceError | None":
    """Let the answers come, which are kept elsewhere; returns why they ended early, if it is the server."""
    from gpt2cli.errors import ServiceError

    try:
        for _ in answers:
            pass
    except ServiceError as error:  # what there is by then is shown first
        return error
    except (KeyboardInterrupt, SystemExit):
        _say(f"{standing()}; run the same command again to go on")
        raise
    return None


def _teller(console: "Console") -> "Callable[[str], None]":
    """Says lines on the console of the bar, above which they stand."""
    from gpt2cli.ui.console import printable

    return lambda text: console.print(printable(text))


def _say(text: str) -> None:
    """A line on stderr, safe for a terminal whatever is in it."""
    from gpt2cli.ui.console import err, printable

    err().print(printable(text))
