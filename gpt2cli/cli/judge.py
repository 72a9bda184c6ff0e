"""`gpt2 judge`: one model's responses in, an LLM judge's grades out; or two models compared."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli import paths
from gpt2cli.cli.judge_report import grade_facts, judge_facts, nothing_scored, pair_facts
from gpt2cli.cli.options import EncodingOption, JsonOption
from gpt2cli.errors import InputError, ServiceError, UsageError, counted
from gpt2cli.ui.console import err, out, print_json, say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpt2cli.errors import ServiceError
    from gpt2cli.judge.endpoint import JudgeServer
    from gpt2cli.judge.items import JudgeItem
    from gpt2cli.judge.pairwise import Pair
    from gpt2cli.judge.runner import JudgeOptions, JudgeQuestion, JudgeTask

EXAMPLE = "gpt2 judge --ollama llama3.2"


def judge(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET",
            help="A run, a model folder or a file of responses; by default the newest run with responses."
            " Give two to compare them.",
        ),
    ] = None,
    ollama: Annotated[
        str | None, typer.Option("--ollama", metavar="NAME", help="Judge model in Ollama.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            metavar="URL",
            help="OpenAI-compatible judge server; its key is read from OPENAI_API_KEY.",
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", metavar="NAME", help="Judge model at --base-url.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            help="Random seed of the judge's sampling and the confidence interval.",
            show_default="123",
        ),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", help="Concurrent requests.", show_default="4")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Timeout per attempt.", show_default="300"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=paths.expand,
            metavar="FILE",
            help="Output file for judgements; by default judgements.jsonl in the run, or"
            " NAME.judgements.jsonl next to a file NAME.json.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; discard earlier judgements.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Retry unscored and truncated judgements.")] = False,
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="OURS=THEIRS",
            help="Field of the records to read, such as response=prediction; OURS is instruction, input,"
            " output (the reference answer, which may be missing) or response. May be given several times.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Judge only the first N responses.")
    ] = None,
    encoding: EncodingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Grade a model's responses with an LLM judge.

    From 0 to 100; or compare two models.
    If interrupted, run the same command again to continue.
    Prints a table to stdout, or with --json one object.
    """
    from gpt2cli.judge.client import TIMEOUT
    from gpt2cli.judge.runner import N_PARALLEL, SEED, JudgeOptions

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
    read = _reader(_fields_of(field or ()), encoding)
    server = _server_of(ollama, base_url, judge_model)
    options = JudgeOptions(
        seed=SEED if seed is None else seed,
        n_parallel=N_PARALLEL if parallel is None else parallel,
        timeout=TIMEOUT if timeout is None else timeout,
        fresh=fresh,
        retry=retry,
    )
    found = [_responses_of(target) for target in targets or ()] or [_newest_responses()]
    if len(found) == 1:
        _grade(found[0], read, server, out or _kept_of(found[0]), limit, options, as_json)
    else:
        _compare(found[0], found[1], read, server, out or _kept_of(*found), limit, options, as_json)


def _fields_of(pairs: "Sequence[str]") -> dict[str, str]:
    from gpt2cli.judge.items import FIELDS

    given = [(own.strip(), name.strip()) for own, _, name in (pair.partition("=") for pair in pairs)]
    for (own, name), typed in zip(given, pairs, strict=True):
        if own not in FIELDS or not name:
            raise UsageError(
                f"--field is {typed[:40]!r}",
                f"it names one of {', '.join(FIELDS)}, and the field of your records",
                "--field response=prediction",
            )
    return dict(given)


def _reader(fields: dict[str, str], encoding: str | None) -> "Callable[[Path], list[JudgeItem]]":
    """Reads a file of responses, not one of which may be bad."""
    from gpt2cli.data.byte_source import read_options
    from gpt2cli.judge.items import read_items

    options = read_options(encoding, max_bad=0)
    return lambda path: read_items(path, fields, options)


