"""The two halves of a byte-level vocabulary, tokens and merges: how bytes are spelled, and whether they fit.

Encoding itself is in bpe.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2cli.encodings import decode_utf8
from gpt2cli.errors import InputError
from gpt2cli.files import open_regular
from gpt2cli.tokenizer.base import AddedToken

VERSION_LINE = "#version: 0.2\n"
ELSE = "; if they were published so, use another model: tiktoken, which encodes here, merges by the ids"
LARGEST_FILE = 1 << 28  # bytes of merges.txt; GPT-2's own has half a MB

# OpenAI's reversible map from bytes to printable characters: printable Latin-1 stands for
# itself, the other bytes for U+0100 onwards. GPT-2's first 256 ids have the order of this table.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_REST = [byte for byte in range(256) if byte not in _PRINTABLE]
CHARACTER_OF = {byte: chr(byte) for byte in _PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(_REST)}
BYTE_OF = {character: byte for byte, character in CHARACTER_OF.items()}


def read_merges(path: Path) -> list[tuple[str, str]]:
    with open_regular(path) as file:
        text = decode_utf8(file.read(LARGEST_FILE), str(path), has_option=False)
    lines = text.replace("\r\n", "\n").split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[first:], first + 1):
        match line.split(" "):
            case [left, right] if left and right:
                merges.append((left, right))
            case [""]:
                continue
            case _:
                what = f"{path}:{number}: a merge is two tokens and a space"
                raise InputError(what, f"found {line[:60]!a}", "fetch the file again")
    return merges


def checked_ids(vocab: Any, added: Iterable[AddedToken], where: str) -> dict[str, int]:
    """The vocabulary with the added tokens, in the order of the ids, which are 0 .. n - 1."""
    if not isinstance(vocab, dict):
        raise _mismatch(where, "the vocabulary is not a table of tokens", "it must be {token: id, ...}")
    specials = {token.content: token.id for token in added}
    for token, token_id in specials.items():
        if vocab.get(token, token_id) != token_id:
            raise _mismatch(where, f"token {token!a} has two ids", f"{vocab[token]!a} and {token_id!a}")
    every = vocab | specials
    for token, token_id in every.items():
        if type(token_id) is not int:
            raise _mismatch(where, f"token {token!a} has the id {token_id!a}", "ids are 0, 1, 2, ...")
    ordered = dict(sorted(every.items(), key=lambda item: item[1]))
    for expected, (token, token_id) in enumerate(ordered.items()):
        if token_id != expected:
            raise _mismatch(where, f"token {token!a} has the id {token_id}", f"the next one is {expected}")
    return ordered


def unlisted_tokens(
    named: Iterable[str],
    ids: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    added: Iterable[AddedToken],
    n_rows: int,
) -> list[AddedToken]:
    """Tokens with a meaning that no list of added tokens has. transformers takes those of the vocabulary
    that no merge makes, and gives others the next ids; here, as far as an embedding has `n_rows`.
    """
    listed = {token.content for token in added}
    names = [name for name in dict.fromkeys(named) if name not in listed and name not in BYTE_OF]
    made = {left + right for left, right in merges} if names else set()
    found, next_id = [], len(ids)
    for name in names:
        if name in ids and name not in made:
            found.append(AddedToken(ids[name], name))
        elif name not in ids and next_id < n_rows:
            found.append(AddedToken(next_id, name))
            next_id += 1
    return found


def checked_merges(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], where: str
) -> list[tuple[int, int]]:
    """The merges as ids, after making sure that the bytes and the products are just the vocabulary."""
    made = dict.fromkeys(BYTE_OF, -1)
    for token in [*made, *(left + right for left, right in merges)]:
        if token not in vocab:
            raise _mismatch(where, f"token {token!a} is not in the vocabulary", "a merge or a byte needs it")
    last = -1
    for left, right in merges:
        for part in (left, right):
            if part not in made:
                raise _mismatch(where, f"a merge needs {part!a} before it is made", f"for {left + right!a}")
        product = vocab[left + right]
        if product <= last:
            raise _mismatch(
                where, f"token {left + right!a} has too low an id", "ids must follow the merges", ELSE
            )
        made[left + right] = last = product
    for token in vocab:
        if token not in made:
            raise _mismatch(where, f"token {token!a} is never made", "no merge has it as its product")
    return [(vocab[left], vocab[right]) for left, right in merges]


def check_ranks(
    ranks: Mapping[bytes, int], tokens: Sequence[bytes], merges: Sequence[tuple[int, int]], where: str
) -> None:
    """Ranks say the same as merges where each product, encoded with the ranks below its own, falls
    into the two parts of its merge: tiktoken joins any neighbours whose product is a token, the files
    name one pair for each.
    """
    for left, right in merges:
        product = tokens[left] + tokens[right]
        if _parts(product, ranks) != [tokens[left], tokens[right]]:
            what = f"token {ascii(product)[1:]} cannot be made as merges say"
            raise _mismatch(where, what, "their order is wrong", ELSE)


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The pieces that remain of a token after all merges ranked below its own."""
    parts = [token[i : i + 1] for i in range(len(token))]
    limit = ranks[token]
    while True:
        pairs = [ranks.get(parts[i] + parts[i + 1], limit) for i in range(len(parts) - 1)]
        best = min(pairs, default=limit)
        if best >= limit:
            return parts
        parts = _merged(parts, pairs, best, ranks)


def _merged(parts: list[bytes], pairs: list[int], best: int, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The parts with every pair of rank `best` merged, from left to right: one pass, since a token of one
    repeated letter may be long. A merge that makes a lower rank possible ends the pass.
    """
    merged, i = list[bytes](), 0
    while i < len(parts):
        if i == len(pairs) or pairs[i] != best:
            merged.append(parts[i])
            i += 1
            continue
        made = parts[i] + parts[i + 1]
        neighbours = [part + made for part in merged[-1:]] + [made + part for part in parts[i + 2 : i + 3]]
        merged.append(made)
        i += 2
        if any(ranks.get(both, best) < best for both in neighbours):
            return merged + parts[i:]
    return merged


def _mismatch(where: str, what: str, why: str, more: str = "") -> InputError:
    return InputError(f"{where}: {what}", why, f"fetch both files again from one and the same model{more}")


def ranks_of(tokens: Sequence[bytes], specials: Iterable[int]) -> dict[bytes, int]:
    special = set(specials)
    return {token: i for i, token in enumerate(tokens) if i not in special}
