"""GPT-2's byte-level byte-pair encoding: tiktoken over a rank table on this disk.

GPT-2's own vocabulary is bundled as its merges alone (tests/tokenizer/make_ranks.py made it), from
which tokens, vocab.json and merges.txt follow. Others come from such a pair of files, checked to
belong together.
"""

import contextlib
import functools
import importlib.resources
import json
import re
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import tiktoken

from gpt2cli.json_files import read_json
from gpt2cli.tokenizer.base import (
    END_OF_TEXT,
    AddedToken,
    SpecialTokens,
    fingerprint_of,
    join_tokens,
    without_surrogates,
)
from gpt2cli.tokenizer.merges import (
    BYTE_OF,
    CHARACTER_OF,
    VERSION_LINE,
    check_ranks,
    checked_ids,
    checked_merges,
    ranks_of,
    read_merges,
    unlisted_tokens,
)

TABLE = "gpt2-merges.bin"
N_GPT2 = 50257  # tokens of GPT-2

# GPT-2's pattern (openai/gpt-2, src/encoder.py) in tiktoken's form, which backtracks less and
# cuts every text at the same places.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# Unicode's White_Space, which is \s in PATTERN. Python's own \s has U+001C to U+001F as well.
_SPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
WHITE_SPACE = re.compile(f"{_SPACE}+")
STRIDE = 1 << 16  # characters


@functools.lru_cache(maxsize=1)
def gpt2() -> "BPE":
    """GPT-2's tokenizer, 50,257 tokens, from the bundled merges: pairs of ids, little-endian uint16."""
    table = importlib.resources.files("gpt2cli.bundled").joinpath(TABLE).read_bytes()
    tokens = [bytes((byte,)) for byte in CHARACTER_OF]
    for left, right in struct.iter_unpack("<HH", table):
        tokens.append(tokens[left] + tokens[right])
    end_of_text = AddedToken(len(tokens), END_OF_TEXT)
    return BPE(tokens, struct.iter_unpack("<HH", table), name="gpt2").with_added([end_of_text])


