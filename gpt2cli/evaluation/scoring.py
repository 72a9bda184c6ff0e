"""Log-probabilities of given ids: of windows of a long text, and of many texts in batches.

Rows are padded on the right, where causal attention does not look, and only the positions that are asked
for get logits. On the same windows the numbers are those of a plain transformers loop.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cli.checkpoints.finite import bad_logits, require_finite
from gpt2cli.data.sft_batches import batches_by_length
from gpt2cli.generation.cpu import many_rows
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.model.layers import OutputLayer, fp32_logits
from gpt2cli.runtime import Runtime
from gpt2cli.tokenizer.base import Tokenizer, begin

# Tokens per batch, by device. On a CPU the activations of twice as many come from the kernel page by page.
BATCH_TOKENS = {"cpu": 1024, "cuda": 2048, "mps": 2048}
# Tokens of the vocabulary whose logits exist at a time, for all positions of a batch: 8 MB in fp32 for 1,024.
# A matmul of so many rows runs at full speed; of 64 rows and the whole vocabulary it runs at half of that.
LOGIT_COLUMNS = 2048
LOGIT_ROWS = 64  # positions at a time, for output layers in other layouts
TEXTS_AT_ONCE = 512  # that are sorted by length together
FIX = "--precision fp32, or an earlier checkpoint"


@dataclass(frozen=True)
class SlidingWindow:
    """A window of `context` tokens that moves by `stride`; `batch` windows form a batch.

    A token is predicted from the context - stride to context tokens before it, or all there are.
    """

    context: int
    stride: int
    batch: int


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


@torch.no_grad()  # not inference_mode, where autocast would cast the weights again for every matmul
def window_logprobs(
    model: GPT2LMHead, texts: Sequence[Tensor], batch: Sequence[Window], runtime: Runtime
) -> Tensor:
    """The log-probabilities (N,), in nats, of the targets that count, window after window, in one batch.

    `texts` are the ids of each window's whole text.
    """
    T = max(window.end - window.begin for window in batch)
    input_ids = torch.zeros(len(batch), T, dtype=torch.long)  # (B, T)
    targets, counts = torch.zeros_like(input_ids), torch.zeros(len(batch), T, dtype=torch.bool)
    for row, (ids, window) in enumerate(zip(texts, batch, strict=True)):
        n = window.end - window.begin
        input_ids[row, :n] = ids[window.begin : window.end]
        targets[row, :n] = ids[window.begin + 1 : window.end + 1]
        counts[row, n - window.n_scored : n] = True

    with runtime.autocast():
        hidden = model.transformer(input_ids.to(runtime.device))  # (B, T, C)
        # Positions that count in other windows need no logits here.
        hidden, wanted = hidden[counts.to(runtime.device)], targets[counts].to(runtime.device)  # (N, C), (N,)
    return target_logprobs(model.lm_head, hidden.float(), wanted)


def target_logprobs(
    head: nn.Module, hidden: Tensor, targets: Tensor, n_columns: int = LOGIT_COLUMNS
) -> Tensor:
    """log softmax(head(hidden))[target] in fp32, (N,), without all logits at once.

    hidden is (N, C), targets (N,). The weight (V, C) of a plain output layer is taken `n_columns` rows at a
    time, and their sums of exponentials are joined.
    """
    if not isinstance(head, OutputLayer):  # in a layout for decoding
        rows = zip(torch.split(hidden, LOGIT_ROWS), torch.split(targets, LOGIT_ROWS), strict=True)
        return -torch.cat([F.cross_entropy(head(h).float(), t, reduction="none") for h, t in rows])
    linear = many_rows.linear if hidden.device.type == "cpu" else fp32_logits
    total = hidden.new_full(targets.shape, -torch.inf, dtype=torch.float32)  # log of the sum so far, (N,)
    chosen = torch.empty_like(total)  # the targets' logits, (N,)
    for first in range(0, len(head.weight), n_columns):
        logits = linear(hidden, head.weight[first : first + n_columns])  # (N, columns)
        total = torch.logaddexp(total, logits.logsumexp(dim=-1))
        place = targets - first
        here = (place >= 0) & (place < logits.shape[1])
        own = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        chosen = torch.where(here, own, chosen)
    return chosen - total


def after_beginning(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """A text as it is scored: after end-of-text, or the tokenizer's own beginning, so that its first
    token counts too, as in training and in `gpt2 evaluate`.
    """
    return [*(begin(tokenizer) or [tokenizer.end_of_text]), *ids]


def score_texts(
    model: GPT2LMHead, texts: Iterable[Sequence[int]], runtime: Runtime
) -> Iterator[tuple[float, ...]]:
    """The log-probabilities of each text's ids after the first, which is context alone; in order.

    Texts of similar length share a batch. One that is longer than the context is scored in windows
    that overlap by half. Raises DivergedError for logits that are not finite.
    """
    context = model.config.n_positions
    sliding = SlidingWindow(context, max(context // 2, 1), 1)
    n_most = BATCH_TOKENS[runtime.device.type]
    remaining = iter(texts)
    while group := [torch.tensor(ids) for ids in islice(remaining, TEXTS_AT_ONCE)]:
        places = [(n, one) for n, ids in enumerate(group) for one in windows(len(ids) - 1, sliding)]
        found: list[dict[int, tuple[float, ...]]] = [{} for _ in group]  # by the windows' begins
        lengths = [window.end - window.begin for _, window in places]
        for batch in batches_by_length(lengths, n_most, n_most):
            chosen = [places[i] for i in batch]
            logprobs = window_logprobs(
                model, [group[n] for n, _ in chosen], [window for _, window in chosen], runtime
            ).cpu()
            require_finite(float(logprobs.sum()), bad_logits("", FIX))
            sizes = [window.n_scored for _, window in chosen]
            for (n, window), part in zip(chosen, torch.split(logprobs, sizes), strict=True):
                found[n][window.begin] = tuple(part.tolist())
        for parts in found:
            yield tuple(value for begin in sorted(parts) for value in parts[begin])
