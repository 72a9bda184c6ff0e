"""Published figures of GPT-2, by size, for comparison with ours; each with its source."""

from dataclasses import dataclass

from gpt2cli.model.config import GPT2Config, size_of
from gpt2cli.tokenizer.base import Tokenizer

WIKITEXT2 = "wikitext-2-test"
SIZES = ("124M", "355M", "774M", "1558M")
PAPER = "Radford et al. 2019, table 3"


@dataclass(frozen=True)
class Published:
    """One row: accuracies in percent, perplexities as they are. A figure of another protocol than ours of
    this name, which `note` states, does not stand in the table beside ours.
    """

    benchmark: str
    metric: str
    by_size: dict[str, float]
    where: str
    note: str = ""
    same_protocol: bool = True


def _paper(benchmark: str, metric: str, *figures: float, note: str = "", same: bool = True) -> Published:
    return Published(benchmark, metric, dict(zip(SIZES, figures, strict=True)), PAPER, note, same)


_UNKNOWN = "by a protocol that is not published"
_STOP_WORDS = "with a stop-word filter that is not published"
_HARNESS = "EleutherAI/lm-evaluation-harness"
_NANOGPT = "build-nanogpt hellaswag.py"
PUBLISHED = (
    _paper(WIKITEXT2, "perplexity/word", 29.41, 22.76, 19.93, 18.34, note="on de-tokenised text"),
    Published("lambada:word", "accuracy", {"124M": 32.56}, f"{_HARNESS}#2159"),
    Published("lambada:word", "perplexity", {"124M": 40.06}, f"{_HARNESS}#2159"),
    Published("lambada:word", "perplexity", {"1558M": 10.63}, f"{_HARNESS}#911"),
    _paper("lambada:word", "accuracy", 45.99, 55.48, 60.12, 63.24, note=_STOP_WORDS, same=False),
    _paper("lambada:word", "perplexity", 35.13, 15.60, 10.87, 8.63, note=_UNKNOWN, same=False),
    Published("lambada:token", "accuracy", {"124M": 46.67}, "huggingface/transformers#13761"),
    Published("hellaswag", "acc", {"124M": 28.92, "1558M": 40.04}, _NANOGPT),
    Published("hellaswag", "acc_norm", {"124M": 31.14, "1558M": 50.89}, _NANOGPT),
    Published("hellaswag:completion", "acc", {"124M": 28.59, "1558M": 38.42}, _NANOGPT),
    Published("hellaswag:completion", "acc_norm", {"124M": 29.55, "1558M": 48.93}, _NANOGPT),
    _paper("cbt-cn", "accuracy", 87.65, 92.35, 93.45, 93.30),
    _paper("cbt-ne", "accuracy", 83.4, 87.1, 88.0, 89.05),
)


def published_figure(benchmark: str, metric: str, size: str | None) -> float | None:
    """The figure of a model of this size under the same protocol; None where there is none."""
    rows = (row for row in PUBLISHED if (row.benchmark, row.metric) == (benchmark, metric))
    return next((row.by_size[size] for row in rows if row.same_protocol and size in row.by_size), None)


def published_size(config: GPT2Config, tokenizer: Tokenizer) -> str | None:
    """The size whose figures are comparable with a model's: its shape and vocabulary are GPT-2's."""
    same = tokenizer.name == "gpt2" and config.layer_norm_epsilon == GPT2Config().layer_norm_epsilon
    return size_of(config) if same else None
