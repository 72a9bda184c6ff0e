"""Log-probabilities of given ids: of windows of a long text, of many texts in batches, and of several
continuations of one context.

Rows are padded on the right, where causal attention does not look, and only the positions that are asked
for get logits. On the same ids the numbers are those of a plain transformers loop.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cli.checkpoints.finite import bad_logits, require_finite
from gpt2cli.data.sft_batches import batches_by_length
from gpt2cli.errors import InputError
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

    n_last = T - min(window.end - window.begin - window.n_scored for window in batch)
    with runtime.autocast():
        hidden = model.transformer(input_ids.to(runtime.device), n_last=n_last)  # (B, n_last, C)
        # Positions that count in other windows need no logits here.
        hidden = hidden[counts[:, -n_last:].to(runtime.device)]  # (N, C)
        wanted = targets[counts].to(runtime.device)  # (N,)
    return target_logprobs(model.lm_head, hidden.float(), wanted)[0]


def target_logprobs(
    head: nn.Module, hidden: Tensor, targets: Tensor, n_columns: int = LOGIT_COLUMNS
) -> tuple[Tensor, Tensor]:
    """log softmax(head(hidden))[target] in fp32, (N,), and whether the target's logit is the largest, (N,).

    Never are all logits there at once.

    hidden is (N, C), targets (N,). The weight (V, C) of a plain output layer is taken `n_columns` rows at a
    time, and their sums of exponentials are joined.
    """
    if not isinstance(head, OutputLayer):  # in a layout for decoding
        found = [_of_logits(head(h).float(), t) for h, t in _in_rows(hidden, targets)]
        logprobs, is_largest = zip(*found, strict=True)
        return torch.cat(logprobs), torch.cat(is_largest)
    on_cpu = hidden.device.type == "cpu"
    logits_of = many_rows.matmul_with(hidden, n_columns) if on_cpu else partial(fp32_logits, hidden)
    total = hidden.new_full(targets.shape, -torch.inf, dtype=torch.float32)  # log of the sum so far, (N,)
    largest, chosen = total.clone(), torch.empty_like(total)  # the largest logits, the targets' logits, (N,)
    for first in range(0, len(head.weight), n_columns):
        logits = logits_of(head.weight[first : first + n_columns])  # (N, columns)
        place = targets - first
        here = (place >= 0) & (place < logits.shape[1])
        own = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        chosen = torch.where(here, own, chosen)
        most = logits.amax(dim=-1)
        largest = torch.maximum(largest, most)
        total = torch.logaddexp(total, logits.sub_(most[:, None]).exp_().sum(dim=-1).log_().add_(most))
    return chosen - total, chosen >= largest


def _in_rows(hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(hidden, LOGIT_ROWS), torch.split(targets, LOGIT_ROWS), strict=True)


def _of_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`target_logprobs` from all logits (N, V)."""
    own = logits.gather(1, targets[:, None])[:, 0]
    return -F.cross_entropy(logits, targets, reduction="none"), own >= logits.amax(dim=-1)


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


