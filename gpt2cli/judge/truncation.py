"""Whether a server has read all that it was sent, by the prompt tokens that it counts.

A server whose context is too small may cut a prompt silently, and its judge then grades half a
response. Its tokenizer is not known here, so this is a lower bound, not an estimate: to discard a
good judgement is as bad as to keep a wrong one. Words are safe: no usual tokenizer makes one token
of two words that whitespace separates.

Pieces are tighter. They are cut so that a token seldom spans two of them: letters with the symbol
before them (`.core`, `_id`), a number however long, a run of symbols. The server's own counts for
short prompts say how many tokens it makes of a piece (`tokens_per_piece`); MARGIN of that is the
bound for the others. Measured with the tokenizers of GPT-2, Llama 3 and Qwen on English, code of
seven kinds, tables, lists, mark-up, numbers, verse and nine other languages: each has more tokens
than its bound.

Scripts without spaces count by the letter. Of Chinese, Japanese, Korean and Thai prose, Qwen and
Llama 3 make 0.45 to 0.9 tokens per letter, and 0.37 where words of several letters are dense; MARGIN
of LETTER at a usual rate is below that, and close enough to notice that half of a Chinese prompt is
missing. With a tokenizer of English, which makes two tokens of such a letter, it is not.
"""

import re
from collections.abc import Sequence

MARGIN = 0.75
LETTER = 0.44  # pieces that a letter of a script without spaces counts as
# An escape in a JSON string counts as a symbol, not as the letter in it.
_ESCAPE = re.compile(r"\\(?:u[0-9a-f]{4}|.)")
_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]"  # kana, Han, Hangul
)
_PIECE = re.compile(r"(?:[^\w\s]|_)?[^\W\d_]+|\d+|(?:[^\w\s]|_)+")


def least_tokens(messages: Sequence[dict[str, str]], tokens_per_piece: float | None) -> int:
    """A server that counts fewer tokens has not read it all. None: nothing is known of its tokenizer yet."""
    n_words = sum(len(message["content"].split()) for message in messages)
    return max(n_words, int(MARGIN * (tokens_per_piece or 0.0) * _n_pieces(messages)))


def tokens_per_piece(messages: Sequence[dict[str, str]], prompt_tokens: int) -> float:
    return prompt_tokens / _n_pieces(messages)


def _n_pieces(messages: Sequence[dict[str, str]]) -> float:
    n = 0.0
    for message in messages:
        text, n_letters = _SPACELESS.subn(" ", _ESCAPE.sub('"', message["content"]))
        n += len(_PIECE.findall(text)) + LETTER * n_letters
    return n
