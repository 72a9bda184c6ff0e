"""The benchmarks on which language models are compared without training on them: what is read, and how an
item is scored.

One name stands for one protocol: the same data under another protocol gives another figure. LAMBADA of
GPT-2 124M is 45.99, 46.67 or 32.56 %.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpt2cli.data.corpora import CORPORA, find_corpus
from gpt2cli.errors import Gpt2Error, InputError
from gpt2cli.evaluation.benchmark_items import (
    Item,
    ItemFile,
    read_cbt,
    read_hellaswag,
    read_hellaswag_completion,
    read_lambada,
)
from gpt2cli.evaluation.intervals import Estimate, mean_interval, wilson_interval
from gpt2cli.evaluation.perplexity import perplexity_of
from gpt2cli.evaluation.scoring import Branches, ScoredContinuation, after_beginning, score_continuations
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.runtime import Runtime
from gpt2cli.tokenizer.base import Tokenizer, begin

Scores = Sequence[ScoredContinuation]


def encode_pair(item: Item, tokenizer: Tokenizer) -> Branches:
    """Context and choices as lm-evaluation-harness encodes them: each choice together with the context, cut
    where the context alone ends. White space at the end of the context goes to the choice; no context is
    end-of-text.
    """
    text = item.context.rstrip()
    space = item.context[len(text) :]
    ids = tokenizer.encode(text)
    context = [*begin(tokenizer), *ids] if ids else after_beginning(tokenizer, [])
    choices = (tokenizer.encode(text + space + choice)[len(ids) :] for choice in item.choices)
    return Branches(tuple(context), tuple(map(tuple, choices)))


def encode_apart(item: Item, tokenizer: Tokenizer) -> Branches:
    """Context and choices each by itself."""
    context = [*begin(tokenizer), *tokenizer.encode(item.context)] or after_beginning(tokenizer, [])
    return Branches(tuple(context), tuple(tuple(tokenizer.encode(choice)) for choice in item.choices))


def encode_last_token(item: Item, tokenizer: Tokenizer) -> Branches:
    """The text as a whole: the model predicts its last token, even if that is only part of the last word."""
    *ids, last = tokenizer.encode(item.context + item.choices[item.answer])
    return Branches(tuple([*begin(tokenizer), *ids] or after_beginning(tokenizer, [])), ((last,),))


def _greedy(item: Item, scores: Scores) -> float:
    return float(scores[0].is_greedy)


def _nats(item: Item, scores: Scores) -> float:
    return -scores[0].logprob


def _likeliest(item: Item, scores: Scores) -> float:
    return _is_best(item, [score.logprob for score in scores])


def _likeliest_per_character(item: Item, scores: Scores) -> float:
    # The space before a choice does not count; a choice of markers alone has nothing else.
    pairs = zip(item.choices, scores, strict=True)
    return _is_best(item, [score.logprob / max(len(choice) - 1, 1) for choice, score in pairs])


def _likeliest_per_token(item: Item, scores: Scores) -> float:
    return _is_best(item, [score.logprob / len(score.logprobs) for score in scores])


def _is_best(item: Item, values: Sequence[float]) -> float:
    return float(values.index(max(values)) == item.answer)


@dataclass(frozen=True)
class Benchmark:
    """A protocol on a corpus. A metric gives each item a value: 1 or 0 for an accuracy; for a perplexity the
    nats of what is predicted.
    """

    name: str
    protocol: str
    corpus: str  # of the table of corpora
    miniature: str  # the same, bundled
    read: Callable[[Path], ItemFile]
    encode: Callable[[Item, Tokenizer], Branches]
    metrics: Mapping[str, Callable[[Item, Scores], float]]


_lambada = partial(
    Benchmark,
    corpus="lambada-test",
    miniature="lambada-miniature",
    read=read_lambada,
    metrics={"accuracy": _greedy, "perplexity": _nats},
)
_hellaswag = partial(Benchmark, corpus="hellaswag-val", miniature="hellaswag-miniature")
_HARNESS = "lm-evaluation-harness 0.4.13"
_CBT_PROTOCOL = (
    "Radford et al. 2019, section 3.2: the candidate that makes itself and the rest of the sentence likeliest"
    " after all text before it; Penn Treebank tokens undone by rules of our own, theirs are not published"
)
_ROWS = (
    _lambada(
        name="lambada:word",
        protocol=f"the last word, each of its tokens the likeliest; lambada_openai of {_HARNESS}",
        encode=encode_pair,
    ),
    _lambada(
        name="lambada:token",
        protocol="the last token alone, after all other tokens of the text, those of the same word too",
        encode=encode_last_token,
    ),
    _hellaswag(
        name="hellaswag",
        protocol=f"the likeliest ending after 'Activity: context', acc_norm per character; {_HARNESS}",
        read=read_hellaswag,
        encode=encode_pair,
        metrics={"acc": _likeliest, "acc_norm": _likeliest_per_character},
    ),
    _hellaswag(
        name="hellaswag:completion",
        protocol="the likeliest ending after the context as it is, acc_norm per token; as build-nanogpt",
        read=read_hellaswag_completion,
        encode=encode_apart,
        metrics={"acc": _likeliest, "acc_norm": _likeliest_per_token},
    ),
    *(
        Benchmark(
            name=f"cbt-{kind}",
            protocol=_CBT_PROTOCOL,
            corpus=f"cbt-{kind}-valid",
            miniature=f"cbt-{kind}-miniature",
            read=read_cbt,
            encode=encode_pair,
            metrics={"accuracy": _likeliest},
        )
        for kind in ("cn", "ne")
    ),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ROWS}


@dataclass(frozen=True)
class BenchmarkData:
    """The items to score, the first of `n_all`. `is_own`: they are the benchmark's, so that published
    figures can stand beside the result.
    """

    benchmark: Benchmark
    source: str
    sha256: str
    is_own: bool
    is_miniature: bool
    items: tuple[Item, ...]
    n_all: int


def read_benchmark(
    benchmark: Benchmark, source: str | None, limit: int | None, offline: bool
) -> BenchmarkData:
    """The items from the benchmark's own corpus, or from `source`, a file or another corpus of its form.

    `limit` keeps the first so many, as lm-evaluation-harness does. Raises InputError, ServiceError.
    """
    try:
        found = find_corpus(source or benchmark.corpus, offline=offline, allow_bundled=False)
    except Gpt2Error as error:
        if not source:
            error.fix = f"{error.fix}; to try it on a miniature: --on {benchmark.name}={benchmark.miniature}"
        raise
    content = benchmark.read(found.paths[0])
    if not content.items:
        raise InputError(f"{found.paths[0]}: there are no items", "the file is empty", "choose another file")
    return BenchmarkData(
        benchmark,
        found.name,
        content.sha256,
        content.sha256 == CORPORA[benchmark.corpus].sha256 or found.name == benchmark.corpus,
        found.name == benchmark.miniature,
        content.items[:limit],
        len(content.items),
    )


def encode_items(data: BenchmarkData, tokenizer: Tokenizer) -> tuple[Branches, ...]:
    """The ids of all items. Raises InputError naming FILE:LINE for a character that the tokenizer does not
    know, and for a choice without a token of its own.
    """
    encoded = []
    for item in data.items:
        try:
            branches = data.benchmark.encode(item, tokenizer)
        except Gpt2Error as error:
            raise InputError(f"{item.where}: {error.what}", error.why, error.fix) from None
        if not all(branches.continuations):
            raise InputError(
                f"{item.where}: a choice has no token of its own",
                "the model's tokenizer joins it with the context",
                "choose another model for this benchmark",
            )
        encoded.append(branches)
    return tuple(encoded)


def require_room(data: BenchmarkData, encoded: Sequence[Branches], config: GPT2Config) -> None:
    """Raises InputError for a choice that the model's context cannot hold."""
    for item, branches in zip(data.items, encoded, strict=True):
        longest = max(map(len, branches.continuations))
        if longest > config.n_positions:
            raise InputError(
                f"{item.where}: a choice has {longest:,} tokens",
                f"this model's context holds {config.n_positions:,}",
                "choose a model with a longer context",
            )


