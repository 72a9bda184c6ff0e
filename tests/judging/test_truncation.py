"""The floor of prompt tokens: never above what a real tokenizer makes, and close enough to notice a cut."""

from pathlib import Path

import pytest

import gpt2cli
from gpt2cli.judging.truncation import least_tokens, tokens_per_piece
from gpt2cli.prompts import judge_messages
from gpt2cli.tokenizer.bpe import gpt2

CODE = Path(gpt2cli.__file__).with_name("disk.py").read_text()
STORY = "\n".join(path.read_text() for path in sorted(Path(gpt2cli.__file__).parent.glob("bundled/*.txt")))
TEXTS = {
    "code": CODE,
    "story": STORY,
    "the same word": "the " * 3000,
    "short words": "it was so and he did go to it " * 400,
    "line ends": "\n" * 3000,
    "signs": '"" ' * 2000,
    "backslashes": "\\" * 3000,
    "Chinese": "我们今天去公园玩。" * 300,
    "digits": "1234567890 " * 300,
}


def n_tokens(messages: list[dict[str, str]]) -> int:
    return sum(len(gpt2().encode(message["content"])) for message in messages) + 12  # a template's own


@pytest.mark.parametrize("name", TEXTS)
def test_nobody_is_accused_wrongly_and_half_a_prompt_is_noticed(name: str) -> None:
    short = judge_messages("Name a colour.", "", "red", "I don't know.")
    rate = tokens_per_piece(short, n_tokens(short))
    assert TEXTS[name]
    for size in (0, 100, 2000, 9000):
        messages = judge_messages("Write a text.", "", "A text.", TEXTS[name][:size])
        floor, n = least_tokens(messages, rate), n_tokens(messages)
        assert (
            len(" ".join(m["content"] for m in messages).split())
            <= least_tokens(messages, None)
            <= floor
            <= n
        )
    if name in ("story", "the same word", "short words"):
        assert 0.6 * n < floor, "prose"