class BPE:
    """A `Tokenizer` over bytes: every text has ids, and every id stands for some bytes."""

    def __init__(
        self,
        tokens: list[bytes],
        merges: Iterable[tuple[int, ...]],
        added: Sequence[AddedToken] = (),
        unmade: Iterable[int] = (),
        special: SpecialTokens | None = None,
        name: str = "bpe",
    ) -> None:
        """`tokens` by id; `merges`: pairs of ids in the order of their products' ids; `added`: tokens that
        no merge makes; `unmade`: ids of others. They must fit together: `gpt2` and `from_files` see to it.
        """
        self.name = name
        self.tokens = tokens
        # Flat, because 50,000 tuples would set off Python's garbage collector, which then looks at
        # every object of every module: 0.08 s beside torch.
        self._merges = array("I", chain.from_iterable(merges))
        self.added = tuple(added)
        # Ids that ordinary text is never encoded to.
        self.specials = frozenset(unmade).union(token.id for token in added if token.is_control)
        self._apart = self.specials.union(token.id for token in added)  # what no merge makes
        self.n_vocab = len(tokens)
        self.special = special or usual_special(added)

    @property
    def end_of_text(self) -> int:
        return self.special.eos

    @property
    def control_tokens(self) -> tuple[str, ...]:
        return tuple(token.content for token in self.added if token.is_control)

    @classmethod
    def from_files(
        cls,
        vocab_json: Path,
        merges: Path,
        added: Sequence[AddedToken] = (),
        named: Sequence[str] = (),
        n_rows: int = 0,
    ) -> "BPE":
        """A byte-level vocabulary from OpenAI's or Hugging Face's pair of files.

        `added`: further tokens that stand beside the merges; `named`: those with a meaning, listed there
        or not (`unlisted_tokens`). Raises InputError if the files do not belong together, with the first
        token that disagrees.
        """
        where = f"{vocab_json.name} and {merges.name} in {vocab_json.parent}"
        vocabulary = read_json(vocab_json, "fetch the file again")
        return cls.from_vocabulary(vocabulary, read_merges(merges), added, where, named, n_rows)

    @classmethod
    def from_vocabulary(
        cls,
        vocab: Any,
        merges: Sequence[tuple[str, str]],
        added: Sequence[AddedToken],
        where: str,
        named: Sequence[str] = (),
        n_rows: int = 0,
    ) -> "BPE":
        """As `from_files`, from the parsed content. `where` names its source in errors."""
        every = checked_ids(vocab, added, where)
        if more := unlisted_tokens(named, every, merges, added, n_rows):
            added = [*added, *more]
            every = checked_ids(vocab, added, where)
        if END_OF_TEXT in every and END_OF_TEXT not in (token.content for token in added):
            added = [*added, AddedToken(every[END_OF_TEXT], END_OF_TEXT)]
        names = {token.content for token in added}
        ordinary = {token: i for token, i in every.items() if token not in names}
        first_byte = min((i for token, i in ordinary.items() if token in BYTE_OF), default=0)
        # Trainers put <s>, <pad> and the like before the bytes, and old files list them nowhere else.
        unmade = {token: i for token, i in ordinary.items() if i < first_byte}
        made = {token: i for token, i in ordinary.items() if i >= first_byte}
        ids = checked_merges(made, merges, where)
        tokens = [bytes([BYTE_OF[c] for c in t]) if t in made else t.encode() for t in every]
        ranks = ranks_of(tokens, (i for token, i in every.items() if token not in made))
        check_ranks(ranks, tokens, ids, where)
        base, in_order = gpt2(), sorted(added, key=lambda token: token.id)
        if tokens[: base.n_vocab] == base.tokens and ids == base.merges:
            return base.with_added([token for token in in_order if token.id >= base.n_vocab])
        return cls(tokens, ids, in_order, unmade.values())

    def with_added(self, added: Sequence[AddedToken]) -> "BPE":
        """The same with further tokens, whose ids follow its own."""
        if not added:
            return self
        assert [token.id for token in added] == list(range(self.n_vocab, self.n_vocab + len(added)))
        tokens = [*self.tokens, *(token.content.encode() for token in added)]
        return self._resized(tokens, [*self.added, *added], self.special if self.special.stops else None)

    def with_rows(self, n_rows: int) -> tuple["BPE", tuple[AddedToken, ...]]:
        """Without the added tokens that have no row in an embedding of `n_rows`; and these. Programs add a
        padding token that the model never sees. Unchanged where an ordinary token has no row.
        """
        beyond = tuple(token for token in self.added if token.id >= n_rows)
        if len(beyond) != self.n_vocab - n_rows:
            return self, ()
        special, added = self.special, [token for token in self.added if token.id < n_rows]
        stops = tuple(id for id in special.stops if id < n_rows)
        pad = None if special.pad is None or special.pad >= n_rows else special.pad
        kept = replace(special, stops=stops, pad=pad) if stops and special.eos < n_rows else None
        return self._resized(self.tokens[:n_rows], added, kept), beyond

    def _resized(
        self, tokens: list[bytes], added: Sequence[AddedToken], special: SpecialTokens | None
    ) -> "BPE":
        unmade = self.specials.difference(token.id for token in self.added)
        is_gpt2 = len(tokens) == N_GPT2 and (self.name == "gpt2" or self.tokens[:N_GPT2] == gpt2().tokens)
        other = BPE(tokens, (), added, unmade, special, "gpt2" if is_gpt2 else "bpe")
        other._merges = self._merges
        return other

    def with_special(self, special: SpecialTokens) -> "BPE":
        """The same vocabulary, whose ids mean what another model says."""
        if special == self.special:
            return self
        other = copy(self)
        other.__dict__.pop("fingerprint", None)
        other.special = special
        return other

    @functools.cached_property
    def merges(self) -> list[tuple[int, int]]:
        """Pairs of ids, in the order of their products' ids."""
        return list(zip(self._merges[::2], self._merges[1::2], strict=True))

    @functools.cached_property
    def _encoding(self) -> tiktoken.Encoding:
        """Made when a text is first encoded: it takes two thirds of the time of making a tokenizer.

        It knows only the tokens that a text can contain, so it never produces a special token.
        """
        return tiktoken.Encoding(self.name, pat_str=PATTERN, mergeable_ranks=self.ranks, special_tokens={})

    @property
    def ranks(self) -> dict[bytes, int]:
        """{token: id} of what merges make, and the single bytes."""
        return ranks_of(self.tokens, self._apart)

    @functools.cached_property
    def _words(self) -> list[re.Pattern[str]]:
        """The added tokens that ordinary text is encoded to."""
        return _patterns([token for token in self.added if not token.is_control])

    @functools.cached_property
    def _every_added(self) -> list[re.Pattern[str]]:
        return _patterns(self.added)

    @functools.cached_property
    def fingerprint(self) -> str:
        special, usual = self.special, self.id_of(END_OF_TEXT)
        others = {
            "words": [token.id for token in self.added if not token.is_control],
            "end_of_text": [] if special.eos == usual else special.eos,
            "begin": special.bos if special.adds_bos else [],
        }
        return fingerprint_of(self.tokens, *([others] if any(v != [] for v in others.values()) else []))

    @functools.cached_property
    def vocab_json(self) -> bytes:
        """Content of vocab.json; for GPT-2, byte for byte OpenAI's encoder.json."""
        names = {self.spelling(i): i for i in range(self.n_vocab)}
        return json.dumps(names).encode("ascii")

    @functools.cached_property
    def merges_txt(self) -> bytes:
        """Content of merges.txt; for GPT-2, byte for byte OpenAI's vocab.bpe."""
        lines = [f"{self.spelling(left)} {self.spelling(right)}\n" for left, right in self.merges]
        return (VERSION_LINE + "".join(lines)).encode("utf-8")

    def id_of(self, token: str) -> int | None:
        for added in self.added:
            if added.content == token:
                return added.id
        with contextlib.suppress(KeyError, ValueError):
            return self.tokens.index(bytes([BYTE_OF[c] for c in token]))
        return None

    def encode(self, text: str, control_tokens: bool = False) -> list[int]:
        """The ids of a text. Lone surrogates count as U+FFFD."""
        return self._encode_between(text, self._every_added if control_tokens else self._words)

    def _encode_between(self, text: str, patterns: Sequence[re.Pattern[str]]) -> list[int]:
        if not patterns:
            return self._encode_plain(text)
        ids, start = [], 0
        for match in patterns[0].finditer(text):
            ids += self._encode_between(text[start : match.start()], patterns[1:])
            ids.append(int(str(match.lastgroup)[1:]))
            start = match.end()
        return ids + self._encode_between(text[start:], patterns[1:])

    def _encode_plain(self, text: str) -> list[int]:
        if len(text) <= STRIDE:
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        for piece in _pieces(without_surrogates(text)):
            ids += self._encoding.encode_ordinary(piece)
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return join_tokens(self.tokens, ids)

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def spelling(self, token_id: int) -> str:
        """As the files spell the token: `id_of` finds it by that."""
        token = self.tokens[token_id]
        return token.decode() if token_id in self._apart else "".join([CHARACTER_OF[byte] for byte in token])


