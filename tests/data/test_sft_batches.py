"""Records as token ids: the loss mask token by token, the batches, packing."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from gpt2cli.data.instructions import InstructionRecord, read_instructions
from gpt2cli.data.sft_batches import (
    BatchOrder,
    SftExample,
    batches_by_length,
    encode_record,
    pack_records,
)
from gpt2cli.errors import InputError
from gpt2cli.recipe.data_sections import InstructDataConfig
from gpt2cli.templates import TEMPLATES, Turn
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.tokenizer.files import save_tokenizer
from gpt2cli.training.sft_task import collate

CHAT, TOKENIZER = TEMPLATES["chat"], gpt2()
EOT = TOKENIZER.end_of_text


def record(*texts: str) -> InstructionRecord:
    roles = ("user", "assistant")
    return InstructionRecord(
        0, "FILE, record 0", tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))
    )  # type: ignore[arg-type]


def row(*texts: str, limit: int = 1000, mask_prompt: bool = True) -> SftExample:
    found = encode_record(record(*texts), CHAT, TOKENIZER, limit, mask_prompt)
    assert found
    return found


def test_the_loss_mask_covers_answers_with_their_end_of_text_and_nothing_else() -> None:
    found = row("One?", "first answer", "Two?", "second")
    expected: list[tuple[int, bool]] = []
    for text, in_loss in (
        ("User:\nOne?\n\nAssistant:\n", False),
        ("first answer", True),
        ("User:\nTwo?\n\nAssistant:\n", False),
        ("second", True),
    ):
        expected += [(token, in_loss) for token in TOKENIZER.encode(text)] + [(EOT, True)] * in_loss
    assert list(zip(found.ids.tolist(), found.loss_mask.tolist(), strict=True)) == expected
    assert not found.was_cut


def test_without_mask_prompt_the_loss_covers_all_but_the_first_token() -> None:
    found = row("One?", "answer", mask_prompt=False)
    assert found.loss_mask.tolist() == [False] + [True] * found.n_read


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
    assert encode_record(one, CHAT, TOKENIZER, n_question - 1, True) is None
    kept = encode_record(one, CHAT, TOKENIZER, n_question, True)
    assert kept and kept.loss_mask.sum() == 1
    cut = encode_record(two, CHAT, TOKENIZER, n_question + 4, True)
    assert cut and cut.ids[-1] == EOT and cut.was_cut and cut.n_read == n_question + 1


def test_a_character_that_the_vocabulary_lacks_names_the_record() -> None:
    with pytest.raises(InputError, match=r"FILE, record 0: .*U\+2603"):
        encode_record(record("☃", "b"), CHAT, Chars.from_text(set("User:\n Asistant:b")), 100, True)


def test_a_batch_is_padded_on_the_right_and_points_at_the_positions_that_predict_targets() -> None:
    rows = [row("One?", "first answer"), row("Two of them?", "second"), row("3", "third is the longest one")]
    sheet = collate([(rows[0], rows[1]), (rows[2],)])
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
        if one.loss_mask[at]
    ]
    assert list(zip(sheet.target_positions.tolist(), sheet.targets.tolist(), strict=True)) == expected
    assert Counter(sheet.targets.tolist())[EOT] == 3, "one end for each answer"


def test_each_epoch_has_every_item_once_in_an_order_of_its_own() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 103).tolist()
    order = BatchOrder(lengths, 8, seed=5)
    assert order.n_batches == 13
    epochs = [[order.batch(epoch * 13 + i) for i in range(13)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(item for batch in epoch for item in batch) == list(range(103))
        assert sorted(map(len, epoch)) == [7] + [8] * 12
    assert epochs[0] != epochs[1] != epochs[2]
    again = BatchOrder(lengths, 8, seed=5)
    assert [again.batch(n) for n in (30, 2, 17)] == [order.batch(n) for n in (30, 2, 17)]
    assert [BatchOrder(lengths, 8, seed=6).batch(n) for n in range(13)] != epochs[0]


def test_batches_are_of_like_length_and_not_sorted() -> None:
    lengths = np.random.default_rng(1).integers(1, 200, 400).tolist()
    order = BatchOrder(lengths, 8, seed=0)
    batches = [[lengths[i] for i in order.batch(n)] for n in range(order.n_batches)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths), "by chance it would be 1.8"
    firsts = [batch[0] for batch in batches]
    assert firsts != sorted(firsts) and np.corrcoef(firsts, range(len(firsts)))[0, 1] < 0.5
    assert [max(lengths[i] for i in batch) for batch in batches_by_length(lengths, 8)] == sorted(lengths)[
        7::8
    ]


def test_packing_fills_rows_and_loses_nothing() -> None:
    lengths = np.random.default_rng(2).integers(1, 64, 500).tolist()
    rows = pack_records(lengths, 64, seed=1)
    assert sorted(item for row in rows for item in row) == list(range(500))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert max(sums) <= 64 and sum(sums) / len(sums) > 0.9 * 64
    assert rows == pack_records(lengths, 64, seed=1) != pack_records(lengths, 64, seed=2)


# The template `chat` once more, as trl wants it: `generation` marks what assistant_only_loss learns.
MARKED = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}System:\n{{ m.content }}\n\n"
    "{% elif m.role == 'user' %}User:\n{{ m.content }}\n\nAssistant:\n"
    "{% else %}{% if loop.index0 == 0 or messages[loop.index0 - 1].role == 'system' %}Assistant:\n{% endif %}"
    "{% if m.weight == 0 %}{{ m.content + eos_token }}"
    "{% else %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endif %}"
    "{% endif %}{% endfor %}"
)
WORDS = (
    "Where",
    "is",
    "the",
    "2nd",
    "café?",
    "naïve",
    "東京",
    "🙂",
    "User:",
    "it's",
    "a\nb",
    "a\n\nb",
    "1,000",
)


def conversations(n: int) -> list[list[dict[str, Any]]]:
    """One to four exchanges each, some with a system message or a greeting, some answers of weight 0."""
    draw, found = random.Random(5), []
    for _ in range(n):
        text = [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(10)]
        messages = [{"role": "system", "content": text[8]}] if draw.random() < 0.3 else []
        messages += [{"role": "assistant", "content": text[9]}] if draw.random() < 0.2 else []
        n_exchanges = draw.randint(1, 4)
        for i in range(n_exchanges):
            messages += [{"role": "user", "content": text[2 * i]}]
            messages += [{"role": "assistant", "content": text[2 * i + 1]}]
            if i + 1 < n_exchanges and draw.random() < 0.4:
                messages[-1]["weight"] = 0
        found.append(messages)
    return found


@pytest.mark.parametrize(
    "tokenizer", [TOKENIZER, Chars.from_text([*WORDS, *map(chr, range(32, 127)), "\n"])], ids=["bpe", "chars"]
)
def test_masks_are_those_of_trls_assistant_only_loss(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """trl takes its mask from this method of transformers: which characters the template marks."""
    save_tokenizer(tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, chat_template=MARKED)
    known = conversations(100)
    path = tmp_path / "records.jsonl"
    path.write_text(
        "".join(json.dumps({"messages": messages}) + "\n" for messages in known), encoding="utf-8"
    )
    ours = read_instructions(path, InstructDataConfig(source=str(path))).records
    assert len(ours) == 100
    n_in_loss = 0
    for messages, record in zip(known, ours, strict=True):
        example = encode_record(record, CHAT, tokenizer, 4000, mask_prompt=True)
        wanted = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert example is not None and example.ids.tolist() == wanted["input_ids"], messages
        assert example.loss_mask.astype(int).tolist() == wanted["assistant_masks"], messages
        n_in_loss += int(example.loss_mask.sum())
    assert n_in_loss > 500 and any("weight" in message for messages in known for message in messages)
