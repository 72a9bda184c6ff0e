"""GPT-2's encoding against transformers, OpenAI's files, and files that do not belong together."""

import hashlib
import itertools
import os
import pickle
import random
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.errors import InputError
from gpt2cli.tokenizer import bpe
from gpt2cli.tokenizer.base import AddedToken
from gpt2cli.tokenizer.bpe import BPE, gpt2
from gpt2cli.tokenizer.merges import BYTE_OF

# A small alphabet in which the pattern has something to decide: contractions, runs of every
# white space, and characters that only Python takes for white space.
KNOTTY = st.text(alphabet="ab'stlLvre19.,-_ \n\t\r\u00a0\u2003\u3000\x1c\x1f\u200b\u0085é中😀", max_size=40)
TYPED = "a <|endoftext|> b"


# --- against OpenAI's files


def test_derived_files_are_openais_byte_for_byte():
    assert hashlib.sha256(gpt2().vocab_json).hexdigest() == (
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    )
    assert hashlib.sha256(gpt2().merges_txt).hexdigest() == (
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    )


def test_script_makes_the_bundled_table_from_openais_files(tmp_path: Path):
    (tmp_path / "encoder.json").write_bytes(gpt2().vocab_json)
    (tmp_path / "vocab.bpe").write_bytes(gpt2().merges_txt)
    script = Path(__file__).with_name("make_ranks.py")
    subprocess.run([sys.executable, script, tmp_path / "table", tmp_path], check=True)
    bundled = resources.files("gpt2cli.bundled").joinpath(bpe.TABLE)
    assert (tmp_path / "table").read_bytes() == bundled.read_bytes()
    (tmp_path / "vocab.bpe").write_bytes(gpt2().merges_txt[:-1])
    refused = subprocess.run(
        [sys.executable, script, tmp_path / "table", tmp_path], capture_output=True, text=True
    )
    assert refused.returncode == 1 and "vocab.bpe: SHA-256" in refused.stderr


def test_sizes_and_ids():
    tokenizer = gpt2()
    assert (tokenizer.name, tokenizer.n_vocab, tokenizer.end_of_text) == ("gpt2", 50257, 50256)
    assert tokenizer.encode("Every effort moves you") == [6109, 3626, 6100, 345]
    assert tokenizer.decode([50256]) == "<|endoftext|>"
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


# --- against transformers


@settings(max_examples=1000)
@given(text=st.text(max_size=60) | KNOTTY)
def test_ids_are_those_of_transformers(reference, text: str):
    if "<|endoftext|>" not in text:
        assert gpt2().encode(text) == reference(text).input_ids


def test_every_kind_of_character_has_the_ids_of_transformers(reference):
    # One code point in seven, in the places where the pattern asks what kind it is.
    characters = [chr(code) for code in range(0, 0x30000, 7) if not 0xD800 <= code < 0xE000]
    texts = [f"a{c}{c}a {c}1{c}1 {c}.{c}." for c in characters]
    assert [gpt2().encode(text) for text in texts] == reference(texts).input_ids


@settings(max_examples=300)
@given(text=st.text(max_size=60) | KNOTTY)
def test_foreign_vocabulary_has_the_ids_of_its_own_engine(foreign: BPE, foreign_engine, text: str):
    if "<|endoftext|>" not in text:
        assert foreign.encode(text) == foreign_engine(text).input_ids


def test_corpora_of_the_mirror_have_the_ids_of_transformers(reference):
    mirror = os.environ.get("GPT2_MIRROR")
    if not mirror:
        pytest.skip("GPT2_MIRROR is not set: no real corpora here")
    for path in [*sorted(Path(mirror).glob("*.txt")), *sorted(Path(mirror).glob("*.tsv"))]:
        text = path.read_text(encoding="utf-8")[:200_000]
        assert gpt2().encode(text) == reference(text).input_ids, path.name


# --- text


@settings(max_examples=300)
@given(text=st.text(max_size=60) | KNOTTY)
def test_decoding_gives_the_text_back(text: str):
    assert gpt2().decode(gpt2().encode(text)) == text


def test_typed_end_of_text_is_plain_text(byte_level: BPE):
    ids = byte_level.encode(TYPED)
    assert byte_level.end_of_text not in ids
    assert byte_level.decode(ids) == TYPED


@pytest.mark.parametrize("length", [0, bpe.STRIDE])
def test_lone_surrogates_are_replaced(length: int):
    padding = "x" * length
    assert gpt2().encode(padding + "a\ud800b") == gpt2().encode(padding + "a\ufffdb")
    assert gpt2().encode(padding + "a\ud83d\ude00b") == gpt2().encode(padding + "a😀b")


