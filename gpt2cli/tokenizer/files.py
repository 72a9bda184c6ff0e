"""Tokenizer files in a model folder: reading each known kind, and writing ours.

Byte-level BPE is saved as vocab.json and merges.txt, characters as a tokenizer.json, each with
the tokenizer_config.json by which transformers.AutoTokenizer opens the folder. OpenAI's own file
names and other programs' tokenizer.json are read too. Encoding itself is in bpe.py and chars.py.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of, write_file, write_json
from gpt2cli.json_files import read_json_object
from gpt2cli.tokenizer.base import (
    END_OF_TEXT,
    OTHER_KINDS,
    AddedToken,
    SpecialTokens,
    Tokenizer,
    without_surrogates,
)
from gpt2cli.tokenizer.bpe import BPE, gpt2
from gpt2cli.tokenizer.chars import Chars

TOKENIZER_JSON, CONFIG = "tokenizer.json", "tokenizer_config.json"
# Where programs up to transformers 4.33 kept added tokens, and the names of those with a meaning.
ADDED, SPECIAL_MAP = "added_tokens.json", "special_tokens_map.json"
MODEL_CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NAMED_LISTS = ("additional_special_tokens", "extra_special_tokens")
AGAIN = "fetch the file again"
COPY = "copy the tokenizer files that the model was trained with into the folder"
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's, OpenAI's
GPT2_SHA256 = (
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)

# Tokenizers that do with such a pair what is done here; "Fast" may follow.
PAIR_CLASSES = ("GPT2Tokenizer", "PreTrainedTokenizer", "TokenizersBackend", "CodeGenTokenizer")

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


def load_tokenizer(folder: Path, default: BPE | None = None) -> Tokenizer:
    """The tokenizer of a model folder or of a prepared corpus, with the ids that end, begin and pad texts.

    Like transformers, prefers tokenizer.json where there are several. `default` is taken where there is none.
    Raises InputError where files are missing, damaged, do not belong together, or encode in a way that
    GPT-2 does not.
    """
    settings = _read_settings(folder)
    if os.path.lexists(folder / TOKENIZER_JSON):
        tokenizer, first = _from_tokenizer_json(folder / TOKENIZER_JSON, settings)
    else:
        tokenizer, first = _from_pair(folder, settings, default), None
        if settings.get("add_bos_token"):
            first = settings.get("bos_token") or END_OF_TEXT
    if isinstance(tokenizer, Chars):
        return tokenizer
    return tokenizer.with_special(_special_tokens(folder, tokenizer, settings, first))


def stopping_at_eos(tokenizer: Tokenizer) -> Tokenizer:
    """The same, where generation stops at what ends an answer, also if the model's config forgot it."""
    special = tokenizer.special
    if special.eos in special.stops or not isinstance(tokenizer, BPE):
        return tokenizer
    return tokenizer.with_special(replace(special, stops=(special.eos, *special.stops)))


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Write the tokenizer's files into `folder`, the same bytes every time; returns their names."""
    if isinstance(tokenizer, BPE):
        decoder = {str(token.id): added_entry(token) for token in tokenizer.added}
        config = {
            **_config("GPT2Tokenizer", tokenizer),
            "add_prefix_space": False,
            "added_tokens_decoder": decoder,
        }
        write_file(folder / "vocab.json", tokenizer.vocab_json)
        write_file(folder / "merges.txt", tokenizer.merges_txt)
        write_json(folder / CONFIG, config)
        return ["vocab.json", "merges.txt", CONFIG]
    assert isinstance(tokenizer, Chars)
    write_json(folder / TOKENIZER_JSON, _tokenizer_json_of(tokenizer))
    write_json(folder / CONFIG, {**_config("PreTrainedTokenizerFast", tokenizer), "unk_token": None})
    return [TOKENIZER_JSON, CONFIG]


def save_generation_config(tokenizer: Tokenizer, folder: Path) -> str:
    """Write where generation stops, as transformers reads it; returns the file's name."""
    write_json(folder / GENERATION_CONFIG, tokenizer.special.as_config())
    return GENERATION_CONFIG