def usual_special(added: Iterable[AddedToken]) -> SpecialTokens:
    """GPT-2's habit: <|endoftext|> begins and ends. Without one, nothing stops until files name a token."""
    ids = tuple(token.id for token in added if token.content == END_OF_TEXT)
    return SpecialTokens(ids[0], ids, ids[0]) if ids else SpecialTokens(0, ())


def _patterns(added: Sequence[AddedToken]) -> list[re.Pattern[str]]:
    """Find added tokens, one pattern after the other, as transformers does: first those that are not
    `normalized`. The longest is first where several begin at a place; its group is t<id>.
    """
    halves = ([token for token in added if token.normalized == late] for late in (False, True))
    return [_pattern(half) for half in halves if half]


def _pattern(added: Sequence[AddedToken]) -> re.Pattern[str]:
    longest_first = sorted(added, key=lambda token: -len(token.content))
    parts = [
        f"{_SPACE}*" * token.lstrip
        + f"(?P<t{token.id}>{re.escape(token.content)})"
        + f"{_SPACE}*" * token.rstrip
        for token in longest_first
    ]
    return re.compile("|".join(parts))


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text where PATTERN cuts it anyway: before the last white space of a run.

    A run of a million that a word follows would overflow the stack of tiktoken's regular
    expressions, which panics then. Every run of STRIDE characters is met by one of the probes.
    """
    start, probe = 0, STRIDE
    while probe < len(text):
        run = WHITE_SPACE.match(text, probe)
        if run and run.end() < len(text):
            yield text[start : run.end() - 1]
            start = run.end() - 1
        probe = max(probe + STRIDE, run.end() if run else 0)
    yield text[start:]
