"""A validation text of one's own, and the tokenizer of a base model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2cli.data import tokenize as chunks
from gpt2cli.data.manifest import PrepareSettings
from gpt2cli.data.prepare import prepare, prepare_cached
from gpt2cli.data.prepare_pipeline import PrepareProgress
from gpt2cli.data.token_dataset import TokenSplit, open_dataset
from gpt2cli.errors import InputError, UsageError
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.chars import Chars

Run = Callable[..., list[PrepareProgress]]
CHARS = PrepareSettings("chars", ("text",), 0.0)


def decoded(tokens: TokenSplit) -> str:
    ids = tokens.read(0, tokens.n_tokens).tolist()
    return "".join("abcdefgh"[i] if i < 8 else "|" for i in ids)


@pytest.fixture(autouse=True)
def texts() -> None:
    """Eight letters over all files, so that their ids are known."""
    Path("held").mkdir()
    for name, text in {"a.txt": "abc", "b.txt": "cde", "held/x.txt": "fgh", "held/y.md": "aah"}.items():
        Path(name).write_text(text)


def test_all_of_the_validation_sources_is_validation_and_nothing_else(run: Run) -> None:
    """Mutations: the share is drawn as well; a validation source goes to training."""
    both = {"sources": ["a.txt", "b.txt"], "validation_sources": ["held"]}
    run(**both, out=Path("out"), tokenizer="chars", validation=0.0)
    with open_dataset(Path("out")) as data:
        assert (decoded(data.train), decoded(data.validation)) == ("abc|cde|", "fgh|aah|")
        made = [(source.path, source.held_out) for source in data.manifest.sources]
        assert made == [("a.txt", False), ("b.txt", False), ("held/x.txt", True), ("held/y.md", True)]
        assert data.manifest.split == "validation sources"
    again = run(**both, out=Path("out"), tokenizer="chars", validation=0.0)
    assert [step.phase for step in again] == ["nothing to do"]
    with pytest.raises(InputError, match=r"held/x\.txt: was for validation before"):
        run(["a.txt", "b.txt", "held"], Path("out"), tokenizer="chars", validation=0.0)


def test_an_interruption_between_training_and_validation_text(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 2)
    sources = {"sources": ["a.txt", "b.txt"], "validation_sources": ["held"]}
    run(**sources, out=Path("whole"), tokenizer="chars", validation=0.0)
    for n in range(1, 4):
        out, left = Path(f"out-{n}"), n
        steps = prepare(**sources, out=out, settings=replace(CHARS, shard_tokens=100_000), journal_seconds=0)
        while left:
            left -= next(steps).phase == "tokens"
        steps.close()
        assert run(**sources, out=out, tokenizer="chars", validation=0.0)[-1].n_continued > 0
        for path in Path("whole").glob("*.*"):
            assert (out / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("validation", "held_out", "error", "message"),
    [
        (0.1, ["held"], UsageError, "there are validation sources"),
        (0.0, ["a.txt"], UsageError, "named twice"),
        (0.0, ["empty.txt"], InputError, r"no text in empty\.txt"),
    ],
)
def test_refused(validation: float, held_out: list[str], error: type, message: str, run: Run) -> None:
    Path("empty.txt").write_text("")
    with pytest.raises(error, match=message):
        run(["a.txt"], Path("out"), tokenizer="chars", validation=validation, validation_sources=held_out)


def test_the_cache_tells_validation_text_from_training_text() -> None:
    def out(sources: list[str], **options: list[str]) -> Path:
        return list(prepare_cached(sources, CHARS, **options))[-1].out

    held = out(["a.txt"], validation_sources=["b.txt"])
    assert held == out(["a.txt"], validation_sources=["b.txt"])
    assert len({held, out(["a.txt", "b.txt"]), out(["b.txt"], validation_sources=["a.txt"])}) == 3
    with open_dataset(held) as data:
        assert (data.train.n_tokens, data.validation.n_tokens) == (4, 4)
    with pytest.raises(UsageError, match=r"data\.validation_source"):
        list(prepare_cached([held], CHARS, validation_sources=["b.txt"]))


def test_the_tokenizer_of_a_base_model_encodes_the_text(run: Run) -> None:
    """Mutation: a vocabulary of the text is made all the same."""
    base = Chars.from_text("abcdefgh")
    steps = list(prepare_cached(["a.txt"], CHARS, validation_sources=["b.txt"], tokenizer=base))
    assert "vocabulary" not in {step.phase for step in steps}
    with open_dataset(steps[-1].out) as data:
        assert (decoded(data.train), decoded(data.validation)) == ("abc|", "cde|")
        assert data.tokenizer.fingerprint == base.fingerprint
    own = list(prepare_cached(["a.txt"], CHARS, validation_sources=["b.txt"]))[-1].out
    assert own != steps[-1].out
    with pytest.raises(UsageError, match="another tokenizer"):
        list(prepare_cached([own], CHARS, tokenizer=base))
    same = list(prepare_cached(["a.txt"], replace(CHARS, tokenizer="gpt2"), tokenizer=gpt2()))[-1].out
    assert same == list(prepare_cached(["a.txt"], replace(CHARS, tokenizer="gpt2")))[-1].out


@pytest.mark.parametrize("name", ["b.txt", "held/z.jsonl"])
def test_a_character_that_a_base_model_does_not_have(name: str) -> None:
    Path("held/z.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abc", "dab")))
    with pytest.raises(InputError) as caught:
        list(prepare_cached(["a.txt", name], CHARS, tokenizer=Chars.from_text("abc")))
    assert caught.value.what.startswith(f"{name}: ") and "'d' (U+0064)" in caught.value.what