def _read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, or what older programs wrote in its place, checked as far as it is used."""
    settings, model = _read_if_there(folder / CONFIG), _read_if_there(folder / MODEL_CONFIG)
    is_old = "added_tokens_decoder" not in settings
    for key in ("add_eos_token", "add_prefix_space"):
        if settings.get(key):
            raise _unlike(folder / CONFIG, key, True)
    if is_old:
        settings = {**settings, **_read_if_there(folder / SPECIAL_MAP)}
    with _refuse_damage(folder / CONFIG):
        lists = [settings.get(key) or [] for key in NAMED_LISTS]
        more = [value for found in lists for value in (found.values() if isinstance(found, dict) else found)]
        named = [_content(value) for value in [*map(settings.get, NAMED), *more] if value is not None]
        decoder = settings.get("added_tokens_decoder") or {}
        entries = [{**value, "id": int(key)} for key, value in decoder.items()]
    if is_old:
        legacy = _read_if_there(folder / ADDED).items()
        entries = [{"content": content, "id": id, "special": content in named} for content, id in legacy]
    n_rows = model.get("vocab_size")
    return {
        "tokenizer_class": model.get("tokenizer_class"),
        **settings,
        "added": entries,
        "named": named,
        "n_rows": n_rows if type(n_rows) is int else 0,
    }


def _special_tokens(
    folder: Path, tokenizer: BPE, settings: dict[str, Any], first: Any | None
) -> SpecialTokens:
    """As transformers: generation_config.json decides where to stop, then config.json, then the tokenizer.
    `first` is the token that begins each text.
    """
    generation, model = (_read_if_there(folder / name) for name in (GENERATION_CONFIG, MODEL_CONFIG))

    def ids_of(name: str) -> list[int]:
        """Those of the first file that names tokens of this vocabulary. GPT-2's own numbers stand in the
        config of smaller vocabularies too, where they mean nothing.
        """
        for values in (generation.get(name), model.get(name)):
            ids = [id for id in (values if isinstance(values, list) else [values]) if type(id) is int]
            if known := [id for id in ids if 0 <= id < tokenizer.n_vocab]:
                return known
        return []

    def id_of(token: Any) -> list[int]:
        id = None if token is None else tokenizer.id_of(_content(token))
        return [] if id is None else [id]

    def named(key: str) -> list[int]:
        return id_of(settings.get(key))

    stops = ids_of("eos_token_id") or named("eos_token") or list(tokenizer.special.stops)
    if not stops:
        raise InputError(
            f"{folder}: names no token that ends a text",
            f"neither {END_OF_TEXT} nor an eos_token is in the vocabulary",
            f'write its name into {CONFIG}: "eos_token": "</s>"',
        )
    (eos, *_) = named("eos_token") or stops
    has_none = "bos_token" in settings and settings["bos_token"] is None
    bos = id_of(first) or named("bos_token") or ([] if has_none else ids_of("bos_token_id") or [eos])
    pad = named("pad_token") or ids_of("pad_token_id")
    ids = (bos[0] if bos else None, pad[0] if pad else None)
    return SpecialTokens(eos, tuple(dict.fromkeys(stops)), *ids, adds_bos=first is not None)


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json_object(path, AGAIN) if os.path.lexists(path) else {}


def _content(token: Any) -> str:
    """A token is written as its text, or as an object with its text and how it is found."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)


def _from_pair(folder: Path, settings: dict[str, Any], default: BPE | None) -> BPE:
    for names in PAIRS:
        vocab, merges = (folder / name for name in names)
        there = [name for name in names if os.path.lexists(folder / name)]
        if len(there) == 1:
            (missing,) = set(names) - set(there)
            raise InputError(
                f"{folder}: {missing} is missing",
                f"{there[0]} cannot be used without it",
                "fetch both files again",
            )
        if there:
            break
    else:
        for name, kind in OTHER_KINDS.items():
            if os.path.lexists(folder / name):
                raise _other_kind(folder, f"{name} is a vocabulary of {kind}")
        _require_pair_class(folder, settings)
        if default:
            return default
        raise InputError(
            f"{folder}: there is no tokenizer",
            f"looked for {TOKENIZER_JSON}, vocab.json with merges.txt, encoder.json with vocab.bpe",
            COPY,
        )
    _require_pair_class(folder, settings)
    with _refuse_damage(folder / CONFIG):
        added, named = _added_tokens(settings["added"], folder / CONFIG), settings["named"]
    if (sha256_of(vocab), sha256_of(merges)) == GPT2_SHA256:
        more = sorted((token for token in added if token.content != END_OF_TEXT), key=lambda token: token.id)
        listed = {token.content for token in added}
        unknown = [name for name in named if name not in listed and gpt2().id_of(name) is None]
        ids = [token.id for token in more]
        if not unknown and ids == list(range(gpt2().n_vocab, gpt2().n_vocab + len(more))):
            return gpt2().with_added(more)
    return BPE.from_files(vocab, merges, added, named, settings["n_rows"])


def _require_pair_class(folder: Path, settings: dict[str, Any]) -> None:
    kind = settings.get("tokenizer_class") or PAIR_CLASSES[0]
    if str(kind).removesuffix("Fast") not in PAIR_CLASSES:
        raise _other_kind(folder, f"tokenizer_class is {ascii(kind)[:80]}")


def _other_kind(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder}: its tokenizer is not GPT-2's kind, byte-level BPE",
        why,
        "use a model with GPT-2's tokenizer, or one that gpt2cli trained",
    )


