"""Sampling: how a row of logits becomes the id of the next token.

Logits (B, V) pass a chain of small filters, each a plain function from logits to logits: repetition
penalty, top-k, temperature, top-p, min-p, in this order. Then one id per row is drawn. Randomness enters as
one uniform number per row, so every function here is pure; `Sampler` keeps the state between steps, and
`trace.py` writes down what the chain did.
"""

import hashlib
import math
import numbers
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpt2cli.checkpoints.finite import bad_logits
from gpt2cli.errors import UsageError

Filter = Callable[[Tensor], Tensor]  # logits (B, n) to logits (B, n), REMOVED for a filtered token

REMOVED = float("-inf")  # the logit of a token that cannot be chosen
NOT_FINITE = -1  # instead of an id: the logits of this row hold NaN or infinity
TINY = torch.finfo(torch.float32).tiny  # anything smaller may count as 0 in fp32
BLOCK = 64  # logits whose maximum is looked at first
FIRST_LOOK = 512  # tokens that top_p sorts at first; sorting all takes 40 times as long


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. Raises UsageError for invalid values.

    With equal settings and seed, a row's random numbers depend only on its index in the batch.
    """

    temperature: float = 0.8  # 0 is greedy: always the most likely token
    top_k: int = 40  # only the k most likely tokens; 0 is all of them
    top_p: float = 1.0  # only the most likely tokens that together reach this probability
    min_p: float = 0.0  # only tokens at least this many times as likely as the most likely one
    repetition_penalty: float = 1.0  # above 1 makes tokens of the text so far less likely
    seed: int = 0

    def __post_init__(self) -> None:
        given: dict[str, Any] = vars(self)
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, numbers.Real):  # from Python
                raise UsageError(f"{_option(name)} is {value!r:.40}", "it must be a number")
        for name, allowed, range_ in (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or a positive number"),
            ("top_k", is_whole(self.top_k) and self.top_k >= 0, "0 (every token) or a positive whole number"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (every token) to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a positive number"),
            ("seed", is_whole(self.seed) and self.seed >= 0, "0 or a positive whole number"),
        ):
            if not allowed:
                raise UsageError(f"{_option(name)} is {getattr(self, name)}", f"it must be {range_}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def is_whole(value: object) -> bool:
    """Whether it is a whole number: an int, or one of NumPy's."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def sampling_options(seed: int | None = None, **given: float | None) -> SamplingOptions:
    """The options that are given, defaults for None and the rest, and a random seed if there is none."""
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return SamplingOptions(seed=secrets.randbelow(2**31) if seed is None else seed, **chosen)


def require_length(max_new_tokens: int) -> None:
    """Raise UsageError for a longest length that is none."""
    if not is_whole(max_new_tokens) or max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens is {max_new_tokens!r:.40}", "it must be at least 1")


@dataclass(frozen=True)
class Stage:
    """What a filter has left: logits (B, n) of the tokens `ids` (B, n), or of the whole vocabulary."""

    name: str  # "model" before the first filter, then those of SamplingOptions
    logits: Tensor
    ids: Tensor | None = None


# Called with the chain, the uniform numbers and the ids, the last two (B,), of each step.
Watch = Callable[[Sequence[Stage], Tensor, Tensor], None]


