"""Owns what we want to reach: a line for each goal, and where its numbers lie in the programs' JSON.

A value is a list, a number for each round, so that ratios are taken round by round. `LEAST` asks for
so many times their speed; `MOST` for at most that share of theirs or, without a peer, that much.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engines import COMPILED, CTRANSLATE, LLAMA, ROWS, TRANSFORMERS
from loading import AGAIN, PEER
from prepare import ARRAYS, LISTS, OURS
from scoring import BATCHED, CLASSIFY, EVALUATE
from scoring import OURS as SCORED
from scoring import THEIRS as SCORED_BY
from startup import COMPILED as COMPILED_START
from startup import HELP
from training import THEIRS

LEAST, MOST = "at least", "at most"
SPEEDS = ("tokens/s", "MB/s")  # of which more is better; of all other units less is
Pick = Callable[[Any], list[float]]


@dataclass(frozen=True)
class Values:
    program: str  # whose JSON it is
    unit: str
    ours: Pick
    theirs: Pick | None = None


@dataclass(frozen=True)
class Goal:
    what: str
    against: str
    sense: str  # LEAST or MOST
    bound: float
    values: Values


def decode(precision: str, start: int, peer: str) -> Values:
    ours, theirs = (_engine(precision, 1, start, engine, "token_s") for engine in (COMPILED, peer))
    return Values("decode", "ms/token", ours, theirs)


def prefill(precision: str, length: int, peer: str) -> Values:
    ours, theirs = (_engine(precision, 1, length, engine, "prefill_s") for engine in (COMPILED, peer))
    return Values("decode", "s", ours, theirs)


def later(precision: str, start: int, first: int) -> Values:
    """Our token after `start` tokens beside our own after `first`."""
    late, early = (_engine(precision, 1, place, COMPILED, "token_s") for place in (start, first))
    return Values("decode", "ms/token", late, early)


def batch(precision: str, rows: int, peer: str) -> Values:
    ours, theirs = (_engine(precision, rows, 64, engine, "token_s") for engine in (ROWS, peer))
    return Values("batch", "ms/step", ours, theirs)


def scored(task: str, precision: str, peer: str) -> Values:
    def seconds(name: str) -> Pick:
        return lambda report: _one(report["results"], task=task, precision=precision)["seconds"][name]

    return Values("scoring", "s", seconds(SCORED), seconds(peer))


def training(shape: str) -> Values:
    """Tokens/s, beside the better of transformers' two in each round."""

    def speeds(report: Any) -> Any:
        return _one(report, batch=shape)["tokens_per_s"]

    return Values(
        "training",
        "tokens/s",
        lambda report: speeds(report)["gpt2cli"],
        lambda report: [max(pair) for pair in zip(*(speeds(report)[name] for name in THEIRS), strict=True)],
    )


def peak(shape: str) -> Values:
    """Beside the smaller of transformers' two."""

    def sizes(report: Any) -> Any:
        return _one(report, batch=shape)["peak_bytes"]

    return Values(
        "training",
        "GB",
        lambda report: [sizes(report)["gpt2cli"]],
        lambda report: [min(sizes(report)[name] for name in THEIRS)],
    )


def losses_apart() -> Values:
    """How far our losses are from transformers' at most, at any of the first shape's steps."""

    def apart(report: Any) -> list[float]:
        ours, theirs = (report[0]["losses"][name] for name in ("gpt2cli", THEIRS[0]))
        return [max(abs(a - b) for a, b in zip(ours, theirs, strict=True))]

    return Values("training", "nats", apart)


def loaded(moment: int) -> Values:
    """0: the model is there; 1: it has computed logits."""

    def seconds(kind: str) -> Pick:
        return lambda report: [pair[moment] for pair in report["seconds"][kind]]

    return Values("loading", "s", seconds(AGAIN), seconds(PEER))


def started(kind: str) -> Values:
    return Values("startup", "s", lambda report: report["seconds"][kind])


def prepared(peer: str) -> Values:
    return Values("prepare", "MB/s", lambda r: r["mb_per_second"][OURS], lambda r: r["mb_per_second"][peer])


def prepare_peak() -> Values:
    """The longest text beside the shortest."""

    def of(choose: Callable[..., str]) -> Pick:
        return lambda report: [report["peak_bytes"][choose(report["peak_bytes"], key=int)]]

    return Values("prepare", "GB", of(max), of(min))


def _engine(precision: str, rows: int, start: int, engine: str, name: str) -> Pick:
    def pick(report: Any) -> list[float]:
        result = _one(report["results"], precision=precision, rows=rows, start=start)
        return [one[name] for one in result["rounds"][engine]]

    return pick