def _from_tokenizer_json(path: Path, settings: dict[str, Any]) -> tuple[BPE | Chars, str | None]:
    """The tokenizer, and the token that each text begins with."""
    content = read_json_object(path, AGAIN)
    with _refuse_damage(path):
        model = content["model"]
        kind = model["type"]
        if kind not in ("BPE", "WordLevel"):
            raise _unlike(path, "model.type", kind)
        vocab = {**model["vocab"]}
        entries = content.get("added_tokens") or []
        listed = {entry["content"] for entry in entries}
        entries += [entry for entry in settings["added"] if entry["content"] not in listed]
        added = _added_tokens(entries, path)
        if kind == "WordLevel":
            for part, expected in (("normalizer", None), ("pre_tokenizer", EACH_CHARACTER)):
                if content.get(part) != expected:
                    raise _unlike(path, part, content.get(part))
            return _chars(vocab, path), None
        for (part, key), allowed in BYTE_LEVEL.items():
            value = (_only_step(content.get(part)) or {}).get(key)
            if value not in allowed:
                raise _unlike(path, f"{part}.{key}", value)
        merges = []
        for merge in model["merges"]:  # "a b" in older versions, ["a", "b"] in newer ones
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            merges.append((str(left), str(right)))
        first = _first_token(content.get("post_processor"), path)
    return BPE.from_vocabulary(vocab, merges, added, str(path), settings["named"], settings["n_rows"]), first


def _only_step(part: Any) -> Any:
    """What a sequence of one step does; any other part as it is."""
    found = part or {}
    steps: list[Any] = found.get("pretokenizers") or found.get("normalizers") or []
    return steps[0] if len(steps) == 1 else part


def _first_token(processor: Any, path: Path) -> str | None:
    """The token that a post-processor puts before each text. Nothing else that it may add is supported."""
    kind = processor["type"] if processor else None
    steps = processor["processors"] if kind == "Sequence" else [processor] if processor else []
    found = None
    for step in steps:
        if step["type"] == "ByteLevel":  # changes offsets alone
            continue
        if step["type"] != "TemplateProcessing":
            raise _unlike(path, "post_processor.type", step["type"])
        match step["single"]:
            case [{"Sequence": _}]:
                pass
            case [{"SpecialToken": {"id": str(name)}}, {"Sequence": _}] if found is None:
                found = name
            case other:
                raise _unlike(path, "post_processor.single", other)
    return found


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


def _added_tokens(entries: list[dict[str, Any]], path: Path) -> list[AddedToken]:
    """The tokens beside the merges. Those that are found inside of words only at their borders: refused."""
    tokens = []
    for entry in entries:
        content, id = entry["content"], entry["id"]
        content.encode("utf-8")  # raises for what is not text
        is_control = bool(entry.get("special")) or content == END_OF_TEXT
        if entry.get("single_word") or not content:
            raise _unlike(path, "added token", content)
        lstrip, rstrip = (bool(entry.get(key)) for key in ("lstrip", "rstrip"))
        normalized = bool(entry.get("normalized", not is_control))
        tokens.append(AddedToken(id, content, is_control, lstrip, rstrip, normalized))
    return tokens


def _unlike(path: Path, key: str, value: Any) -> InputError:
    return InputError(
        f"{path}: {key} is {ascii(value)[:80]}, which tokenizers of gpt2cli do not have",
        "the ids would not be those that the model was trained on",
        "use a model with GPT-2's tokenizer, or one that gpt2cli trained",
    )


def token_name(tokenizer: Tokenizer, id: int | None) -> str | None:
    """By which transformers finds the token; a text of the same look may be another."""
    if id is None:
        return None
    return tokenizer.spelling(id) if isinstance(tokenizer, BPE) else tokenizer.decode([id])


def _config(tokenizer_class: str, tokenizer: Tokenizer) -> dict[str, Any]:
    special, name = tokenizer.special, partial(token_name, tokenizer)
    return {
        "tokenizer_class": tokenizer_class,
        "bos_token": name(special.bos),
        "eos_token": name(special.eos),
        # transformers adds an unknown token that is not there as a new id.
        "unk_token": END_OF_TEXT if tokenizer.id_of(END_OF_TEXT) is not None else name(special.eos),
        "clean_up_tokenization_spaces": False,
        **({} if special.pad is None else {"pad_token": name(special.pad)}),
        **({"add_bos_token": True} if special.adds_bos else {}),
    }


def added_entry(token: AddedToken) -> dict[str, Any]:
    return {
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": False,
        "special": token.is_control,
    }


def _tokenizer_json_of(tokenizer: Chars) -> dict[str, Any]:
    vocab = {character: i for i, character in enumerate(tokenizer.characters)}
    end = AddedToken(tokenizer.end_of_text, END_OF_TEXT)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": end.id, **added_entry(end)}],
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