class Sampler:
    """Chooses the next id of each of B rows, step after step; each row draws one number per step.

    `rows` are the prompts; a repetition penalty applies to their ids, except those in `unweighed`.
    """

    def __init__(
        self,
        options: SamplingOptions,
        rows: Sequence[Sequence[int]],
        n_vocab: int,
        device: torch.device,
        generators: Sequence[torch.Generator] | None = None,
        unweighed: Collection[int] = (),
        watch: Watch | None = None,
    ) -> None:
        self._watch = watch
        self._options = options
        self._generators = row_generators(options.seed, len(rows)) if generators is None else generators
        self._seen: Tensor | None = None
        if options.repetition_penalty != 1:
            self._seen = torch.zeros(len(rows), n_vocab, dtype=torch.bool, device=device)  # (B, V)
            for row, ids in zip(self._seen, rows, strict=True):
                row[torch.tensor(ids, device=device)] = True
            self._seen[:, list(unweighed)] = False

    @torch.inference_mode()
    def __call__(self, logits: Tensor) -> Tensor:
        """The next id of each row, (B,), on the device of logits (B, V); NOT_FINITE as in `choose`."""
        chain = list(stages(logits.float(), self._options, self._seen))
        numbers = uniforms(self._generators)
        ids = _take(chain, numbers)
        if self._watch is not None:
            self._watch(chain, numbers, ids)
        if self._seen is not None:
            self._seen.scatter_(1, ids.clamp(min=0)[:, None], True)
        return ids


def choose(logits: Tensor, options: SamplingOptions, uniforms: Tensor, seen: Tensor | None = None) -> Tensor:
    """The next id of each row, (B,), from raw logits (B, V); NOT_FINITE where not all of a row are finite.

    `uniforms` (B,) in [0, 1) are the random numbers; `seen` (B, V) is True for the tokens that a
    repetition penalty applies to. No device sync here; `to_list` syncs, and raises.
    """
    return _take(list(stages(logits.float(), options, seen)), uniforms)


def _take(chain: Sequence[Stage], uniforms: Tensor) -> Tensor:
    """Draws from what the chain has left."""
    low, high = chain[0].logits.aminmax(dim=1)  # (B,) each; they pass NaN on
    last = chain[-1]
    if last.ids is None:
        ids = draw(last.logits, uniforms)  # (B,)
    elif last.ids.shape[1] == 1:  # greedy: one is left
        ids = last.ids.squeeze(1)
    else:
        ids = last.ids.gather(1, draw(last.logits, uniforms)[:, None]).squeeze(1)
    return ids.where(low.isfinite() & high.isfinite(), NOT_FINITE)


def stages(logits: Tensor, options: SamplingOptions, seen: Tensor | None = None) -> Iterator[Stage]:
    """The chain over logits (B, V) in fp32: the model's own, then what each filter that is on has left."""
    yield Stage("model", logits)
    if seen is not None:
        logits = penalize_repetition(logits, seen, options.repetition_penalty)
        yield Stage("repetition_penalty", logits)
    if options.temperature < TINY:  # greedy
        best = logits.argmax(dim=1, keepdim=True)  # (B, 1)
        yield Stage("temperature", logits.gather(1, best), best)
        return
    ids = None
    if 0 < options.top_k < logits.shape[1]:
        # Top-k first: a temperature keeps the ranks, and the other filters cost nothing on k tokens.
        ids = top_k_ids(logits, options.top_k)  # (B, k)
        logits = logits.gather(1, ids)
        yield Stage("top_k", logits, ids)
    for name, apply in filters(options).items():
        logits = apply(logits)  # (B, n)
        yield Stage(name, logits, ids)


def to_list(ids: Tensor) -> list[int]:
    """The chosen ids (B,) as numbers. Raises DivergedError where a row's logits were not finite."""
    chosen: list[int] = ids.tolist()
    if NOT_FINITE in chosen:
        raise bad_logits("", "--precision fp32, or an earlier checkpoint")
    return chosen


def filters(options: SamplingOptions) -> dict[str, Filter]:
    """The filters after top-k, in order, by name; each works on the n tokens that are left, (B, n)."""
    chain: dict[str, Filter] = {"temperature": partial(scale, temperature=options.temperature)}
    if options.top_p < 1:
        chain["top_p"] = partial(top_p, p=options.top_p)
    if options.min_p > 0:
        chain["min_p"] = partial(min_p, p=options.min_p)
    return chain


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) with those of `seen` tokens made lower (Keskar et al. 2019, CTRL, section 4.1).

    A negative logit is multiplied, because dividing it would make the token more likely.
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalized.nan_to_num(), logits)  # an extreme penalty overflows


