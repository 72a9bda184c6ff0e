"""What a model answers in Python: small records, lists of them, and attention. A notebook shows them."""

import html
import math
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")


class RecordList(list[Item]):
    """A list of small records that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        if not self:
            return "<p>empty</p>"
        names = [field.name for field in fields(self[0])]  # type: ignore[arg-type]
        head = "".join(f"<th>{name}</th>" for name in names)
        rows = (
            "".join(f"<td><code>{_cell(getattr(item, name))}</code></td>" for name in names) for item in self
        )
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


@dataclass(frozen=True)
class TextToken:
    """A token of a text. A part of a character has the text U+FFFD."""

    id: int
    text: str


@dataclass(frozen=True)
class NextCandidate:
    """A token that may come next."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class ScoredToken:
    """A token of a text, and its log-probability in nats given all before it."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class TextLabel:
    """A classifier's answer: the likeliest label, and the probability of each."""

    label: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True, repr=False, eq=False)
class AttentionWeights:
    """Attention of each layer and head: `weights` (n_layer, n_head, T, T), whose rows attend to columns, of
    `tokens` (T). NumPy takes it as an array; a notebook draws it.
    """

    weights: NDArray[np.float32]
    tokens: tuple[str, ...]
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weights.shape

    def __getitem__(self, key: Any) -> Any:
        return self.weights[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.weights, dtype=dtype) if copy else np.asarray(self.weights, dtype=dtype)

    def __repr__(self) -> str:
        L, H, T, _ = self.shape
        return f"AttentionWeights({L} layers x {H} heads x {T} x {T} tokens of {self.name!r})"

    def _repr_png_(self) -> bytes:
        """The picture of `gpt2 inspect --attention`, of the last tokens if there are many."""
        from gpt2cli.ui.attention_map import MOST_TOKENS, attention_png

        L, H, T, _ = self.shape
        first = max(T - MOST_TOKENS, 0)
        return attention_png(
            self.weights[:, :, first:, first:],
            self.tokens[first:],
            layers=range(L),
            heads=range(H),
            title=f"{self.name}: attention weights",
            prompt="".join(self.tokens),
            n_before=first,
        )


def _cell(value: object) -> str:
    """A value in a notebook's table."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4f}"
    return html.escape(repr(value))
