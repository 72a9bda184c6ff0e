"""What `--on` names: texts and benchmarks, separated by commas."""

import glob
import os
from dataclasses import dataclass

from gpt2cli.data.corpora import BUNDLED, CORPORA
from gpt2cli.errors import UsageError
from gpt2cli.evaluation.benchmarks import BENCHMARKS, Benchmark
from gpt2cli.paths import expand


@dataclass(frozen=True)
class Entry:
    """A text, or a benchmark with a file or corpus in the place of its own items, if one is named."""

    benchmark: Benchmark | None
    source: str | None


def parse_on(on: str) -> list[Entry]:
    """The entries, each once. A path that holds commas is one entry; ./NAME is a file called as a benchmark.

    Raises UsageError for a name that two protocols share.
    """
    words = [on] if _is_path(on) else [word.strip() for word in on.split(",")]
    entries = [_entry(word) for word in dict.fromkeys(words) if word]
    if not entries:
        raise UsageError(f"--on {on!r} names nothing", f"benchmarks: {', '.join(BENCHMARKS)}", "--on TEXT")
    return entries


def _entry(word: str) -> Entry:
    name, is_given, source = word.partition("=")
    if name in BENCHMARKS:
        return Entry(BENCHMARKS[name], source if is_given else None)
    if name == "lambada" and not _is_path(word):
        raise UsageError(
            "lambada: two protocols go by this name",
            "of GPT-2 124M they give 32.56 and 46.67 %",
            f"--on lambada:word{is_given}{source} (the whole last word, as lm-evaluation-harness), or"
            f" --on lambada:token{is_given}{source} (the last token)",
        )
    return Entry(None, word)


def _is_path(word: str) -> bool:
    path = str(expand(word))
    return os.path.lexists(path) or (word not in CORPORA and word not in BUNDLED and bool(glob.glob(path)))
