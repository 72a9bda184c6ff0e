"""The JSON output of `gpt2 judge`, and the error if nothing was scored."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpt2cli.errors import ServiceError
    from gpt2cli.judge.aggregate import GradeSummary, PairSummary
    from gpt2cli.judge.endpoint import JudgeServer
    from gpt2cli.judge.grade import GradeJudgement
    from gpt2cli.judge.pairwise import Pair
    from gpt2cli.judge.results import Judgement


def nothing_scored(
    what: str, coverage: str, judgements: "Sequence[Judgement]", place: Path
) -> "ServiceError":
    """The error for a task without a score; `place` is the results file."""
    own = [one for one in judgements if not one.is_canary]
    if all(one.status == "empty" for one in own):
        fix = f"head -n 3 {shlex.quote(str(place))}"
        return ServiceError(what, f"{coverage}: there was nothing to ask about", fix)
    reasons = [one.why for one in own if one.why]
    why = f"{coverage}: {max(set(reasons), key=reasons.count)}" if reasons else coverage
    fix = f"look into {place}; --retry asks again, another judge needs --fresh or --out FILE"
    if all(one.status != "unscored" for one in own):
        fix = "serve the judge with a larger context (llama-server -c 16384), then add --retry"
    return ServiceError(what, why, fix)


def judge_facts(server: "JudgeServer", seed: int) -> dict[str, Any]:
    return {"judge": server.model, "base_url": server.base_url, "seed": seed}


def grade_facts(summary: "GradeSummary", judgements: "Sequence[GradeJudgement]") -> dict[str, Any]:
    """Contains no times, so that the same scores give the same text."""

    def plain(one: "GradeJudgement") -> dict[str, Any]:
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


def pair_facts(summary: "PairSummary", pairs: "Sequence[Pair]") -> dict[str, Any]:
    facts = {name: value for name, value in asdict(summary).items() if name != "outcomes"}
    items = [{"index": pair.index, "outcome": summary.outcomes.get(pair.index)} for pair in pairs]
    return {**facts, "items": items}