@settings(max_examples=500)
@given(text=KNOTTY, stride=st.integers(1, 9))
def test_cutting_a_long_text_does_not_change_its_ids(text: str, stride: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "STRIDE", stride)
        assert gpt2().encode(text) == gpt2()._encoding.encode_ordinary(text)
        assert all(bpe._pieces(text)) or not text


def test_cutting_takes_white_space_for_what_the_pattern_does():
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    ranks = {bytes((byte,)): byte for byte in range(256)}
    only_white = tiktoken.Encoding("white", pat_str=r"\s", mergeable_ranks=ranks, special_tokens={})
    found = only_white.decode(only_white.encode_ordinary(every))  # what does not match is left out
    assert found == "".join(bpe.WHITE_SPACE.findall(every))
    assert len(found) == 25


@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", "\u00a0", "😀", "=", "1", "中", " \n", "\x1c"], ids=lambda unit: ascii(unit)
)
def test_a_million_of_one_thing_takes_bounded_time(unit: str):
    text = unit * (1_000_000 // len(unit)) + "x"
    start = time.perf_counter()
    ids = gpt2().encode(text)
    assert time.perf_counter() - start < 10  # measured: 0.03 to 0.5 s; quadratic work takes minutes
    assert gpt2().decode(ids) == text


def test_long_runs_have_the_ids_of_short_ones():
    # 70,000 spaces are met by a probe and cut; the pattern's own engine still manages them whole.
    for text in (" " * 70_000 + "x", "a" * 70_000, "y" * 65_530 + "\n" * 20 + "x" * 70_000 + " \n"):
        assert gpt2().encode(text) == gpt2()._encoding.encode_ordinary(text)


@pytest.mark.parametrize("wrong", [-1, 50257, 10**12])
def test_unknown_id_is_named(wrong: int):
    with pytest.raises(InputError, match=f"token id {wrong} is not in the vocabulary") as caught:
        gpt2().decode([1, wrong])
    assert "0 to 50256" in caught.value.why


# --- identity


def test_fingerprint_is_sha256_over_length_and_bytes(byte_level: BPE):
    digest = hashlib.sha256()
    for token_id in range(byte_level.n_vocab):
        token = byte_level.decode_bytes([token_id])
        digest.update(len(token).to_bytes(4, "little") + token)
    assert byte_level.fingerprint == digest.hexdigest()


def test_pickled_copy_is_equal(byte_level: BPE):
    copy = pickle.loads(pickle.dumps(byte_level))
    assert copy.fingerprint == byte_level.fingerprint and copy.name == byte_level.name
    assert copy.encode(TYPED) == byte_level.encode(TYPED) and copy.end_of_text == byte_level.end_of_text


def test_building_is_quick():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        gpt2.__wrapped__()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.25  # 0.04 s on a quiet machine


# --- damage


def test_standard_files_give_the_bundled_tokenizer(gpt2_folder: Path):
    assert BPE.from_files(gpt2_folder / "vocab.json", gpt2_folder / "merges.txt") is gpt2()


def test_small_vocabulary_is_accepted(small, write_pair):
    tokenizer = BPE.from_files(*write_pair(*small))
    assert (tokenizer.name, tokenizer.n_vocab, tokenizer.end_of_text) == ("bpe", 307, 306)
    assert tokenizer.tokens[:306] == gpt2().tokens[:306]
    assert tokenizer.merges == gpt2().merges[:50]


def test_specials_may_lie_anywhere(small, write_pair):
    vocab, merges = small
    tokenizer = BPE.from_files(*write_pair(vocab, merges), [AddedToken(307, "<pad>"), AddedToken(308, "中")])
    assert tokenizer.n_vocab == 309 and tokenizer.decode([307, 308]) == "<pad>中"
    assert not {306, 307, 308} & set(tokenizer.encode("<|endoftext|><pad>中"))
    assert tokenizer.decode(tokenizer.encode("<pad>中")) == "<pad>中"


def test_special_with_two_ids_is_refused(small, write_pair):
    with pytest.raises(InputError, match="token 'Z' has two ids") as caught:
        BPE.from_files(*write_pair(*small), [AddedToken(307, "Z")])
    assert "and 307" in caught.value.why


def _swap(merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [merges[1], merges[0], *merges[2:]]


def _renamed(vocab: dict[str, int], old: str, new: str) -> dict[str, int]:
    return {new if token == old else token: i for token, i in vocab.items()}


MISMATCHES = {
    "merge cut off": (lambda v, m: (v, m[:-1]), r"token 'ro' is never made"),
    "product unknown": (lambda v, m: (v, [*m, ("x", "y")]), r"token 'xy' is not in the vocabulary"),
    "merges swapped": (lambda v, m: (v, _swap(m)), r"token '\\u0120t' has too low an id"),
    "merge twice": (lambda v, m: (v, [m[0], *m]), r"token '\\u0120t' has too low an id"),
    "other product": (lambda v, m: (_renamed(v, "he", "hx"), m), r"token 'he' is not in the vocabulary"),
    "byte missing": (lambda v, m: (_renamed(v, "Z", "ZZ"), m), r"token 'Z' is not in the vocabulary"),
    "gap": (lambda v, m: (v | {"<|endoftext|>": 310}, m), r"'<\|endoftext\|>' has the id 310"),
    "id twice": (lambda v, m: (v | {"!": 1}, m), r"has the id 1"),
    "id is text": (lambda v, m: (v | {"!": "0"}, m), r"token '!' has the id '0'"),
    "id is true": (lambda v, m: (v | {'"': True}, m), r"has the id True"),
    "not a table": (lambda v, m: (["!"], m), r"is not a table"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_files_that_do_not_belong_together_are_refused(case: str, small, write_pair):
    change, message = MISMATCHES[case]
    with pytest.raises(InputError, match=message) as caught:
        BPE.from_files(*write_pair(*change(*small)))
    assert "vocab.json and merges.txt" in caught.value.what and caught.value.fix


def test_merge_that_comes_before_its_parts_is_refused(write_pair):
    vocab, merges = _made_of(["ab"], [("abc", "d"), ("ab", "c")])
    with pytest.raises(InputError, match="a merge needs 'abc' before it is made"):
        BPE.from_files(*write_pair(vocab, merges))


def test_merges_that_ranks_cannot_say_are_refused(write_pair):
    # By the merges, "abc" is "ab" + "c"; but "bc" is joined first, so only a whole piece "abc"
    # would have this id, and only in tiktoken.
    vocab, merges = _made_of(["bc", "ab"], [("ab", "c")])
    with pytest.raises(InputError, match="token 'abc' cannot be made as merges say"):
        BPE.from_files(*write_pair(vocab, merges))


@settings(max_examples=100)
@given(seed=st.integers(0, 10**6))
def test_accepted_vocabularies_encode_as_their_merges_say(seed: int):
    # Random merges, most of them not what training would give; a plain reading of them is the judge.
    rng = random.Random(seed)
    vocab, merges = _made_of([], [])
    del vocab["<|endoftext|>"]
    known = list("abc")
    for _ in range(rng.randint(1, 8)):
        left, right = rng.choice(known), rng.choice(known)
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append((left, right))
            known.append(left + right)
    try:
        tokenizer = BPE.from_vocabulary(vocab | {"<|endoftext|>": len(vocab)}, merges, {}, "random")
    except InputError:
        return
    for _ in range(30):
        text = "".join(rng.choices("abc", k=rng.randint(1, 12)))
        assert tokenizer.encode(text) == [vocab[part] for part in _by_merges(text, merges)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#version: 0.2\na b c\n", r"merges.txt:2: a merge is two tokens"),
        (b"#version: 0.2\n\xc4\xa0 \xff\n", r"merges.txt: not UTF-8 at byte 17"),
    ],
)
def test_unreadable_merges_are_refused(content: bytes, message: str, small, write_pair):
    vocab, merges = write_pair(*small)
    merges.write_bytes(content)
    with pytest.raises(InputError, match=message):
        BPE.from_files(vocab, merges)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b""])
def test_vocabulary_that_is_no_json_is_refused(content: bytes, small, write_pair):
    vocab, merges = write_pair(*small)
    vocab.write_bytes(content)
    with pytest.raises(InputError, match=r"vocab\.json(:1)?: is not JSON"):
        BPE.from_files(vocab, merges)


def test_merges_may_have_windows_line_ends_and_no_header(small, write_pair):
    vocab, merges = write_pair(*small)
    expected = BPE.from_files(vocab, merges).merges
    merges.write_bytes(merges.read_bytes().split(b"\n", 1)[1].replace(b"\n", b"\r\n"))
    assert BPE.from_files(vocab, merges).merges == expected


# --- helpers


def _made_of(
    products: list[str], more: list[tuple[str, str]]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """All bytes, then `products` of two letters each, then the products of the merges `more`."""
    merges = [(product[0], product[1]) for product in products] + more
    names = [*BYTE_OF, *(left + right for left, right in merges), "<|endoftext|>"]
    return {name: i for i, name in enumerate(names)}, merges


def _by_merges(text: str, merges: list[tuple[str, str]]) -> list[str]:
    """GPT-2's own reading (openai/gpt-2, encoder.py): all places of the first pair there is, again."""
    parts = list(text)
    while present := [pair for pair in merges if pair in list(itertools.pairwise(parts))]:
        joined, i = [], 0
        while i < len(parts):
            if tuple(parts[i : i + 2]) == present[0]:
                joined.append(parts[i] + parts[i + 1])
                i += 2
            else:
                joined.append(parts[i])
                i += 1
        parts = joined
    return parts
