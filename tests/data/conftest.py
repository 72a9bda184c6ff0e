"""Fixtures for the data room: small texts, and `prepare` with few words."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2cli.data.manifest import PrepareSettings
from gpt2cli.data.prepare import prepare
from gpt2cli.data.prepare_pipeline import PrepareProgress

SETTINGS = PrepareSettings("gpt2", ("text",), 0.1, 1337, 100_000)
TEXT = "the sea is grey and the boat, 1,200 miles out, doesn't turn: «héé» 数字 🚢 x_y\n\n  so\tit   goes "
WORDS = TEXT.split(" ")


@pytest.fixture
def words() -> Callable[[int, int], str]:
    """words(n, seed): n words of several scripts, punctuation and runs of white space."""

    def make(n: int, seed: int = 0) -> str:
        return " ".join(random.Random(seed).choices(WORDS, k=n))

    return make


@pytest.fixture
def run() -> Callable[..., list[PrepareProgress]]:
    """run(sources, out, **settings or options): all items of `prepare`."""

    def go(sources: list[Path | str], out: Path, **changes: object) -> list[PrepareProgress]:
        own = {key: changes.pop(key) for key in list(changes) if key in SETTINGS.__dataclass_fields__}
        return list(prepare(sources, out, replace(SETTINGS, **own), **changes))  # type: ignore[arg-type]

    return go