def _say_references(items: "Sequence[JudgeItem] | Sequence[Pair]") -> None:
    if n := sum(item.reference is None for item in items):
        say(f"note: {n:,} of {len(items):,} records have no reference answer; they are judged without one")


def _server_of(name: str | None, base_url: str | None, judge_model: str | None) -> "JudgeServer":
    from gpt2cli.judge import endpoint

    if name is not None and (base_url is not None or judge_model is not None):
        raise UsageError(
            "there are two judges", "--ollama is one, --base-url with --judge-model another", EXAMPLE
        )
    if name is not None:
        return endpoint.ollama(name)
    if base_url is None and judge_model is None:
        raise UsageError(
            "there is no judge",
            "a model that Ollama runs, or one behind any OpenAI-compatible server",
            EXAMPLE,
        )
    if base_url is None or judge_model is None:
        missing = "--base-url" if base_url is None else "--judge-model"
        raise UsageError(
            f"{missing} is missing",
            "--base-url and --judge-model go together",
            "--base-url http://127.0.0.1:8080/v1" if base_url is None else "--judge-model llama3.2",
        )
    return endpoint.openai_compatible(base_url, judge_model)


def _responses_of(target: str) -> Path:
    """The file of responses that a target means. Raises InputError."""
    given = paths.expand(target)
    if target and os.path.lexists(given) and not given.is_dir():
        return given  # reading it says what is wrong with it
    hidden = any(part.startswith(".") for part in Path(target).parts)
    for folder in [given, *([] if hidden else [paths.runs() / target])]:
        # A checkpoint's answers are its run's.
        for place in (folder, folder.resolve().parent.parent):
            if (place / paths.RESPONSES).is_file() and (place == folder or paths.is_run(place)):
                return place / paths.RESPONSES
    raise InputError(
        f"{target or repr(target)}: no responses here",
        f"neither a file, nor a folder or a run under {paths.runs()} with a {paths.RESPONSES}, which"
        " finetune-instruct writes at its end",
        "gpt2 finetune-instruct instruct",
    )


def _newest_responses() -> Path:
    found = [path for path in paths.runs().glob(f"*/{paths.RESPONSES}") if path.is_file()]
    found = [path for path in found if not path.parent.name.startswith(".")]
    if not found:
        raise InputError(
            "there are no responses here yet",
            f"no run under {paths.runs()} has a {paths.RESPONSES}",
            "gpt2 finetune-instruct instruct",
        )
    newest = max(found, key=lambda path: path.stat().st_mtime)
    say(f"responses: {newest}", "faint")
    return newest


def _label_of(path: Path) -> str:
    """The label of a file of responses in the name of a comparison."""
    name = path.resolve().parent.name if path.name == paths.RESPONSES else path.stem
    return "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in name)[:100] or "other"


def _kept_of(path: Path, other: Path | None = None) -> Path:
    """The default output: the file for the judgements of one file of responses, or the comparison of two.

    Only a run's own responses leave out their name, so that two files in one folder do not share one.
    """
    own = "" if path.name == paths.RESPONSES else f"{path.stem}."
    versus = "" if other is None else f"-vs-{_label_of(other)}"
    return path.parent / f"{own}judgements{versus}.jsonl"


def _grade(
    path: Path,
    read: "Callable[[Path], list[JudgeItem]]",
    server: "JudgeServer",
    place: Path,
    limit: int | None,
    options: "JudgeOptions",
    as_json: bool,
) -> None:
    from gpt2cli.judge.aggregate import GradeSummary, summarize_grades
    from gpt2cli.judge.grade import GRADING, grade_questions
    from gpt2cli.judge.runner import judgements_of
    from gpt2cli.ui.judge import grade_coverage, print_grades, print_warnings

    items = read(path)[:limit]
    _say_references(items)
    questions = grade_questions(items)

    def summed() -> GradeSummary:
        return summarize_grades(judgements_of(GRADING, questions, place), len(items), options.seed)

    what = f"{counted(len(items), 'response')} of {path}"
    failed = _ask(
        GRADING, questions, server, place, options, what, "responses", lambda: grade_coverage(summed())
    )
    summary, judgements = summed(), judgements_of(GRADING, questions, place)
    if as_json:
        about = {"responses": str(path), "judgements": str(place), **judge_facts(server, options.seed)}
        print_json({**about, **grade_facts(summary, judgements)})
    else:
        print_grades(summary, {item.index: item for item in items}, out())
    print_warnings(summary, err())
    if failed:
        raise failed
    if not summary.n_scored:
        said = f"{path}: no response could be scored"
        raise nothing_scored(said, grade_coverage(summary), judgements, place)