def top_k_ids(logits: Tensor, k: int) -> Tensor:
    """The ids (B, k), ascending, of the k highest of each row of logits (B, V).

    They lie in the k blocks with the highest maxima, so only these are searched. Of equal logits at the
    limit some are left out, always the same ones.
    """
    B, V = logits.shape
    n_blocks = V // BLOCK
    if n_blocks <= k:
        return logits.topk(k, dim=1).indices.sort(dim=1).values
    end = n_blocks * BLOCK
    blocks = logits[:, :end].view(B, n_blocks, BLOCK)
    best = blocks.amax(dim=2).topk(k, dim=1, sorted=False).indices  # (B, k), numbers of blocks
    ids = (best[:, :, None] * BLOCK + torch.arange(BLOCK, device=logits.device)).flatten(1)  # (B, k * BLOCK)
    found = torch.cat([logits.gather(1, ids), logits[:, end:]], dim=1)
    ids = torch.cat([ids, torch.arange(end, V, device=logits.device).expand(B, -1)], dim=1)
    return ids.gather(1, found.topk(k, dim=1).indices).sort(dim=1).values


def scale(logits: Tensor, temperature: float) -> Tensor:
    """Logits (B, V) divided by a temperature, the highest of each row at 0.

    The maximum is subtracted first: dividing by a tiny temperature would overflow.
    """
    return (logits - logits.amax(dim=1, keepdim=True)) / temperature


def top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with only the fewest tokens left whose probabilities reach p (Holtzman et al. 2019).

    The most likely token always stays.
    """
    kept = torch.zeros_like(logits, dtype=torch.bool)
    for row, probabilities in zip(kept, logits.softmax(dim=1), strict=True):
        # Row by row: how many are sorted decides which of equal logits come first.
        V = len(probabilities)
        for n in (min(FIRST_LOOK, V), V):
            highest, ids = probabilities.topk(n)  # (n,), descending
            before = highest.cumsum(dim=0) - highest  # the sum ahead of each token
            if n == V or before[-1] >= p:
                break
        row[ids[before < max(p, TINY)]] = True
    return logits.masked_fill(~kept, REMOVED)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) without the tokens that are less than p times as likely as the most likely one
    (Nguyen et al. 2024, arXiv 2407.01082).
    """
    highest = logits.amax(dim=1, keepdim=True)  # (B, 1)
    return logits.masked_fill(logits - highest < math.log(p), REMOVED)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One id per row, (B,), with the probabilities softmax(logits).

    The inverse of the distribution function: the first token at which the running sum passes the
    uniform number. In float64, where a removed token never moves the sum; Apple's GPUs lack it, so there
    the sum is computed on the CPU.
    """
    device = logits.device
    probabilities = logits.softmax(dim=-1).to("cpu" if device.type == "mps" else device)
    sums = probabilities.cumsum(dim=-1, dtype=torch.float64)  # (B, V), ascending
    targets = uniforms.to(sums, non_blocking=True).unsqueeze(1) * sums[:, -1:]  # (B, 1), below the last sum
    ids = torch.searchsorted(sums, targets, right=True).clamp(max=logits.shape[-1] - 1)
    return ids.squeeze(1).to(device)


def row_generators(seed: int, n_rows: int) -> list[torch.Generator]:
    """A generator for each row, from the seed and the row's index alone."""
    return [chance(seed, row) for row in range(n_rows)]


def chance(*path: int) -> torch.Generator:
    """A generator seeded by `path`, whose first number is the seed."""
    digest = hashlib.sha256(":".join(map(str, path)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def uniforms(generators: Sequence[torch.Generator]) -> Tensor:
    """The next number in [0, 1) of each row, (B,)."""
    return torch.cat([torch.rand(1, generator=generator) for generator in generators])