def _one(entries: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The entry with these values; KeyError where it was not measured."""
    for entry in entries:
        if all(entry[name] == value for name, value in wanted.items()):
            return entry
    raise KeyError(str(wanted))


BEST, SMALLER = "transformers bf16, the better of two", "transformers bf16, the smaller of two"
BARE = "bare tiktoken, encode_"
GOALS = (
    Goal("decode fp32 after 64", "llama.cpp f32", LEAST, 1.15, decode("fp32", 64, LLAMA)),
    Goal("decode fp32 after 960", "llama.cpp f32", LEAST, 1.15, decode("fp32", 960, LLAMA)),
    Goal("decode bf16 after 64", "llama.cpp f16", LEAST, 1.3, decode("bf16", 64, LLAMA)),
    Goal("decode bf16 after 960", "llama.cpp f16", LEAST, 1.3, decode("bf16", 960, LLAMA)),
    Goal("decode int8 after 64", "llama.cpp q8_0", LEAST, 1.5, decode("int8", 64, LLAMA)),
    Goal("decode int8 after 960", "llama.cpp q8_0", LEAST, 1.35, decode("int8", 960, LLAMA)),
    Goal("decode bf16 after 64", "transformers bf16", LEAST, 3.0, decode("bf16", 64, TRANSFORMERS)),
    Goal("decode bf16 after 960", "transformers bf16", LEAST, 3.0, decode("bf16", 960, TRANSFORMERS)),
    Goal("decode fp32 after 900", "itself after 64", MOST, 1.25, later("fp32", 900, 64)),
    Goal("decode bf16 after 900", "itself after 64", MOST, 1.25, later("bf16", 900, 64)),
    Goal("decode int8 after 900", "itself after 64", MOST, 1.4, later("int8", 900, 64)),
    Goal("prefill 512, bf16", "transformers bf16", LEAST, 1.2, prefill("bf16", 512, TRANSFORMERS)),
    Goal("prefill 512, bf16", "llama.cpp f16", LEAST, 2.0, prefill("bf16", 512, LLAMA)),
    Goal("prefill 512, fp32", "llama.cpp f32", LEAST, 1.3, prefill("fp32", 512, LLAMA)),
    Goal("evaluate fp32, 4 windows", "transformers", LEAST, 2.0, scored(EVALUATE, "fp32", SCORED_BY)),
    Goal("evaluate bf16, 4 windows", "transformers bf16", LEAST, 2.0, scored(EVALUATE, "bf16", SCORED_BY)),
    Goal("classify 300 texts", "transformers' pipeline", LEAST, 2.0, scored(CLASSIFY, "fp32", SCORED_BY)),
    Goal("classify 300 texts", "the same, batches of 32", LEAST, 2.0, scored(CLASSIFY, "fp32", BATCHED)),
    Goal("batch 8, bf16", "transformers bf16", LEAST, 1.8, batch("bf16", 8, TRANSFORMERS)),
    Goal("batch 32, bf16", "transformers bf16", LEAST, 1.8, batch("bf16", 32, TRANSFORMERS)),
    Goal("batch 8, int8", "CTranslate2 int8", LEAST, 1.2, batch("int8", 8, CTRANSLATE)),
    Goal("batch 32, int8", "CTranslate2 int8", LEAST, 1.2, batch("int8", 32, CTRANSLATE)),
    Goal("training step 2 x 256, bf16", BEST, LEAST, 1.6, training("2x256")),
    Goal("training step 4 x 256, bf16", BEST, LEAST, 1.6, training("4x256")),
    Goal("training step 1 x 1024, bf16", BEST, LEAST, 1.5, training("1x1024")),
    Goal("losses of these steps, largest gap", "transformers eager", MOST, 0.05, losses_apart()),
    Goal("training memory 2 x 256", SMALLER, MOST, 1.0, peak("2x256")),
    Goal("training memory 4 x 256", SMALLER, MOST, 1.0, peak("4x256")),
    Goal("training memory 1 x 1024", SMALLER, MOST, 1.0, peak("1x1024")),
    Goal("generate to its first token, compiled bf16", "", MOST, 1.5, started(COMPILED_START)),
    Goal("building the encoder", "", MOST, 0.05, started("encoder")),
    Goal("gpt2 --help", "", MOST, 0.2, started(HELP)),
    Goal("loading, hash remembered", "from_pretrained", LEAST, 1.0, loaded(0)),
    Goal("loading, until first logits", "from_pretrained", LEAST, 1.0, loaded(1)),
    Goal("prepare", f"{BARE}ordinary_batch", LEAST, 0.9, prepared(LISTS)),
    Goal("prepare", f"{BARE}to_numpy in threads", LEAST, 0.9, prepared(ARRAYS)),
    Goal("memory of prepare, longest text", "the shortest", MOST, 1.25, prepare_peak()),
)
