"""Records as tokens: what is learnt token by token, how batches are made, how rows are shared."""

from collections import Counter

import numpy as np
import pytest

from gpt2cli.data.instructions import Record
from gpt2cli.data.sft_batches import Order, Row, by_length, packed, row_of, sheet_of
from gpt2cli.errors import InputError
from gpt2cli.templates import TEMPLATES, Turn
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.chars import Chars

CHAT, TOKENIZER = TEMPLATES["chat"], gpt2()
EOT = TOKENIZER.end_of_text


def record(*texts: str) -> Record:
    roles = ("user", "assistant")
    return Record(0, "FILE, record 0", tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts)))  # type: ignore[arg-type]


def row(*texts: str, limit: int = 1000, mask_prompt: bool = True) -> Row:
    found = row_of(record(*texts), CHAT, TOKENIZER, limit, mask_prompt)
    assert found
    return found


def test_answers_and_their_ends_are_learnt_and_nothing_else() -> None:
    found = row("One?", "first answer", "Two?", "second")
    expected: list[tuple[int, bool]] = []
    for text, learnt in (
        ("User:\nOne?\n\nAssistant:\n", False),
        ("first answer", True),
        ("User:\nTwo?\n\nAssistant:\n", False),
        ("second", True),
    ):
        expected += [(token, learnt) for token in TOKENIZER.encode(text)] + [(EOT, True)] * learnt
    assert list(zip(found.ids.tolist(), found.learnt.tolist(), strict=True)) == expected
    assert not found.was_cut


def test_without_the_mask_everything_but_the_first_token_is_learnt() -> None:
    found = row("One?", "answer", mask_prompt=False)
    assert found.learnt.tolist() == [False] + [True] * found.n_read


def test_a_cut_takes_the_end_away_and_no_end_is_invented() -> None:
    whole = row("One?", "a long answer of many words")
    for limit in range(whole.n_read - 1, whole.n_read + 2):
        found = row("One?", "a long answer of many words", limit=limit)
        assert found.was_cut == (limit < whole.n_read) and found.n_read == min(limit, whole.n_read)
        assert (found.ids[-1] == EOT) == (not found.was_cut)
        np.testing.assert_array_equal(found.ids, whole.ids[: found.n_read + 1])


def test_a_record_whose_answer_is_cut_away_is_none_and_a_question_without_answer_goes() -> None:
    n_question = len(TOKENIZER.encode("User:\nOne?\n\nAssistant:\n"))
    one, two = record("One?", "answer"), record("One?", "a", "A question that is cut away?", "b")
    assert row_of(one, CHAT, TOKENIZER, n_question - 1, True) is None
    kept = row_of(one, CHAT, TOKENIZER, n_question, True)
    assert kept and kept.learnt.sum() == 1
    cut = row_of(two, CHAT, TOKENIZER, n_question + 4, True)
    assert cut and cut.ids[-1] == EOT and cut.was_cut and cut.n_read == n_question + 1


def test_a_character_that_the_vocabulary_lacks_names_the_record() -> None:
    with pytest.raises(InputError, match=r"FILE, record 0: .*U\+2603"):
        row_of(record("☃", "b"), CHAT, Chars.from_counts(set("User:\n Asistant:b")), 100, True)


def test_a_sheet_pads_on_the_right_and_points_at_the_guesses_of_what_is_learnt() -> None:
    rows = [row("One?", "first answer"), row("Two of them?", "second"), row("3", "third is the longest one")]
    sheet = sheet_of([(rows[0], rows[1]), (rows[2],)])
    B, T = sheet.input_ids.shape
    assert B == 2 and rows[0].n_read + rows[1].n_read == T
    assert sheet.segments[0].tolist() == [0] * rows[0].n_read + [1] * rows[1].n_read
    assert sheet.positions[0].tolist() == [*range(rows[0].n_read), *range(rows[1].n_read)]
    assert sheet.segments[1].tolist() == [0] * rows[2].n_read + [-1] * (T - rows[2].n_read)
    starts = (0, rows[0].n_read, T)
    expected = [
        (start + at - 1, int(one.ids[at]))
        for start, one in zip(starts, rows, strict=True)
        for at in range(1, len(one.ids))
        if one.learnt[at]
    ]
    assert list(zip(sheet.places.tolist(), sheet.targets.tolist(), strict=True)) == expected
    assert Counter(sheet.targets.tolist())[EOT] == 3, "one end for each answer"


def test_each_epoch_has_every_item_once_in_an_order_of_its_own() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 103).tolist()
    order = Order(lengths, 8, seed=5)
    assert order.n_batches == 13
    epochs = [[order.batch(epoch * 13 + i) for i in range(13)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(item for batch in epoch for item in batch) == list(range(103))
        assert sorted(map(len, epoch)) == [7] + [8] * 12
    assert epochs[0] != epochs[1] != epochs[2]
    again = Order(lengths, 8, seed=5)
    assert [again.batch(n) for n in (30, 2, 17)] == [order.batch(n) for n in (30, 2, 17)]
    assert [Order(lengths, 8, seed=6).batch(n) for n in range(13)] != epochs[0]


def test_batches_are_of_like_length_and_not_sorted() -> None:
    lengths = np.random.default_rng(1).integers(1, 200, 400).tolist()
    order = Order(lengths, 8, seed=0)
    batches = [[lengths[i] for i in order.batch(n)] for n in range(order.n_batches)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths), "by chance it would be 1.8"
    firsts = [batch[0] for batch in batches]
    assert firsts != sorted(firsts) and np.corrcoef(firsts, range(len(firsts)))[0, 1] < 0.5
    assert [max(lengths[i] for i in batch) for batch in by_length(lengths, 8)] == sorted(lengths)[7::8]


def test_packing_fills_rows_and_loses_nothing() -> None:
    lengths = np.random.default_rng(2).integers(1, 64, 500).tolist()
    rows = packed(lengths, 64, seed=1)
    assert sorted(item for row in rows for item in row) == list(range(500))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert max(sums) <= 64 and sum(sums) / len(sums) > 0.9 * 64
    assert rows == packed(lengths, 64, seed=1) != packed(lengths, 64, seed=2)
