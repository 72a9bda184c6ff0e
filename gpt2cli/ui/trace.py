"""The sampler's choices as `gpt2 generate --trace` shows them: a small table per token, or JSON."""

from typing import Any

from gpt2cli.generation.trace import ChoiceTrace
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.ui.console import aligned
from gpt2cli.ui.inspect import token_text


def trace_lines(trace: ChoiceTrace, place: int, tokenizer: Tokenizer) -> list[str]:
    """Candidates down, stages across; a star marks the drawn one, a dash what a filter has removed.

    `place` is the token's number among the new ones, from 1.
    """
    rows: list[tuple[str, ...]] = [("", "id", "token", *trace.stages)]
    for one in trace.candidates:
        chances = ("-" if p == 0 else f"{p:.2%}" for p in one.probabilities)
        star = "*" if one.id == trace.id else ""
        rows.append((star, f"{one.id}", token_text(tokenizer, one.id), *chances))
    rows.append(("", "", "candidates left", *(f"{n:,}" for n in trace.n_left)))
    how = f"drawn with {trace.uniform:.4f}" if trace.n_left[-1] > 1 else "the only one left"
    title = f"token {place}: {token_text(tokenizer, trace.id)}, {how}"
    return ["", title, *aligned(rows, {1, *range(3, 3 + len(trace.stages))})]


def trace_facts(trace: ChoiceTrace, tokenizer: Tokenizer) -> dict[str, Any]:
    """The same for JSON; probabilities and counts in the order of `stages`."""
    return {
        "id": trace.id,
        "text": tokenizer.decode([trace.id]),
        "uniform": trace.uniform,
        "stages": trace.stages,
        "left": trace.n_left,
        "candidates": [
            {"id": one.id, "text": tokenizer.decode([one.id]), "probabilities": one.probabilities}
            for one in trace.candidates
        ],
    }
