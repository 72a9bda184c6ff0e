"""Owns the choice of the next token: how a row of scores becomes one id.

Every function is pure: scores in, scores or ids out, (B, V) with V the vocabulary. Chance comes
in as one uniform number a row. Where the scores come from is engine.py's business.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2cli.checkpoints.finite import bad_logits, require_finite
from gpt2cli.errors import UsageError

REMOVED = float("-inf")  # the score of a token that cannot be chosen any more
TINY = torch.finfo(torch.float32).tiny  # what is smaller may count as 0 in fp32
BLOCK = 64  # scores whose maximum is looked at first
FIRST_LOOK = 512  # tokens sorted before top_p sorts them all; a whole sort is 40 times as long


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen. Raises UsageError for values that mean nothing.

    With equal settings and seed a row's tokens depend on nothing but its place among the rows.
    """

    temperature: float = 0.8  # 0 is greedy: always the most likely token
    top_k: int = 40  # only the k most likely tokens; 0 is all of them
    top_p: float = 1.0  # only the most likely tokens that together reach this probability
    repetition_penalty: float = 1.0  # above 1 makes tokens that are there already less likely
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed, range_ in (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or a positive number"),
            ("top_k", self.top_k >= 0, "0 (every token) or a positive whole number"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a positive number"),
            ("seed", self.seed >= 0, "0 or a positive whole number"),
        ):
            if not allowed:
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} is {getattr(self, name)}", f"it must be {range_}")


def choose(logits: Tensor, decoding: Decoding, uniforms: Tensor, seen: Tensor | None = None) -> Tensor:
    """The next id of each row, (B,), from raw scores (B, V).

    `uniforms` (B,) in [0, 1) are used where chance plays a part; `seen` (B, V) is True for the
    tokens that a repetition penalty weighs. Raises DivergedError for scores that are not finite.
    """
    logits = logits.float()
    require_finite(logits, bad_logits("", "--precision fp32, or an earlier checkpoint"))
    if seen is not None:
        logits = penalize_repetition(logits, seen, decoding.repetition_penalty)
    if decoding.temperature < TINY:
        return logits.argmax(dim=-1)  # (B,)
    if not 0 < decoding.top_k < logits.shape[1]:
        return _draw_warm(logits, decoding, uniforms)
    ids = top_k_ids(logits, decoding.top_k)  # (B, k); what follows costs nothing on so few
    places = _draw_warm(logits.gather(1, ids), decoding, uniforms)  # (B,), of 0 to k - 1
    return ids.gather(1, places[:, None]).squeeze(1)


def _draw_warm(logits: Tensor, decoding: Decoding, uniforms: Tensor) -> Tensor:
    """One of all tokens that scores (B, n) are for, (B,)."""
    # The highest score becomes 0 first: divided by a small temperature it would leave the numbers.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / decoding.temperature
    return draw(top_p(logits, decoding.top_p), uniforms)


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores (B, V) with those of `seen` tokens made lower (Keskar et al. 2019, CTRL, section 4.1).

    A negative score is multiplied, because dividing it would make the token more likely.
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalized.nan_to_num(), logits)  # an extreme penalty leaves the numbers


def top_k_ids(scores: Tensor, k: int) -> Tensor:
    """The ids (B, k), rising, of the k highest of each row of scores (B, V).

    Each of them lies in one of the k blocks with the highest maxima, so only these are looked through.
    Of equal scores at the limit some are left out, for the same scores the same ones.
    """
    B, V = scores.shape
    n_blocks = V // BLOCK
    if n_blocks <= k:
        return scores.topk(k, dim=1).indices.sort(dim=1).values
    end = n_blocks * BLOCK
    blocks = scores[:, :end].view(B, n_blocks, BLOCK)
    best = blocks.amax(dim=2).topk(k, dim=1, sorted=False).indices  # (B, k), numbers of blocks
    ids = (best[:, :, None] * BLOCK + torch.arange(BLOCK, device=scores.device)).flatten(1)  # (B, k * BLOCK)
    found = torch.cat([scores.gather(1, ids), scores[:, end:]], dim=1)
    ids = torch.cat([ids, torch.arange(end, V, device=scores.device).expand(B, -1)], dim=1)
    return ids.gather(1, found.topk(k, dim=1).indices).sort(dim=1).values


def top_p(logits: Tensor, p: float) -> Tensor:
    """Scores (B, V) with only the fewest tokens left whose probabilities reach p (Holtzman et al. 2019).

    The most likely token always stays.
    """
    if p >= 1:
        return logits
    kept = torch.zeros_like(logits, dtype=torch.bool)
    for row, probabilities in zip(kept, logits.softmax(dim=-1), strict=True):
        # Each row by itself: how far one is sorted decides which of its equal scores come first.
        V = len(probabilities)
        for n in (min(FIRST_LOOK, V), V):
            highest, ids = probabilities.topk(n)  # (n,), falling
            before = highest.cumsum(dim=0) - highest  # what the tokens ahead of each one have together
            if n == V or before[-1] >= p:
                break
        row[ids[before < max(p, TINY)]] = True
    return logits.masked_fill(~kept, REMOVED)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One id a row, (B,), with the probabilities softmax(logits).

    The inverse of the distribution function: the first token at which the running sum passes the
    uniform number. In double precision, where a removed token never moves the sum; Apple's GPUs
    have none, so there the sum is the CPU's.
    """
    device = logits.device
    probabilities = logits.softmax(dim=-1).to("cpu" if device.type == "mps" else device)
    sums = probabilities.cumsum(dim=-1, dtype=torch.float64)  # (B, V), rising
    targets = uniforms.to(sums).unsqueeze(1) * sums[:, -1:]  # (B, 1), below the last sum
    ids = torch.searchsorted(sums, targets, right=True).clamp(max=logits.shape[-1] - 1)
    return ids.squeeze(1).to(device)


def row_generators(seed: int, n_rows: int) -> list[torch.Generator]:
    """A source of chance for each row, from the seed and the row's place alone."""
    return [chance(seed, row) for row in range(n_rows)]


def chance(*path: int) -> torch.Generator:
    """A source of chance of its own for each path of numbers, which begins with a seed."""
    digest = hashlib.sha256(":".join(map(str, path)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def uniforms(generators: Sequence[torch.Generator]) -> Tensor:
    """The next number in [0, 1) of each row, (B,)."""
    return torch.cat([torch.rand(1, generator=generator) for generator in generators])
