"""Perplexity of a model on an encoded text, with a sliding window: every target counts exactly once.

On the same windows the loss is that of a plain transformers loop.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.checkpoints.finite import bad_logits, require_finite
from gpt2cli.errors import UsageError
from gpt2cli.evaluation.eval_text import EncodedText
from gpt2cli.model.config import GPT2Config, size_of
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.runtime import Runtime
from gpt2cli.tokenizer.base import Tokenizer

BATCH_TOKENS = 2048  # per batch of windows; more is not faster on a CPU
# Positions whose logits exist at a time: 13 MB in fp32 with GPT-2's vocabulary, which malloc reuses for
# the next 64. Blocks of 32 MB and more come from the kernel page by page, at three times the cost.
LOGIT_ROWS = 64

# Radford et al. 2019, table 3: zero-shot perplexity on WikiText-2.
PAPER_WIKITEXT2 = {"124M": 29.41, "355M": 22.76, "774M": 19.93, "1558M": 18.34}


@dataclass(frozen=True)
class SlidingWindow:
    """A window of `context` tokens that moves by `stride`; `batch` windows form a batch.

    A token is predicted from the context - stride to context tokens before it, or all there are.
    """

    context: int
    stride: int
    batch: int


def sliding_window_for(
    config: GPT2Config, context: int | None, stride: int | None, batch: int | None
) -> SlidingWindow:
    """The window for the given numbers; None is the model's context, half of it, and a batch that fits.

    Raises UsageError for a window beyond the model's context, and for numbers that contradict each other.
    """
    for name, given in (("context", context), ("stride", stride), ("batch", batch)):
        if given is not None and given < 1:
            raise UsageError(f"--{name} is {given}", "it must be at least 1")
    context = context or config.n_positions
    stride = stride or max(context // 2, 1)
    if context > config.n_positions:
        raise UsageError(
            f"--context is {context}",
            f"this model's context ends at {config.n_positions}",
            f"--context {config.n_positions}",
        )
    if stride > context:
        raise UsageError(
            f"--stride {stride} is larger than the context, {context}",
            "the tokens between two windows would not be predicted",
            f"--stride {context}",
        )
    return SlidingWindow(context, stride, batch or max(BATCH_TOKENS // context, 1))


@dataclass(frozen=True)
class PerplexityProgress:
    """Progress; the last one is the result. `nats` is the summed loss of the tokens so far."""

    nats: float
    n_tokens: int
    n_total: int
    n_windows: int
    seconds: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """Per token: exp of the mean loss."""
        return _exp(self.loss)

    @property
    def tokens_per_second(self) -> float:
        return self.n_tokens / self.seconds

    def word_perplexity(self, text: EncodedText) -> float:
        """Per word of the whole text: comparable between vocabularies."""
        return _exp(self.nats / text.n_words)

    def bits_per_byte(self, text: EncodedText) -> float:
        """Of the whole text: comparable between vocabularies and languages."""
        return self.nats / math.log(2) / text.n_bytes


def measure_perplexity(
    model: GPT2LMHead, text: EncodedText, sliding: SlidingWindow, runtime: Runtime
) -> Iterator[PerplexityProgress]:
    """Predict every target of the text once; yields after each batch of windows.

    Sums losses in float64. Raises DivergedError if they are not finite.
    """
    ids = torch.from_numpy(text.ids)
    rows = list(windows(text.n_targets, sliding))
    nats, n_tokens, started = 0.0, 0, time.perf_counter()
    for first in range(0, len(rows), sliding.batch):
        batch = rows[first : first + sliding.batch]
        nats += _sum_losses(model, ids, batch, runtime)
        n_tokens += sum(window.n_scored for window in batch)
        fix = "gpt2 evaluate --precision fp32, or use an earlier checkpoint"
        require_finite(nats, bad_logits(f" within the first {n_tokens} tokens", fix))
        n_windows, seconds = first + len(batch), time.perf_counter() - started
        yield PerplexityProgress(nats, n_tokens, text.n_targets, n_windows, seconds)


@dataclass(frozen=True)
class Window:
    """Input ids begin .. end - 1. Targets are shifted by one, and the last `n_scored` of them count."""

    begin: int
    end: int
    n_scored: int


def windows(n_targets: int, sliding: SlidingWindow) -> Iterator[Window]:
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


@torch.no_grad()  # not inference_mode, where autocast would cast the weights again for every matmul
def _sum_losses(model: GPT2LMHead, ids: Tensor, batch: Sequence[Window], runtime: Runtime) -> float:
    """The summed loss of the targets that count in these windows."""
    T = max(window.end - window.begin for window in batch)
    # A shorter window is padded on the right, where causal attention does not look.
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
        # Positions that count in other windows need no logits here.
        hidden, wanted = hidden[counts.to(runtime.device)], targets[counts].to(runtime.device)  # (N, C), (N,)
        chunks = zip(torch.split(hidden, LOGIT_ROWS), torch.split(wanted, LOGIT_ROWS), strict=True)
        for h, t in chunks:
            losses.append(F.cross_entropy(model.lm_head(h), t, reduction="none"))  # (n,)
    return torch.cat(losses).cpu().double().sum().item()  # on the CPU: not every device has float64


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # exp of more overflows a float
