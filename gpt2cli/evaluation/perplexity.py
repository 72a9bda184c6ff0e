"""Perplexity of a model on an encoded text, with a sliding window: every target counts exactly once.

On the same windows the loss is that of a plain transformers loop.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gpt2cli.checkpoints.finite import bad_logits, require_finite
from gpt2cli.errors import UsageError
from gpt2cli.evaluation.eval_text import EncodedText
from gpt2cli.evaluation.published import WIKITEXT2, published_figure, published_size
from gpt2cli.evaluation.scoring import BATCH_TOKENS, SlidingWindow, window_logprobs, windows
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.runtime import Runtime
from gpt2cli.tokenizer.base import Tokenizer


def sliding_window_for(
    config: GPT2Config, context: int | None, stride: int | None, batch: int | None, device: str = "cpu"
) -> SlidingWindow:
    """The window for the given numbers; None is the model's context, half of it, and a batch that suits the
    device.

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
    return SlidingWindow(context, stride, batch or max(BATCH_TOKENS[device] // context, 1))


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
        return perplexity_of(self.loss)

    @property
    def tokens_per_second(self) -> float:
        return self.n_tokens / self.seconds

    def word_perplexity(self, text: EncodedText) -> float:
        """Per word of the whole text: comparable between vocabularies."""
        return perplexity_of(self.nats / text.n_words)

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
        logprobs = window_logprobs(model, [ids] * len(batch), batch, runtime)
        nats -= logprobs.cpu().double().sum().item()  # on the CPU: not every device has float64
        n_tokens += sum(window.n_scored for window in batch)
        fix = "gpt2 evaluate --precision fp32, or use an earlier checkpoint"
        require_finite(nats, bad_logits(f" within the first {n_tokens} tokens", fix))
        n_windows, seconds = first + len(batch), time.perf_counter() - started
        yield PerplexityProgress(nats, n_tokens, text.n_targets, n_windows, seconds)


def paper_perplexity(config: GPT2Config, tokenizer: Tokenizer) -> float | None:
    """The paper's zero-shot figure on WikiText-2 for a model of this size; None for other shapes."""
    return published_figure(WIKITEXT2, "perplexity/word", published_size(config, tokenizer))


def perplexity_of(nats: float) -> float:
    """The perplexity for a mean loss in nats; above 700, where `exp` overflows, that of 700."""
    return math.exp(min(nats, 700.0))
