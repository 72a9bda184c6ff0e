"""Whether the server truncated a prompt, judged by the prompt token count that it reports.

A server whose context is too small may cut a prompt silently, and its judge then grades half a
response. Its tokenizer is unknown here, so this is a lower bound, not an estimate: no usual tokenizer
makes one token of two words that whitespace separates.

Pieces are a tighter bound. They are cut so that a token seldom spans two of them: letters with the
symbol before them (`.core`, `_id`), a number, a run of symbols. The server's counts for short prompts
give its tokens per piece; MARGIN of that is the bound for the others. Measured with the tokenizers of
GPT-2, Llama 3 and Qwen on English, code, tables, mark-up, numbers and nine other languages, each text
has more tokens than its bound.

A server with a prefix cache may count only what it reads anew, and not say how much it has cached. The rules,
which all prompts begin with, are then missing from its count, and whatever else an earlier prompt begins
with too.

Scripts without spaces count by the letter: of Chinese, Japanese, Korean and Thai prose, Qwen and
Llama 3 make 0.37 to 0.9 tokens per letter. MARGIN of LETTER is below that, and still high enough to
notice that half of a Chinese prompt is missing.
"""

import re
from collections.abc import Iterable, Sequence

MARGIN = 0.75
ANSWER_HEADER = 8  # tokens that no cache saves: the end of the texts, and what the chat template adds
LETTER = 0.44  # pieces that a letter of a script without spaces counts as
# An escape in a JSON string counts as a symbol, not as the letter in it.
_ESCAPE = re.compile(r"\\(?:u[0-9a-f]{4}|.)")
_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]"  # kana, Han, Hangul
)
_PIECE = re.compile(r"(?:[^\w\s]|_)?[^\W\d_]+|\d+|(?:[^\w\s]|_)+")


def least_tokens(messages: Sequence[dict[str, str]], tokens_per_piece: float | None) -> int:
    """A server that counts fewer tokens has truncated the prompt. Without a rate, words are the bound."""
    n_words = sum(len(message["content"].split()) for message in messages)
    return max(n_words, int(MARGIN * (tokens_per_piece or 0.0) * _n_pieces(messages)))


def least_uncached(
    messages: Sequence[dict[str, str]], earlier: Iterable[Sequence[dict[str, str]]], rate: float | None
) -> int:
    """`least_tokens` of what no earlier prompt begins with, and never of the rules."""
    text = messages[-1]["content"]
    n_shared = max((_n_shared(text, one[-1]["content"]) for one in earlier), default=0)
    return max(ANSWER_HEADER, least_tokens([{"content": text[n_shared:]}], rate))


def tokens_per_piece(messages: Sequence[dict[str, str]], prompt_tokens: int) -> float:
    return prompt_tokens / _n_pieces(messages)


def _n_shared(first: str, second: str) -> int:
    """The length of their common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


def _n_pieces(messages: Sequence[dict[str, str]]) -> float:
    n = 0.0
    for message in messages:
        text, n_letters = _SPACELESS.subn(" ", _ESCAPE.sub('"', message["content"]))
        n += len(_PIECE.findall(text)) + LETTER * n_letters
    return n