@dataclass(frozen=True)
class Branches:
    """A context, at least one id, and the continuations of it to score, at least one id each."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ScoredContinuation:
    """The log-probabilities of a continuation's ids, in nats; `is_greedy` if each id is the likeliest one.

    `n_cut` ids of the context did not fit into the model's.
    """

    logprobs: tuple[float, ...]
    is_greedy: bool
    n_cut: int = 0

    @property
    def logprob(self) -> float:
        return math.fsum(self.logprobs)


def score_continuations(
    model: GPT2LMHead, items: Iterable[Branches], runtime: Runtime
) -> Iterator[tuple[ScoredContinuation, ...]]:
    """The scores of each item's continuations, each by itself after the context; in order.

    Items of similar length share a batch, and an item's context is computed once. Where context and
    continuation have more ids than the model's context and one, the context loses its first. Raises
    InputError for a continuation that is longer than the model's context, DivergedError for logits that are
    not finite.
    """
    limit, n_most = model.config.n_positions, BATCH_TOKENS[runtime.device.type]
    remaining = iter(items)
    while group := list(islice(remaining, TEXTS_AT_ONCE)):
        rows = [row for n, item in enumerate(group) for row in _rows(n, item, limit)]
        found: list[dict[int, ScoredContinuation]] = [{} for _ in group]
        for batch in batches_by_length([row.n_inputs for row in rows], n_most, n_most):
            chosen = [rows[i] for i in batch]
            for row, scores in zip(chosen, _score_rows(model, chosen, runtime), strict=True):
                found[row.item] |= zip(row.numbers, scores, strict=True)
        for scored in found:
            yield tuple(scored[number] for number in sorted(scored))


@dataclass(frozen=True)
class _PackedItem:
    """Continuations, by their numbers in an item, behind the same ids of its context: the context is followed
    by one branch per continuation, which sees the context and itself.
    """

    item: int
    numbers: tuple[int, ...]
    branches: Branches
    n_cut: int

    @property
    def n_inputs(self) -> int:  # the last id of a continuation is a target alone
        return len(self.branches.context) + sum(len(ids) - 1 for ids in self.branches.continuations)


def _rows(item: int, branches: Branches, limit: int) -> Iterator[_PackedItem]:
    """The item in one row, but for the continuations that leave room for less of the context."""
    by_cut: dict[int, list[int]] = {}
    for number, ids in enumerate(branches.continuations):
        if len(ids) > limit:
            raise InputError(
                f"a continuation has {len(ids)} tokens",
                f"this model's context holds {limit}",
                "choose a model with a longer context",
            )
        by_cut.setdefault(max(len(branches.context) + len(ids) - limit - 1, 0), []).append(number)
    for n_cut, numbers in by_cut.items():
        chosen = tuple(branches.continuations[number] for number in numbers)
        yield _PackedItem(item, tuple(numbers), Branches(branches.context[n_cut:], chosen), n_cut)


@torch.no_grad()
def _score_rows(
    model: GPT2LMHead, rows: Sequence[_PackedItem], runtime: Runtime
) -> list[tuple[ScoredContinuation, ...]]:
    T = max(row.n_inputs for row in rows)
    input_ids = torch.zeros(len(rows), T, dtype=torch.long)  # (B, T)
    positions, branch = torch.zeros_like(input_ids), torch.full_like(input_ids, -1)
    places: list[tuple[int, int]] = []  # row and position, one per target
    targets: list[int] = []
    for n, row in enumerate(rows):
        end = len(row.branches.context)
        last = end - 1  # of the context: it predicts the first id of each branch
        input_ids[n, :end] = torch.tensor(row.branches.context)
        positions[n, :end], branch[n, :end] = torch.arange(end), 0
        for number, ids in enumerate(row.branches.continuations, 1):
            begin, end = end, end + len(ids) - 1
            input_ids[n, begin:end] = torch.tensor(ids[:-1], dtype=torch.long)
            positions[n, begin:end], branch[n, begin:end] = torch.arange(last + 1, last + len(ids)), number
            places += [(n, place) for place in (last, *range(begin, end))]
            targets += ids
    mask = None  # causal
    if any(len(row.numbers) > 1 for row in rows):
        seen = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])  # (B, T, T)
        mask = seen.tril()[:, None].to(runtime.device)  # (B, 1, T, T)

    wanted = torch.tensor(targets).to(runtime.device)  # (N,)
    in_row, place = torch.tensor(places).T  # (N,) each
    first = int(place.min())
    with runtime.autocast():
        hidden = model.transformer(
            input_ids.to(runtime.device), positions=positions.to(runtime.device), mask=mask, n_last=T - first
        )  # (B, T - first, C)
        hidden = hidden[in_row.to(runtime.device), (place - first).to(runtime.device)]  # (N, C)
    logprobs, is_best = (found.tolist() for found in target_logprobs(model.lm_head, hidden.float(), wanted))
    require_finite(math.fsum(logprobs), bad_logits("", FIX))
    found, done = [], 0
    for row in rows:
        scores = []
        for ids in row.branches.continuations:
            part = slice(done, done := done + len(ids))
            scores.append(ScoredContinuation(tuple(logprobs[part]), all(is_best[part]), row.n_cut))
        found.append(tuple(scores))
    return found
