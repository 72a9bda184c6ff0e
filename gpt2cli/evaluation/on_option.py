"""What `--on` names: texts and benchmarks, separated by commas."""

import difflib
import glob
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2cli.data.corpora import BUNDLED, CORPORA
from gpt2cli.errors import InputError, UsageError
from gpt2cli.evaluation.benchmarks import BENCHMARKS, Benchmark
from gpt2cli.paths import expand


@dataclass(frozen=True)
class EvaluationTarget:
    """A text, or a benchmark with a file or corpus in the place of its own items, if one is named."""

    benchmark: Benchmark | None
    source: str | None


def parse_on(on: str) -> list[EvaluationTarget]:
    """The entries, each once. A path that holds commas is one entry; ./NAME is a file called as a benchmark.

    Raises UsageError for a name that two protocols share, InputError for a name that is nearly a benchmark's.
    """
    words = [on] if _is_path(on) else [word.strip() for word in on.split(",")]
    words = list(dict.fromkeys(word for word in words if word))
    if not words:
        raise UsageError(f"--on {on!r} names nothing", f"benchmarks: {', '.join(BENCHMARKS)}", "--on TEXT")
    return [_entry(word, words) for word in words]


def _entry(word: str, words: Sequence[str]) -> EvaluationTarget:
    name, is_given, source = word.partition("=")
    if name in BENCHMARKS:
        if is_given and not source:
            raise UsageError(f"--on {word}: names no file", fix=f"--on {name}")
        return EvaluationTarget(BENCHMARKS[name], source if is_given else None)
    if _is_path(word) or word in CORPORA or word in BUNDLED:
        return EvaluationTarget(None, word)

    def fix(meant: str) -> str:
        corrected = [f"{meant}{is_given}{source}" if one == word else one for one in words]
        return shlex.join(["--on", ",".join(corrected)])

    if name == "lambada":
        raise UsageError(
            "lambada: two protocols go by this name",
            "lambada:word asks for the whole last word, as lm-evaluation-harness does (GPT-2 124M: 32.56 %);"
            " lambada:token for the last token alone (46.67 %)",
            fix("lambada:word"),
        )
    if near := difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.75):
        known = f"the benchmarks are {', '.join(BENCHMARKS)}"
        raise InputError(f"{name}: neither a file nor a benchmark", known, fix(near[0]))
    return EvaluationTarget(None, word)


def _is_path(word: str) -> bool:
    path = str(expand(word))
    return os.path.lexists(path) or bool(glob.glob(path, recursive=True))
