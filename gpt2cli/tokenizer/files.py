"""Tokenizer files in a model folder: reading each known kind, and writing ours.

Byte-level BPE is saved as vocab.json and merges.txt, characters as a tokenizer.json, each with
the tokenizer_config.json by which transformers.AutoTokenizer opens the folder. OpenAI's own file
names and other programs' tokenizer.json are read too. Encoding itself is in bpe.py and chars.py.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of, write_file, write_json
from gpt2cli.json_files import read_json_object
from gpt2cli.tokenizer.base import END_OF_TEXT, Tokenizer, without_surrogates
from gpt2cli.tokenizer.bpe import BPE, gpt2
from gpt2cli.tokenizer.chars import Chars

TOKENIZER_JSON, CONFIG = "tokenizer.json", "tokenizer_config.json"
AGAIN = "fetch the file again"
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's, OpenAI's
GPT2_SHA256 = (
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)

# Every code point is a piece of its own; "." would leave out the line feed.
EACH_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}

# What another program's byte-level file must say, because our encoding does exactly that.
BYTE_LEVEL = {
    ("normalizer", "type"): (None,),
    ("pre_tokenizer", "type"): ("ByteLevel",),
    ("pre_tokenizer", "add_prefix_space"): (False,),
    ("pre_tokenizer", "use_regex"): (True, None),
    ("model", "continuing_subword_prefix"): ("", None),
    ("model", "end_of_word_suffix"): ("", None),
    ("model", "byte_fallback"): (False, None),
    ("model", "dropout"): (None, 0.0),
}


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder or of a prepared corpus.

    Like transformers, prefers tokenizer.json where there are several. Raises InputError where
    files are missing, damaged, do not belong together, or encode in a way that GPT-2 does not.
    """
    if os.path.lexists(folder / TOKENIZER_JSON):
        return _from_tokenizer_json(folder / TOKENIZER_JSON)
    for names in PAIRS:
        vocab, merges = (folder / name for name in names)
        there = [name for name in names if os.path.lexists(folder / name)]
        if len(there) == 2:
            return _from_pair(vocab, merges)
        if there:
            (missing,) = set(names) - set(there)
            raise InputError(
                f"{folder}: {missing} is missing",
                f"{there[0]} cannot be used without it",
                "fetch both files again",
            )
    raise InputError(
        f"{folder}: there is no tokenizer",
        f"looked for {TOKENIZER_JSON}, vocab.json with merges.txt, encoder.json with vocab.bpe",
        "copy the tokenizer's files from the model's source into the folder",
    )


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Write the tokenizer's files into `folder`, the same bytes every time; returns their names."""
    if isinstance(tokenizer, BPE):
        decoder = {str(i): _added(tokenizer.tokens[i].decode()) for i in tokenizer.specials}
        config = {**_config("GPT2Tokenizer"), "add_prefix_space": False, "added_tokens_decoder": decoder}
        write_file(folder / "vocab.json", tokenizer.vocab_json)
        write_file(folder / "merges.txt", tokenizer.merges_txt)
        write_json(folder / CONFIG, config)
        return ["vocab.json", "merges.txt", CONFIG]
    assert isinstance(tokenizer, Chars)
    write_json(folder / TOKENIZER_JSON, _tokenizer_json_of(tokenizer))
    write_json(folder / CONFIG, {**_config("PreTrainedTokenizerFast"), "unk_token": None})
    return [TOKENIZER_JSON, CONFIG]


def _from_pair(vocab: Path, merges: Path) -> BPE:
    path = vocab.parent / CONFIG
    config = read_json_object(path, AGAIN) if os.path.lexists(path) else {}
    with _refuse_damage(path):
        added = config.get("added_tokens_decoder") or {}
        specials = _specials([{**value, "id": int(key)} for key, value in added.items()], path)
    if config.get("add_prefix_space"):
        raise _unlike(path, "add_prefix_space", True)
    if (sha256_of(vocab), sha256_of(merges)) == GPT2_SHA256 and set(specials) <= {END_OF_TEXT}:
        return gpt2()
    return BPE.from_files(vocab, merges, specials)


def _from_tokenizer_json(path: Path) -> Tokenizer:
    content = read_json_object(path, AGAIN)
    with _refuse_damage(path):
        model = content["model"]
        vocab, kind = {**model["vocab"]}, model["type"]
        specials = _specials(content.get("added_tokens") or [], path)
        if kind == "WordLevel":
            for part, expected in (("normalizer", None), ("pre_tokenizer", EACH_CHARACTER)):
                if content.get(part) != expected:
                    raise _unlike(path, part, content.get(part))
            return _chars(vocab, path)
        if kind != "BPE":
            raise _unlike(path, "model.type", kind)
        for (part, key), allowed in BYTE_LEVEL.items():
            value = (content.get(part) or {}).get(key)
            if value not in allowed:
                raise _unlike(path, f"{part}.{key}", value)
        merges = []
        for merge in model["merges"]:  # "a b" in older versions, ["a", "b"] in newer ones
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            merges.append((str(left), str(right)))
    return BPE.from_vocabulary(vocab, merges, specials, str(path))


@contextlib.contextmanager
def _refuse_damage(path: Path) -> Iterator[None]:
    """Raise InputError if the content of a file lacks the expected structure."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged", f"{type(error).__name__}: {error}", AGAIN) from None


def _chars(vocab: dict[str, Any], path: Path) -> Chars:
    characters = sorted(without_surrogates(token) for token in vocab if token != END_OF_TEXT)
    expected = {token: i for i, token in enumerate([*characters, END_OF_TEXT])}
    if any(len(character) != 1 for character in characters) or vocab != expected or not characters:
        raise InputError(
            f"{path}: is not a character vocabulary of gpt2cli",
            f"ids must number the characters in code point order, then {END_OF_TEXT}",
            "copy the file again from where the model was trained",
        )
    return Chars("".join(characters))


def _specials(entries: list[dict[str, Any]], path: Path) -> dict[str, int]:
    """Added control tokens and their ids. Added words would change how texts are encoded: refused."""
    for entry in entries:
        entry["content"].encode("utf-8")  # raises for what is not text
        if not entry.get("special") and entry["content"] != END_OF_TEXT:
            raise _unlike(path, "added token", entry["content"])
    return {entry["content"]: entry["id"] for entry in entries}


def _unlike(path: Path, key: str, value: Any) -> InputError:
    return InputError(
        f"{path}: {key} is {ascii(value)[:80]}, which tokenizers of gpt2cli do not have",
        "the ids would not be those that the model was trained on",
        "use a model with GPT-2's tokenizer, or one that gpt2cli trained",
    )


def _config(tokenizer_class: str) -> dict[str, Any]:
    return {
        "tokenizer_class": tokenizer_class,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }


def _added(content: str) -> dict[str, Any]:
    unchanged = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, **unchanged, "special": True}


def _tokenizer_json_of(tokenizer: Chars) -> dict[str, Any]:
    vocab = {character: i for i, character in enumerate(tokenizer.characters)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": tokenizer.end_of_text, **_added(END_OF_TEXT)}],
        "normalizer": None,
        "pre_tokenizer": EACH_CHARACTER,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        # An unknown token that is not in the vocabulary makes an unseen character an error there too.
        "model": {
            "type": "WordLevel",
            "vocab": vocab | {END_OF_TEXT: tokenizer.end_of_text},
            "unk_token": "<unk>",
        },
    }