def _compare(
    a: Path,
    b: Path,
    read: "Callable[[Path], list[JudgeItem]]",
    server: "JudgeServer",
    place: Path,
    limit: int | None,
    options: "JudgeOptions",
    as_json: bool,
) -> None:
    from gpt2cli.judge.aggregate import PairSummary, summarize_pairs
    from gpt2cli.judge.pairwise import COMPARING, comparison_questions, pairs_of
    from gpt2cli.judge.runner import judgements_of
    from gpt2cli.ui.judge import pair_coverage, print_pairs

    items = [read(path) for path in (a, b)]
    shared = pairs_of(items[0], items[1], (str(a), str(b)))
    pairs = shared[:limit]
    _say_references(pairs)
    questions = comparison_questions(pairs)

    def summed() -> PairSummary:
        return summarize_pairs(pairs, judgements_of(COMPARING, questions, place), options.seed)

    if n_left_out := sum(len(one) - len(pairs) for one in items):
        only = [f"{len(one) - len(shared):,} only in {name}" for one, name in zip(items, "AB", strict=True)]
        parts = [f"{len(shared):,} questions are shared", *only, *[f"--limit is {limit}"] * bool(limit)]
        say(f"note: left out: {counted(n_left_out, 'response')}: {', '.join(parts)}")
    what = f"{len(pairs):,} pairs of {a} and {b} in both orders"
    failed = _ask(
        COMPARING, questions, server, place, options, what, "comparisons", lambda: pair_coverage(summed())
    )
    summary = summed()
    if as_json:
        about = {"a": str(a), "b": str(b), "judgements": str(place), **judge_facts(server, options.seed)}
        print_json({**about, **pair_facts(summary, pairs)})
    else:
        print_pairs(summary, str(a), str(b), out())
    if failed:
        raise failed
    if not summary.n_compared:
        comparisons = judgements_of(COMPARING, questions, place)
        raise nothing_scored(f"{a}: no pair could be compared", pair_coverage(summary), comparisons, place)


def _ask(
    task: "JudgeTask[Any, Any]",
    questions: "Sequence[JudgeQuestion]",
    server: "JudgeServer",
    place: Path,
    options: "JudgeOptions",
    what: str,
    unit: str,
    coverage: "Callable[[], str]",
) -> "ServiceError | None":
    """Judge with progress on stderr. Returns the server's error, so that finished grades print first."""
    from gpt2cli.judge.runner import judge
    from gpt2cli.ui.judge import JudgeProgress

    n_all = sum(not question.is_canary for question in questions)
    with JudgeProgress(err(), n_all, unit) as progress:

        def begin(n_missing: int) -> None:
            n_done = n_all - n_missing
            if n_missing:
                before = f"; {n_done:,} of {n_all:,} are there" if n_done else ""
                at = f"{server.model} at {server.base_url}, {options.n_parallel} at a time"
                say(f"judging {what} with {at}{before}")
            else:
                say(
                    f"all {what} were judged before; --fresh asks again"
                    if n_all
                    else f"nothing to ask about {what}"
                )
            progress.begin(n_missing)

        try:
            judge(task, questions, server, place, options, begin=begin, keep=progress.add, tell=progress.tell)
        except ServiceError as error:
            return error
        except (KeyboardInterrupt, SystemExit):
            progress.stop()
            say(f"{coverage()}; run the same command again to go on")
            raise
    return None
