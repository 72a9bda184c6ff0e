"""A vocabulary learnt from a text: the merges and the ids are those of `tokenizers` and transformers."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_texts import TEXTS, some_texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from gpt2cli.errors import UsageError
from gpt2cli.tokenizer.base import END_OF_TEXT
from gpt2cli.tokenizer.bpe import BPE
from gpt2cli.tokenizer.files import load_tokenizer
from gpt2cli.tokenizer.train import MIN_FREQUENCY, is_trained, require_size, save_trained, train_bpe


def learnt(texts: Iterable[str], size: int) -> BPE:
    *_, last = train_bpe(texts, size)
    assert last.tokenizer
    return last.tokenizer


def theirs(text: str, size: int) -> Tokenizer:
    """As the documentation of `tokenizers` trains GPT-2's kind, over the whole text at once."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


@pytest.mark.parametrize("kind", TEXTS)
def test_merges_and_ids_are_those_of_the_library_and_of_transformers(kind: str, tmp_path: Path) -> None:
    ours, reference = learnt([TEXTS[kind]], 1000), theirs(TEXTS[kind], 1000)
    assert ours.n_vocab == reference.get_vocab_size() == 1000 and ours.end_of_text == 999
    merges = [tuple(pair) for pair in json.loads(reference.to_str())["model"]["merges"]]
    assert [(ours.spelling(left), ours.spelling(right)) for left, right in ours.merges] == merges
    (tmp_path / "made").mkdir()
    save_trained(ours, tmp_path / "made", {})
    opened = AutoTokenizer.from_pretrained(tmp_path / "made")
    plain = Tokenizer.from_file(str(tmp_path / "made" / "tokenizer.json"))
    assert opened.eos_token_id == opened.bos_token_id == 999 and len(opened) == 1000
    texts = some_texts(kind)
    for text in texts:
        ids = ours.encode(text)
        assert ids == opened.encode(text) == plain.encode(text).ids, text
        assert [reference.id_to_token(id) for id in reference.encode(text).ids] == [
            ours.spelling(id) for id in ids
        ]
        assert opened.decode(ids) == ours.decode(ids) == text
    assert len(texts) == 200
    again = load_tokenizer(tmp_path / "made")
    assert again.fingerprint == ours.fingerprint and is_trained(tmp_path / "made")
    (tmp_path / "made" / "mine.txt").touch()
    assert not is_trained(tmp_path / "made")


def test_the_pieces_of_a_text_and_their_order_change_nothing() -> None:
    lines = [line + "\n" for line in TEXTS["russian"].splitlines()]
    whole = learnt([TEXTS["russian"]], 600)
    random.Random(3).shuffle(lines)
    assert learnt(lines, 600).merges == whole.merges and learnt(iter(lines), 600).tokens == whole.tokens


@settings(max_examples=40)
@given(st.lists(st.text(alphabet="ab c\nd'é漢0 ", max_size=60), max_size=8), st.integers(257, 300))
def test_whatever_the_text_the_vocabulary_fits_together(texts: list[str], size: int) -> None:
    """`BPE` refuses merges that tiktoken would apply in another order; a trained one has none."""
    ours = learnt(texts, size)
    assert 257 <= ours.n_vocab <= size and ours.end_of_text == ours.n_vocab - 1
    for text in texts:
        assert ours.decode(ours.encode(text)) == text


def test_a_size_without_room_for_the_bytes_is_refused() -> None:
    require_size(257, "--size ")
    with pytest.raises(UsageError, match="at least 257") as error:
        require_size(256, "--size ")
    assert error.value.fix == "--size 8192"
    assert learnt(["ab ab ab"], 257).merges == []


def test_what_the_library_cannot_do_is_raised_where_the_caller_waits() -> None:
    def texts() -> Iterable[str]:
        yield "one"
        raise UsageError("two")

    with pytest.raises(UsageError, match="two"):
        learnt(texts(), 300)
