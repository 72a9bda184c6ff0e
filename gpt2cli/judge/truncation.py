"""Whether a server has read all that it was sent, by the prompt tokens that it counts.

A server whose context is too small may cut a prompt silently, and its judge then grades half a
response. Its tokenizer is not known here, so this is a floor, not an estimate: a good judgement
thrown away is as bad as a wrong one kept. Words are sound: no usual tokenizer makes one token of two
words that whitespace separates.

Pieces are tighter. They are cut so that a token seldom spans two of them: letters with the sign
before them (`.core`, `_id`), a number however long, a run of signs. What a server makes of a piece is
seen from its own answers to short prompts (`tokens_per_piece`); MARGIN of that is the floor for the
others. Measured with GPT-2's, Llama 3's and Qwen's tokenizers on English, code of seven kinds,
tables, lists, mark-up, numbers, verse and nine other languages: each has more tokens than its floor.

Letters of scripts that are written without spaces count by the sign. Of Chinese, Japanese, Korean
and Thai prose Qwen and Llama 3 make 0.45 to 0.9 tokens a letter, and 0.37 where words of several
signs are dense; MARGIN of SIGN at a usual rate is below that. It is close enough to notice that half
of a Chinese prompt is missing; with a tokenizer of English, which makes two tokens of a sign, it is not.
"""

import re
from collections.abc import Sequence

MARGIN = 0.75
SIGN = 0.44  # pieces that a letter of a script without spaces counts as
# An escape in a JSON string is a sign like others, not the letter that stands in it.
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
        text, n_signs = _SPACELESS.subn(" ", _ESCAPE.sub('"', message["content"]))
        n += len(_PIECE.findall(text)) + SIGN * n_signs
    return n
