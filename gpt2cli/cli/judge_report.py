"""Owns what a script reads of `gpt2 judge`, and what is said where nothing was scored."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpt2cli.errors import ServiceError
    from gpt2cli.judge.aggregate import Summary
    from gpt2cli.judge.pairwise import Pair, PairSummary, Verdict
    from gpt2cli.judge.runner import Judgement
    from gpt2cli.judge.server import Server


def nothing(
    what: str, said: str, judgements: "Sequence[Judgement | Verdict]", path: Path, place: Path
) -> "ServiceError":
    """What happened, why, and what to do, where nothing was scored."""
    from gpt2cli.errors import ServiceError

    if not any(one.attempts for one in judgements):
        return ServiceError(f"{path}: {what}", f"{said}: there was nothing to ask about", f"look into {path}")
    reasons = [one.why for one in judgements if one.why]
    why = f"{said}: {max(set(reasons), key=reasons.count)}" if reasons else said
    fix = f"look into {place}; --retry asks again, another judge needs --fresh or --out FILE"
    if all(one.status != "unscored" for one in judgements):
        fix = "give the judge a larger context (OLLAMA_CONTEXT_LENGTH=8192 ollama serve), then --retry"
    return ServiceError(f"{path}: {what}", why, fix)


def judge_of(server: "Server", seed: int) -> dict[str, Any]:
    from gpt2cli.judge.server import shown

    return {"judge": server.model, "base_url": shown(server), "seed": seed}


def facts_of(summary: "Summary", judgements: "Sequence[Judgement]") -> dict[str, Any]:
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


def pair_facts(summary: "PairSummary", pairs: "Sequence[Pair]") -> dict[str, Any]:
    from dataclasses import asdict

    facts = {name: value for name, value in asdict(summary).items() if name != "outcomes"}
    items = [{"index": pair.index, "outcome": summary.outcomes.get(pair.index)} for pair in pairs]
    return {**facts, "items": items}
