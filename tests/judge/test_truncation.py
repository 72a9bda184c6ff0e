"""The floor of prompt tokens: never above what a real tokenizer makes, and close enough to notice a cut."""

import re
from pathlib import Path

import pytest

import gpt2cli
from gpt2cli.judge.prompt import grade_messages
from gpt2cli.judge.truncation import least_tokens, tokens_per_piece
from gpt2cli.tokenizer.bpe import gpt2

CODE = Path(gpt2cli.__file__).with_name("files.py").read_text()
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
def test_no_whole_prompt_is_accused_and_half_a_prompt_is_noticed(name: str) -> None:
    short = grade_messages("Name a colour.", "", "red", "I don't know.")
    rate = tokens_per_piece(short, n_tokens(short))
    assert TEXTS[name]
    for size in (0, 100, 2000, 9000):
        messages = grade_messages("Write a text.", "", "A text.", TEXTS[name][:size])
        floor, n = least_tokens(messages, rate), n_tokens(messages)
        assert (
            len(" ".join(m["content"] for m in messages).split())
            <= least_tokens(messages, None)
            <= floor
            <= n
        )
    if name in ("story", "the same word", "short words"):
        assert 0.6 * n < floor, "prose"


# Llama 3's and Qwen's tokenizers never join two of these; they often make one token of each.
COARSE = re.compile(r"(?:[^\r\n\w]|_)?[^\W\d_]+|\d{1,3}| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CODE_LIKE = {
    "attributes": "self.a.b.c.d(self.e.f, self.g.h)\n" * 60,
    "modules": "import os.path.join.abc, numpy.core.api\n" * 60,
    "paths": "/usr/local/lib/python/site-packages/numpy/core/include\n" * 40,
    "mark-up": '<div class="a"><p>text</p><a href="/x/y">link</a></div>\n' * 60,
    "formulas": r"\frac{a}{b} + \sqrt{x} = \alpha \beta \gamma " * 60,
    "calls": "f(a), f(b), f(c), " * 100,
    "table": "red,green,blue,cat,dog\n" * 80,
    "hyphens": "state-of-the-art well-to-do up-to-date mother-in-law " * 50,
    "bars": "|a|b|c|d|e|\n" * 80,
    "dots": "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p " * 40,
    "addresses": "bob@mail.com, ann@mail.org, " * 80,
    "queries": "SELECT a.id,b.name FROM a,b,c WHERE a.id=b.id;\n" * 40,
    "names": "get_http_response_code_for_user_id " * 100,
}


@pytest.mark.parametrize("name", CODE_LIKE)
def test_code_is_not_accused_where_each_word_with_its_sign_is_one_token(name: str) -> None:
    def counted(messages: list[dict[str, str]]) -> int:
        return sum(len(COARSE.findall(message["content"])) for message in messages) + 15

    short = grade_messages("Write it.", "", "ok", "I don't know.")
    messages = grade_messages("Write it.", "", "ok", CODE_LIKE[name])
    floor = least_tokens(messages, tokens_per_piece(short, counted(short)))
    assert 0.3 * counted(messages) < floor <= counted(messages)


# Tokens a sign, as Qwen's tokenizer makes of such prose; and some more.
@pytest.mark.parametrize("rate", [0.56, 0.66])
def test_half_a_prompt_without_spaces_is_noticed(rate: float) -> None:
    prose = "机器学习是人工智能的一个分支，它研究如何让计算机从数据中学习规律并作出预测。" * 30

    def counted(messages: list[dict[str, str]], share: float = 1.0) -> int:
        content = messages[1]["content"]
        text = messages[0]["content"] + content[: int(share * len(content))]
        n_signs = len(re.findall("[\u4e00-\u9fff]", text))
        return int(rate * n_signs) + len(COARSE.findall(re.sub("[\u4e00-\u9fff]+", "", text))) + 15

    short = grade_messages("写一篇文章。", "", "好", "I don't know.")
    messages = grade_messages("写一篇文章。", "", "好", prose)
    floor = least_tokens(messages, tokens_per_piece(short, counted(short)))
    assert counted(messages, 0.5) < floor <= counted(messages)
