"""Tokenizer files: ours opened by transformers, theirs opened by us, and damaged ones."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gpt2cli.errors import InputError
from gpt2cli.tokenizer.bpe import BPE, gpt2
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.tokenizer.files import load_tokenizer, save_tokenizer

TEXT = "It's  a test: naïve\n\n 中文 😀 <x> . , 's \t end\r\n"
CHARACTERS = sorted({*TEXT, *"abcdefghijklmnopqrstuvwxyz", "\u2028", "\x00", '"', "\\", "\u0301"})


@pytest.fixture(scope="module")
def chars_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chars")
    save_tokenizer(Chars.from_text(CHARACTERS), folder)
    return folder


@pytest.fixture(scope="module")
def chars_reference(chars_folder: Path):
    return AutoTokenizer.from_pretrained(chars_folder)


# --- ours, opened by transformers and by us


def test_names_of_the_files_that_are_written(tmp_path: Path):
    assert save_tokenizer(gpt2(), tmp_path) == ["vocab.json", "merges.txt", "tokenizer_config.json"]
    assert set(save_tokenizer(gpt2(), tmp_path)) == _names(tmp_path)
    (tmp_path / "chars").mkdir()
    names = save_tokenizer(Chars("ab"), tmp_path / "chars")
    assert set(names) == _names(tmp_path / "chars")


def test_the_same_bytes_every_time(tmp_path: Path, gpt2_folder: Path):
    for name in save_tokenizer(gpt2(), tmp_path):
        assert (tmp_path / name).read_bytes() == (gpt2_folder / name).read_bytes()


def test_gpt2_comes_back_as_the_bundled_one(gpt2_folder: Path):
    assert load_tokenizer(gpt2_folder) is gpt2()


def test_transformers_opens_gpt2(reference):
    assert reference(TEXT).input_ids == gpt2().encode(TEXT)
    assert reference.decode(gpt2().encode(TEXT)) == TEXT
    assert len(reference) == 50257
    assert reference.eos_token_id == reference.bos_token_id == reference.unk_token_id == 50256


def test_chars_come_back(chars_folder: Path):
    tokenizer = load_tokenizer(chars_folder)
    assert tokenizer.name == "chars"
    assert tokenizer.fingerprint == Chars.from_text(CHARACTERS).fingerprint


@settings(max_examples=300)
@given(text=st.text(alphabet=CHARACTERS, max_size=60))
def test_transformers_opens_chars(chars_folder: Path, chars_reference, text: str):
    tokenizer = load_tokenizer(chars_folder)
    assert chars_reference(text).input_ids == tokenizer.encode(text)
    assert chars_reference.decode(tokenizer.encode(text)) == text


def test_transformers_knows_the_end_of_text_of_chars(chars_folder: Path, chars_reference):
    tokenizer = load_tokenizer(chars_folder)
    assert chars_reference.eos_token_id == chars_reference.bos_token_id == tokenizer.end_of_text
    assert chars_reference.eos_token == "<|endoftext|>" and len(chars_reference) == tokenizer.n_vocab
    assert chars_reference.decode([tokenizer.end_of_text], skip_special_tokens=True) == ""


def test_transformers_refuses_an_unseen_character_too(chars_reference):
    with pytest.raises(Exception, match="WordLevel error"):
        chars_reference("é!Ω")


def test_foreign_vocabulary_survives_saving(foreign: BPE, foreign_engine, tmp_path: Path):
    save_tokenizer(foreign, tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.fingerprint, again.end_of_text) == (foreign.fingerprint, 0)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXT).input_ids == again.encode(TEXT) == foreign_engine(TEXT).input_ids
    assert theirs.eos_token_id == 0 and len(theirs) == again.n_vocab


# --- theirs, opened by us


def test_openais_names(gpt2_folder: Path, tmp_path: Path):
    (tmp_path / "encoder.json").write_bytes((gpt2_folder / "vocab.json").read_bytes())
    (tmp_path / "vocab.bpe").write_bytes((gpt2_folder / "merges.txt").read_bytes())
    assert load_tokenizer(tmp_path) is gpt2()


def test_folders_of_transformers(reference, chars_reference, tmp_path: Path):
    reference.save_pretrained(tmp_path / "gpt2")
    assert "vocab.json" not in _names(tmp_path / "gpt2")  # transformers 5 writes tokenizer.json alone
    assert load_tokenizer(tmp_path / "gpt2") is gpt2()
    chars_reference.save_pretrained(tmp_path / "chars")
    assert load_tokenizer(tmp_path / "chars").fingerprint == Chars.from_text(CHARACTERS).fingerprint


def test_tokenizer_json_of_another_vocabulary(foreign_folder: Path, foreign: BPE):
    assert load_tokenizer(foreign_folder / "engine").fingerprint == foreign.fingerprint


def test_merges_as_strings(foreign_folder: Path, foreign: BPE, tmp_path: Path):
    content = json.loads((foreign_folder / "engine" / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).merges == foreign.merges


def test_added_control_token_is_known_but_never_encoded(gpt2_folder: Path, tmp_path: Path):
    theirs = AutoTokenizer.from_pretrained(gpt2_folder)
    theirs.add_special_tokens({"pad_token": "[PAD]"})
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert (ours.name, ours.n_vocab, ours.end_of_text) == ("bpe", 50258, 50256)
    assert ours.decode([50257]) == "[PAD]" and 50257 not in ours.encode("[PAD]")
    (tmp_path / "saved").mkdir()
    save_tokenizer(ours, tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == ours.fingerprint
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("a[PAD]b").input_ids == theirs("a[PAD]b").input_ids == [64, 50257, 65]


# --- damage


def _set(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


WORD = {"id": 500, "content": "Covid", "special": False, "single_word": True}
ROBERTA = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}
ENDED = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}],
}
UNLIKE_GPT2 = {
    "a normalizer": (_set("normalizer", to={"type": "NFC"}), r"normalizer.type is 'NFC'"),
    "no pre-tokenizer": (_set("pre_tokenizer", to=None), r"pre_tokenizer.type is None"),
    "other splits": (_set("pre_tokenizer", "type", to="Sequence"), r"pre_tokenizer.type is 'Sequence'"),
    "a leading space": (_set("pre_tokenizer", "add_prefix_space", to=True), "add_prefix_space is True"),
    "no splits": (_set("pre_tokenizer", "use_regex", to=False), "use_regex is False"),
    "word ends": (_set("model", "end_of_word_suffix", to="</w>"), "end_of_word_suffix is '</w>'"),
    "word pieces": (_set("model", "continuing_subword_prefix", to="##"), "continuing_subword_prefix is '##'"),
    "bytes as words": (_set("model", "byte_fallback", to=True), "byte_fallback is True"),
    "dropout": (_set("model", "dropout", to=0.1), "dropout is 0.1"),
    "another kind": (_set("model", "type", to="Unigram"), "model.type is 'Unigram'"),
    "a word by itself": (_set("added_tokens", to=[WORD]), "added token is 'Covid'"),
    "both ends marked": (_set("post_processor", to=ROBERTA), "post_processor.type is 'RobertaProcessing'"),
    "ends marked": (_set("post_processor", to=ENDED), r"post_processor.single is \["),
    "no merges": (_set("model", "merges", to=None), "is damaged"),
    "half a merge": (_set("model", "merges", to=[["a", "b"], ["a"]]), "is damaged"),
    "model is text": (_set("model", to="BPE"), "is damaged"),
    "vocab is a list": (_set("model", "vocab", to=[]), "is damaged"),
    "added tokens are a table": (_set("added_tokens", to={"a": 1}), "is damaged"),
    "an added token is text": (_set("added_tokens", to=["a"]), "is damaged"),
    "a nameless token": (_set("added_tokens", to=[{"id": 1, "special": True}]), "is damaged"),
    "vocab is empty": (_set("model", "vocab", to={}), "has the id 0|is not in the vocabulary"),
}


@pytest.mark.parametrize("case", UNLIKE_GPT2)
def test_tokenizer_json_that_is_not_gpt2s_is_refused(case: str, foreign_folder: Path, tmp_path: Path):
    change, message = UNLIKE_GPT2[case]
    content = json.loads((foreign_folder / "engine" / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.json") in caught.value.what and caught.value.fix


NO_CHARACTERS = {
    "a word": (_set("model", "vocab", to={"ab": 0, "<|endoftext|>": 1}), "is not a character vocabulary"),
    "no order": (
        _set("model", "vocab", to={"b": 0, "a": 1, "<|endoftext|>": 2}),
        "is not a character vocabulary",
    ),
    "no end": (_set("model", "vocab", to={"a": 0, "b": 1}), "is not a character vocabulary"),
    "nothing": (_set("model", "vocab", to={"<|endoftext|>": 0}), "is not a character vocabulary"),
    "surrogate": (
        _set("model", "vocab", to={"\ud800": 0, "<|endoftext|>": 1}),
        "is not a character vocabulary",
    ),
    "words split": (_set("pre_tokenizer", to={"type": "Whitespace"}), "pre_tokenizer is"),
    "lower case": (_set("normalizer", to={"type": "Lowercase"}), "normalizer is"),
}


@pytest.mark.parametrize("case", NO_CHARACTERS)
def test_word_level_file_that_is_not_characters_is_refused(case: str, chars_folder: Path, tmp_path: Path):
    change, message = NO_CHARACTERS[case]
    content = json.loads((chars_folder / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("gone", ["vocab.json", "merges.txt"])
def test_half_a_pair_is_refused(gone: str, tmp_path: Path):
    save_tokenizer(gpt2(), tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(InputError, match=f"{gone} is missing"):
        load_tokenizer(tmp_path)


def test_folder_without_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="there is no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="there is no tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def test_pair_with_a_leading_space_is_refused(foreign_folder: Path, tmp_path: Path, foreign: BPE):
    save_tokenizer(foreign, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_prefix_space": True}))
    with pytest.raises(InputError, match="add_prefix_space is True"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not a JSON object"),
        ('{"added_tokens_decoder": {"x": {"content": "a", "special": true}}}', "is damaged"),
        ('{"added_tokens_decoder": {"0": "a"}}', "is damaged"),
        ("{", "is not JSON"),
    ],
)
def test_damaged_config_is_refused(content: str, message: str, tmp_path: Path, foreign: BPE):
    save_tokenizer(foreign, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


def test_one_flipped_byte_is_noticed(tmp_path: Path):
    save_tokenizer(gpt2(), tmp_path)
    data = bytearray((tmp_path / "merges.txt").read_bytes())
    data[data.index(b"\nh e\n") + 1] ^= 1
    (tmp_path / "merges.txt").write_bytes(data)
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "fifo", "loop"])
def test_what_is_no_file_is_refused_without_waiting(kind: str, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    {"folder": path.mkdir, "fifo": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path)}[kind]()
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


# --- helpers


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