@dataclass(frozen=True)
class ItemResult:
    """What the model made of one item: a score per choice, a value per metric."""

    item: Item
    scores: tuple[ScoredContinuation, ...]
    values: dict[str, float]

    @property
    def n_cut(self) -> int:
        """Tokens of the context that did not fit, at most."""
        return max(score.n_cut for score in self.scores)


def run_benchmark(
    model: GPT2LMHead, data: BenchmarkData, encoded: Iterable[Branches], runtime: Runtime
) -> Iterator[ItemResult]:
    """Score the items, in their order. Raises DivergedError."""
    for item, scores in zip(data.items, score_continuations(model, encoded, runtime), strict=True):
        values = {name: metric(item, scores) for name, metric in data.benchmark.metrics.items()}
        yield ItemResult(item, scores, values)


def summarize(benchmark: Benchmark, results: Sequence[ItemResult]) -> dict[str, Estimate]:
    """Each metric over all items: accuracies from 0 to 1 with Wilson's interval; a perplexity with that of
    the mean of its nats, which are taken as normally distributed.
    """
    found = {}
    for metric in benchmark.metrics:
        values = [result.values[metric] for result in results]
        if metric == "perplexity":
            nats = mean_interval(values)
            found[metric] = Estimate(*(perplexity_of(x) for x in (nats.value, nats.low, nats.high)))
        else:
            found[metric] = wilson_interval(sum(values), len(values))
    return found
