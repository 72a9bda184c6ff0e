"""Owns `gpt2 judge`: responses in, a judge's scores out; or two models' responses, and which are better.

How a judge is asked and what its answers mean is `judging/`'s work.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli.judge_target import EXAMPLE, label_of, newest_responses, responses_of, server_of
from gpt2cli.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gpt2cli.judging.judge import Judgement
    from gpt2cli.judging.pairs import Pair, PairSummary
    from gpt2cli.judging.server import Server
    from gpt2cli.judging.summary import Summary


def judge(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]...",
            help="A run, a model folder or a file of responses; otherwise the newest run that has some."
            " Two of them are compared with each other.",
            show_default=False,
        ),
    ] = None,
    ollama: Annotated[
        str | None,
        typer.Option("--ollama", metavar="NAME", help="The judge: a model of Ollama.", show_default=False),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            metavar="URL",
            help="The judge's server, any OpenAI-compatible one; its key is taken from OPENAI_API_KEY.",
            show_default=False,
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(
            "--judge-model", metavar="NAME", help="The judge's name at --base-url.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Sent with every question, and the interval's.", show_default="123"),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", help="Questions under way at once.", show_default="4")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="For one answer.", show_default="300"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where the judgements are kept.",
            show_default="judgements.jsonl beside the responses",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Drop the judgements there are, and ask for all again.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="Only the first N responses.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let a model grade what another one answered, from 0 to 100; or compare two models' answers.

    Judgements are kept as they come: after an interruption the same command goes on. stdout gets a
    table, or with --json one object.
    """
    from gpt2cli.errors import UsageError
    from gpt2cli.judging.asking import N_PARALLEL
    from gpt2cli.judging.client import patience_of
    from gpt2cli.judging.judge import SEED

    if len(targets or ()) > 2:
        raise UsageError(
            f"there are {len(targets or ())} targets", "one is judged, two are compared", EXAMPLE + " A B"
        )
    for name, value in (("--parallel", parallel), ("--limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}", "it must be at least 1")
    if timeout is not None and not 0 < timeout < float("inf"):
        raise UsageError(f"--timeout is {timeout:g}", "it is a number of seconds above 0")
    server = server_of(ollama, base_url, judge_model)
    seed = SEED if seed is None else seed
    given: dict[str, Any] = {
        "seed": seed,
        "n_parallel": N_PARALLEL if parallel is None else parallel,
        "patience": patience_of(timeout),
        "fresh": fresh,
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
    from gpt2cli.errors import ServiceError
    from gpt2cli.judging.items import read_items
    from gpt2cli.judging.judge import JUDGEMENTS, judge, judged
    from gpt2cli.judging.rubric import SCHEMA
    from gpt2cli.judging.summary import summarize
    from gpt2cli.judging.terms import terms_of
    from gpt2cli.prompts import JUDGE_VERSION
    from gpt2cli.ui.console import err
    from gpt2cli.ui.console import out as stdout
    from gpt2cli.ui.judging import coverage, print_summary, print_warnings, show_judging

    (path,) = found
    items = read_items(path)[:limit]
    place = out or path.parent / JUDGEMENTS
    terms = terms_of(server, JUDGE_VERSION, SCHEMA, given["seed"])
    there = [one for one in judged(items, place) if not one.is_canary and one.terms == terms]
    n_done = 0 if given["fresh"] else len(there)
    _announce(f"{len(items):,} responses of {path}", server, n_done, len(items), given["n_parallel"])

    def summed() -> "Summary":
        return summarize(judged(items, place), len(items), given["seed"])

    answers = show_judging(
        judge(items, server, place, **given),
        err(),
        n_done,
        len(items),
        "responses",
        lambda one: not one.is_canary,
    )
    _drain(answers, lambda: coverage(summed()), place)
    summary = summed()
    if as_json:
        about = {"responses": str(path), "judgements": str(place), **_judge_of(server, given["seed"])}
        _print_json({**about, **_facts(summary, judged(items, place))})
    else:
        print_summary(summary, {item.index: item for item in items}, stdout())
    print_warnings(summary, err())
    if not summary.n_scored:
        raise ServiceError("no response could be scored", *_nothing(summary, judged(items, place), place))


def _compare_two(
    found: "list[Path]",
    server: "Server",
    out: Path | None,
    limit: int | None,
    as_json: bool,
    given: dict[str, Any],
) -> None:
    from gpt2cli.errors import ServiceError
    from gpt2cli.judging.items import read_items
    from gpt2cli.judging.pairs import SCHEMA, compare, compared, pairs_of, summarize_pairs
    from gpt2cli.judging.terms import terms_of
    from gpt2cli.prompts import PAIR_VERSION
    from gpt2cli.ui.console import err
    from gpt2cli.ui.console import out as stdout
    from gpt2cli.ui.judging import pair_coverage, print_pairs, show_judging

    a, b = found
    items = [read_items(path) for path in found]
    pairs = pairs_of(*items)[:limit]
    place = out or a.parent / f"judgements-vs-{label_of(b)}.jsonl"
    n_asked = 2 * sum(pair.needs_asking for pair in pairs)
    terms = terms_of(server, PAIR_VERSION, SCHEMA, given["seed"])
    there = [one for one in compared(pairs, place) if one.terms == terms]
    n_done = 0 if given["fresh"] else len(there)
    what = f"{len(pairs):,} pairs of {a} and {b} in both orders"
    _announce(what, server, n_done, n_asked, given["n_parallel"])
    if apart := [len(one) - len(pairs) for one in items if len(one) > len(pairs)]:
        _say(f"note: {sum(apart):,} responses are left out: no counterpart, or beyond --limit")

    def summed() -> "PairSummary":
        return summarize_pairs(pairs, compared(pairs, place), given["seed"])

    verdicts = compare(pairs, server, place, **given)
    answers = show_judging(verdicts, err(), n_done, n_asked, "verdicts")
    _drain(answers, lambda: pair_coverage(summed()), place)
    summary = summed()
    if as_json:
        about = {"a": str(a), "b": str(b), "judgements": str(place), **_judge_of(server, given["seed"])}
        _print_json({**about, **_pair_facts(summary, pairs)})
    else:
        print_pairs(summary, str(a), str(b), stdout())
    if not summary.n_compared:
        why = next((one.why for one in compared(pairs, place) if one.why), "there was nothing to ask about")
        raise ServiceError("no pair could be compared", why, f"look into {place}, or try another judge")


def _announce(what: str, server: "Server", n_done: int, n_all: int, n_parallel: int) -> None:
    from gpt2cli.judging.server import shown

    if n_done >= n_all:
        _say(
            f"all {what} were judged before; --fresh asks again" if n_all else f"nothing to ask about {what}"
        )
        return
    before = f"; {n_done:,} of {n_all:,} are there" if n_done else ""
    _say(f"judging {what} with {server.model} at {shown(server)}, {n_parallel} at a time{before}")


def _drain(answers: "Iterable[object]", standing: "Callable[[], str]", place: Path) -> None:
    """Let the answers come, which are kept elsewhere. However it ends early, what there is then is said."""
    from gpt2cli.errors import ServiceError

    try:
        for _ in answers:
            pass
    except ServiceError:
        _say(f"{standing()}; all of it is in {place}")
        raise
    except (KeyboardInterrupt, SystemExit):
        _say(f"{standing()}; run the same command again to go on")
        raise


def _nothing(summary: "Summary", judgements: "Sequence[Judgement]", place: Path) -> tuple[str, str]:
    """Why, and what to do, where no response was scored."""
    from gpt2cli.ui.judging import coverage

    reasons = [one.why for one in judgements if one.why and not one.is_canary]
    said = f": {max(set(reasons), key=reasons.count)}" if reasons else ""
    return f"{coverage(summary)}{said}", f"another judge, or look into {place}"


def _judge_of(server: "Server", seed: int) -> dict[str, Any]:
    from gpt2cli.judging.server import shown

    return {"judge": server.model, "base_url": shown(server), "seed": seed}


def _facts(summary: "Summary", judgements: "Sequence[Judgement]") -> dict[str, Any]:
    """Nothing of it depends on time: the same scores make the same text."""
    from dataclasses import asdict

    def plain(one: "Judgement") -> dict[str, Any]:
        score = asdict(one.score) if one.score else {"score": None}
        return {"index": one.index, "status": one.status, **score, "why": one.why, "flagged": one.flagged}

    return {
        **asdict(summary),
        "best": [one.index for one in summary.best],
        "worst": [one.index for one in summary.worst],
        "lost": [one.index for one in summary.lost],
        "canaries": [plain(one) for one in summary.canaries],
        "fooled": [one.index for one in summary.fooled],
        "is_no_better": summary.is_no_better,
        "items": [plain(one) for one in judgements if not one.is_canary],
    }


def _pair_facts(summary: "PairSummary", pairs: "Sequence[Pair]") -> dict[str, Any]:
    from dataclasses import asdict

    facts = {name: value for name, value in asdict(summary).items() if name != "outcomes"}
    items = [{"index": pair.index, "outcome": summary.outcomes.get(pair.index)} for pair in pairs]
    return {**facts, "items": items}


def _print_json(facts: dict[str, Any]) -> None:
    """One object; ASCII, so that nothing in it can steer a terminal."""
    import json
    import sys

    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    """A line on stderr, safe for a terminal whatever is in it."""
    from gpt2cli.ui.console import err, printable

    err().print(printable(text))
