"""What the sampler did at each token: candidates before and after each filter, and the draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, zeros

from gpt2cli.generation.sampling import REMOVED, Stage
from gpt2cli.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class TracedToken:
    """A candidate, and its probability at each stage; 0 from the filter on that removed it."""

    id: int
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class ChoiceTrace:
    """One choice. `stages` names the model and then the filters that were on, in order."""

    id: int  # the drawn one
    uniform: float  # the random number: the first candidate at which the running sum of the last
    # stage's probabilities, in the order of ids, passes it
    stages: tuple[str, ...]
    n_left: tuple[int, ...]  # candidates at each stage
    candidates: tuple[TracedToken, ...]  # the model's favourite first, the drawn one among them

    def as_json(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """For `gpt2 generate --trace --json`; probabilities and counts in the order of `stages`."""
        return {
            "id": self.id,
            "text": tokenizer.decode([self.id]),
            "uniform": self.uniform,
            "stages": self.stages,
            "left": self.n_left,
            "candidates": [
                {"id": one.id, "text": tokenizer.decode([one.id]), "probabilities": one.probabilities}
                for one in self.candidates
            ],
        }


def trace_choice(chain: Sequence[Stage], uniforms: Tensor, ids: Tensor, row: int, n: int) -> ChoiceTrace:
    """The choice of one row: the `n` most likely candidates before and after all filters."""
    found = [_probabilities(stage, row, chain[0].logits.shape[1]) for stage in chain]  # (V,) each
    chosen = int(ids[row])
    shown = {chosen}
    for probabilities in (found[0], found[-1]):
        top = probabilities.topk(min(n, len(probabilities)))
        shown.update(id for id, p in zip(top.indices.tolist(), top.values.tolist(), strict=True) if p > 0)
    return ChoiceTrace(
        id=chosen,
        uniform=float(uniforms[row]),
        stages=tuple(stage.name for stage in chain),
        n_left=tuple(int((stage.logits[row] != REMOVED).sum()) for stage in chain),
        candidates=tuple(
            TracedToken(id, tuple(float(p[id]) for p in found))
            for id in sorted(shown, key=lambda id: (-float(found[0][id]), id))
        ),
    )


class ChoiceRecord:
    """Watches a sampler: of the last step, the log-probabilities of the chosen ids, and `n` candidates."""

    def __init__(self, n: int = 0) -> None:
        self._n = n
        self.logprobs: list[float] = []  # (B,), in nats, under the model itself, before any filter
        self.traces: list[ChoiceTrace] = []  # (B,); none for n = 0

    def __call__(self, chain: Sequence[Stage], uniforms: Tensor, ids: Tensor) -> None:
        chosen = ids.clamp(min=0)[:, None]  # not finite: the engine raises
        self.logprobs = chain[0].logits.log_softmax(dim=1).gather(1, chosen).squeeze(1).tolist()
        if self._n:
            self.traces = [
                trace_choice(chain, uniforms, chosen[:, 0], row, self._n) for row in range(len(ids))
            ]


def _probabilities(stage: Stage, row: int, V: int) -> Tensor:
    """Of the whole vocabulary, (V,), on the CPU."""
    probabilities = stage.logits[row].cpu().double().softmax(dim=0)
    if stage.ids is None:
        return probabilities
    return zeros(V, dtype=probabilities.dtype).scatter(0, stage.ids[row].cpu(), probabilities)
