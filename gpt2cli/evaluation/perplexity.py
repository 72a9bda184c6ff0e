"""Owns how well a model predicts a text: the sliding window, the sum of losses, what follows from it.

End-of-text stands before the text, as it did between the documents of GPT-2's training, so that the
first token is predicted too: every token of the text counts, and counts once. On the same windows
the loss is that of a plain transformers loop. Nothing is shown here, and no text is looked for.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.errors import DivergedError, InputError, UsageError
from gpt2cli.model.config import GPT2Config, size_of
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.runtime import Runtime
from gpt2cli.tokenizer.base import Tokenizer

BATCH_TOKENS = 2048  # of all windows that go through the model together; more is not faster on a CPU
# Positions whose logits exist at a time. With GPT-2's vocabulary 13 MB in fp32, which malloc keeps for the
# next 64; blocks of 32 MB and more come from the kernel page by page, at three times the cost.
LOGIT_ROWS = 64

# Radford et al. 2019, table 3: zero-shot perplexity on WikiText-2.
PAPER_WIKITEXT2 = {"124M": 29.41, "355M": 22.76, "774M": 19.93, "1558M": 18.34}


@dataclass(frozen=True)
class Sliding:
    """A window of `context` tokens that moves by `stride`; `batch` windows are computed together.

    A token is predicted from context - stride to context tokens before it, or all there are.
    Raises UsageError for numbers that contradict each other.
    """

    context: int
    stride: int
    batch: int

    def __post_init__(self) -> None:
        for name in ("context", "stride", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}", "it must be at least 1")
        if self.stride > self.context:
            raise UsageError(
                f"--stride {self.stride} is larger than the context, {self.context}",
                "the tokens between two windows would not be predicted",
                f"--stride {self.context}",
            )


def sliding_for(config: GPT2Config, context: int | None, stride: int | None, batch: int | None) -> Sliding:
    """What was asked for; None is the model's whole context, half of that, and a batch that fits.

    Raises UsageError where the model cannot do it.
    """
    if context is None:
        context = config.n_positions
    if context > config.n_positions:
        raise UsageError(
            f"--context is {context}",
            f"this model's context ends at {config.n_positions}",
            f"--context {config.n_positions}",
        )
    if stride is None:
        stride = max(context // 2, 1)
    if batch is None:
        batch = max(BATCH_TOKENS // max(context, 1), 1)
    return Sliding(context, stride, batch)


@dataclass(frozen=True)
class Text:
    """A text as one tokenizer sees it. Words are what whitespace separates; bytes are UTF-8."""

    ids: Sequence[int]
    end_of_text: int
    n_words: int
    n_bytes: int


def text_for(text: str, tokenizer: Tokenizer, name: str) -> Text:
    """Raises InputError for a text without anything to predict; `name` is how errors call it."""
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise InputError(
            f"{name}: has {len(ids)} tokens",
            "at least 2 are needed for a figure that means anything",
            "name a longer text: --on FILE",
        )
    return Text(ids, tokenizer.end_of_text, max(len(text.split()), 1), len(text.encode("utf-8")))


@dataclass(frozen=True)
class Scoring:
    """How far it is; the last one is the result. `nats` sums the losses of the tokens predicted so far."""

    nats: float
    n_tokens: int
    n_total: int
    n_windows: int
    seconds: float

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """A token's; how many equally likely ones the model wavers between."""
        return _exp(self.loss)

    @property
    def tokens_per_second(self) -> float:
        return self.n_tokens / self.seconds

    def word_perplexity(self, text: Text) -> float:
        """A word's, of the whole text: comparable between vocabularies."""
        return _exp(self.nats / text.n_words)

    def bits_per_byte(self, text: Text) -> float:
        """Of the whole text: comparable between vocabularies and languages."""
        return self.nats / math.log(2) / text.n_bytes


def score(model: GPT2LMHead, text: Text, sliding: Sliding, runtime: Runtime) -> Iterator[Scoring]:
    """Predict every token of the text once; one item a batch of windows.

    Losses are added up in float64. Raises DivergedError where they are not finite.
    """
    ids = torch.tensor([text.end_of_text, *text.ids])
    rows = list(windows(len(text.ids), sliding))
    nats, n_tokens, started = 0.0, 0, time.perf_counter()
    for first in range(0, len(rows), sliding.batch):
        batch = rows[first : first + sliding.batch]
        nats += _nats(model, ids, batch, runtime)
        n_tokens += sum(window.n_scored for window in batch)
        if not math.isfinite(nats):
            raise DivergedError(
                f"the model's scores are not finite within the first {n_tokens} tokens",
                "its weights hold NaN or infinity, or overflow in this precision",
                "gpt2 evaluate --precision fp32, or use an earlier checkpoint",
            )
        n_windows, seconds = first + len(batch), time.perf_counter() - started
        yield Scoring(nats, n_tokens, len(text.ids), n_windows, seconds)


@dataclass(frozen=True)
class Window:
    """Input ids begin .. end - 1; the targets are one further, and the last `n_scored` of them count."""

    begin: int
    end: int
    n_scored: int


def windows(n_targets: int, sliding: Sliding) -> Iterator[Window]:
    """The windows over n_targets + 1 ids, the first of which is not a target."""
    done = 0
    while done < n_targets:
        begin = 0 if not done else done + sliding.stride - sliding.context
        end = min(begin + sliding.context, n_targets)
        yield Window(begin, end, end - done)
        done = end


def paper_perplexity(config: GPT2Config, tokenizer: Tokenizer) -> float | None:
    """The paper's zero-shot figure on WikiText-2 for a model of this size; None for other shapes."""
    size = size_of(config)
    same = tokenizer.name == "gpt2" and config.layer_norm_epsilon == GPT2Config().layer_norm_epsilon
    return PAPER_WIKITEXT2[size] if size and same else None


@torch.no_grad()  # not inference_mode, in which autocast would round the weights again for every product
def _nats(model: GPT2LMHead, ids: Tensor, batch: Sequence[Window], runtime: Runtime) -> float:
    """The summed loss of the targets that count in these windows."""
    T = max(window.end - window.begin for window in batch)
    # A shorter window is filled up behind its end, where nothing of it looks.
    input_ids = torch.zeros(len(batch), T, dtype=torch.long)  # (B, T)
    targets, counts = torch.zeros_like(input_ids), torch.zeros(len(batch), T, dtype=torch.bool)
    for row, window in enumerate(batch):
        n = window.end - window.begin
        input_ids[row, :n] = ids[window.begin : window.end]
        targets[row, :n] = ids[window.begin + 1 : window.end + 1]
        counts[row, n - window.n_scored : n] = True

    losses = []
    with runtime.autocast():
        hidden = model.transformer(input_ids.to(runtime.device))  # (B, T, C)
        # The rest has been or will be predicted elsewhere; its logits would cost as much again.
        hidden, wanted = hidden[counts.to(runtime.device)], targets[counts].to(runtime.device)  # (N, C), (N,)
        chunks = zip(torch.split(hidden, LOGIT_ROWS), torch.split(wanted, LOGIT_ROWS), strict=True)
        for h, t in chunks:
            losses.append(F.cross_entropy(model.lm_head(h).float(), t, reduction="none"))  # (n,)
    return torch.cat(losses).cpu().double().sum().item()  # on the CPU: not every device has float64


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # beyond that a float ends
