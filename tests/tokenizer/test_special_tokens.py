"""Special tokens of other people's models: the ids that end, begin and pad, beside transformers'."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken as Added
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

from gpt2cli.errors import InputError
from gpt2cli.jinja_template import render
from gpt2cli.tokenizer.base import OTHER_KINDS, AddedToken, begin
from gpt2cli.tokenizer.bpe import BPE, gpt2
from gpt2cli.tokenizer.files import load_tokenizer, save_tokenizer

from .conftest import CORPUS

TEXTS = ["", "Hello world", " a  b\n\n", "x<|im_end|>y", "<|im_start|>user\nHi <|im_end|>\n[PAD]", "<s>a</s>"]
TEXTS += ["<unk> <pad>", "<|user|><ab", "<ab>", "[CLS]a [SEP]", "!", "<|endoftext|>"]
IM = {"content": "<|im_end|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


def write(folder: Path, **files: Any) -> Path:
    """GPT-2's vocabulary in a model's folder, with these JSON files."""
    folder.mkdir(exist_ok=True)
    save_tokenizer(gpt2(), folder)
    GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=50260).save_pretrained(folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def with_im(**more: Any) -> dict[str, Any]:
    decoder = {
        str(50257 + n): IM | {"content": content, "special": True}
        for n, content in enumerate(["<|im_end|>", "<|im_start|>", "[PAD]"])
    }
    return {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder, **more}


def assert_same(folder: Path) -> None:
    """Our ids are transformers', with control tokens read; and so after our own saving."""
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    saved = folder / "saved"
    saved.mkdir()
    save_tokenizer(ours, saved)
    again, theirs_again = load_tokenizer(saved), AutoTokenizer.from_pretrained(saved)
    assert again.fingerprint == ours.fingerprint
    for text in TEXTS:
        ids = [*begin(ours), *ours.encode(text, control_tokens=True)]
        assert ids == theirs(text)["input_ids"] == theirs_again(text)["input_ids"]
        assert theirs_again.decode(ids) == theirs.decode(ids)
    for name in ("eos_token_id", "pad_token_id"):
        assert getattr(theirs_again, name) == getattr(theirs, name)
    assert len(theirs_again) == len(theirs) == ours.n_vocab


def test_a_models_own_end_and_padding(tmp_path: Path) -> None:
    config = with_im(eos_token="<|im_end|>", pad_token="[PAD]")
    generation = {"eos_token_id": [50256, 50257], "pad_token_id": 50259}
    folder = write(tmp_path / "m", tokenizer_config=config, generation_config=generation)
    special = load_tokenizer(folder).special
    # All of them stop; an answer ends with the tokenizer's own.
    assert (special.eos, special.stops, special.pad, special.bos) == (50257, (50256, 50257), 50259, 50256)
    assert_same(folder)
    padded = AutoTokenizer.from_pretrained(folder / "saved")(["a", "b c"], padding=True)["input_ids"]
    assert padded[0] == [64, 50259]


def test_files_of_the_years_before_added_tokens_decoder(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "m",
        tokenizer_config={"tokenizer_class": "GPT2Tokenizer"},
        added_tokens={"<|im_start|>": 50258, "<|im_end|>": 50257, "[PAD]": 50259},
        special_tokens_map={"pad_token": "[PAD]", "eos_token": {"content": "<|im_end|>"}},
    )
    ours = load_tokenizer(folder)
    assert (ours.special.pad, ours.end_of_text) == (50259, 50257)
    assert ours.special.stops == (50256,)  # config.json says so, and transformers goes on after 50257
    # Not named as special: found in any text, as transformers does.
    assert ours.encode("a<|im_start|>") == [64, 50258] and 50259 not in ours.encode("[PAD]")
    assert_same(folder)


@pytest.mark.parametrize("place", ["tokenizer_config", "tokenizer_json"])
def test_a_tokenizer_that_begins_each_text_with_bos(place: str, tmp_path: Path) -> None:
    folder = write(
        tmp_path / "m", tokenizer_config={"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}
    )
    if place == "tokenizer_json":
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        assert "TemplateProcessing" in (folder / "tokenizer.json").read_text()
    ours = load_tokenizer(folder)
    assert begin(ours) == [50256] and ours.encode("a") == [64]
    assert ours.fingerprint != gpt2().fingerprint  # other ids for the same text
    assert_same(folder)


S = ["<s>", "<pad>", "</s>", "<unk>"]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def trained(special: Sequence[str] = S) -> Engine:
    """A byte-level vocabulary of 400 by Hugging Face's trainer."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
        show_progress=False,
    )
    engine.train_from_iterator(CORPUS, trainer)
    return engine


def put(folder: Path, engine: Engine, names: dict[str, Any], **files: Any) -> None:
    """As tokenizer.json, beside other JSON files."""
    engine.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    for name, content in {"tokenizer_config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def named_at_the_front(folder: Path) -> None:  # ruGPT3
    trained().model.save(str(folder))
    (folder / "special_tokens_map.json").write_text(json.dumps(NAMES | {"pad_token": {"content": "<pad>"}}))


def named_at_the_end(folder: Path) -> None:
    """Somebody wrote further tokens into vocab.json; GPT-2's "!" is padding elsewhere."""
    save_tokenizer(gpt2(), folder)
    vocab = json.loads(gpt2().vocab_json) | {"<pad>": 50257, "<s>": 50258}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    (folder / "special_tokens_map.json").write_text(
        '{"pad_token": "!", "cls_token": "<pad>", "bos_token": "<s>"}'
    )


def named_with_a_row(folder: Path) -> None:
    write(folder, tokenizer_config={"pad_token": "[PAD]", "tokenizer_class": "GPT2TokenizerFast"})
    GPT2Config(vocab_size=50258).save_pretrained(folder)


def extra_by_names(folder: Path) -> None:
    write(
        folder,
        added_tokens={"<|user|>": 50257, "<|im_end|>": 50258},
        tokenizer_config={"extra_special_tokens": {"user_token": "<|user|>"}, "eos_token": "<|im_end|>"},
    )


def later_than_tokenizer_json(folder: Path) -> None:
    """Added tokens of a fine-tune in a file of their own, beside the tokenizer.json of its base."""
    put(folder, trained(), NAMES, added_tokens={"<|im_start|>": 400, "<|user|>": 401})
    (folder / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<|im_start|>"]}')


def decoder_beside_tokenizer_json(folder: Path) -> None:
    put(folder, trained(), {**NAMES, "eos_token": "<|im_end|>", "added_tokens_decoder": {"400": IM}})


def normalized(folder: Path) -> None:
    """What is not normalized is found first, though a longer token would begin there."""
    engine = trained()
    engine.add_tokens([Added("<ab>", normalized=True), Added("<ab", normalized=False)])
    put(folder, engine, NAMES)


def first_is_cls(folder: Path) -> None:
    engine = trained(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    engine.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    put(folder, engine, {"pad_token": "[PAD]", "eos_token": "[SEP]"}, config={"bos_token_id": 3})


def ends_with_a_line_feed(folder: Path) -> None:
    """The end is an ordinary token, by the spelling of the vocabulary."""
    write(folder, tokenizer_config={"eos_token": "\u010a", "pad_token": "!"})
    GPT2Config(vocab_size=50257).save_pretrained(folder)


def sequence_of_one(folder: Path) -> None:
    engine = trained()
    engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False)])
    engine.enable_truncation(1000)
    put(folder, engine, NAMES)


FOLDERS = (
    named_at_the_front,
    named_at_the_end,
    named_with_a_row,
    extra_by_names,
    later_than_tokenizer_json,
    decoder_beside_tokenizer_json,
    normalized,
    first_is_cls,
    sequence_of_one,
    ends_with_a_line_feed,
)


@pytest.mark.parametrize("make", FOLDERS, ids=lambda make: make.__name__)
def test_where_files_list_tokens(make: Callable[[Path], None], tmp_path: Path) -> None:
    if make not in (named_with_a_row, extra_by_names, ends_with_a_line_feed):
        GPT2Config(vocab_size=400).save_pretrained(tmp_path)
    make(tmp_path)
    assert_same(tmp_path)


def test_a_tokenizer_without_bos_has_none(tmp_path: Path) -> None:
    ours = load_tokenizer(write(tmp_path / "m", tokenizer_config={"bos_token": None}))
    assert ours.special.bos is None and render("{{ bos_token }}a", [], ours, "here") == "a"
    save_tokenizer(ours, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).bos_token is None


@pytest.mark.parametrize(
    "name", [*OTHER_KINDS, "roberta", "t5", "prefix", "prefix beside tokenizer.json", "Unigram"]
)
def test_another_kind_of_tokenizer_is_named(name: str, tmp_path: Path) -> None:
    """Though the model has as many tokens as GPT-2, or the files are GPT-2's."""
    folder = write(tmp_path / "m")
    settings: dict[str, Any] = {"add_prefix_space": True} if "prefix" in name else {}
    if name in ("roberta", "t5"):
        settings = {"tokenizer_class": {"roberta": "RobertaTokenizerFast", "t5": "T5Tokenizer"}[name]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if "beside" in name:
        trained().save(str(folder / "tokenizer.json"))
    elif name == "Unigram":
        unigram = {"model": {"type": name, "vocab": [["a", 0.0]], "unk_id": 0}}
        (folder / "tokenizer.json").write_text(json.dumps(unigram))
    elif "prefix" not in name and name != "roberta":
        for file in ("vocab.json", "merges.txt"):
            (folder / file).unlink()
        if name in OTHER_KINDS:
            (folder / name).write_text("[PAD]")
    with pytest.raises(InputError) as caught:
        load_tokenizer(folder, gpt2())
    assert {"roberta": "Roberta", "t5": "T5"}.get(name, "prefix" if settings else name) in str(caught.value)
    assert "use a model with GPT-2's tokenizer" in caught.value.fix


def test_own_vocabulary_with_s_and_slash_s(tmp_path: Path) -> None:
    engine, names = trained(), NAMES
    engine.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    PreTrainedTokenizerFast(tokenizer_object=engine, **names).save_pretrained(tmp_path / "fast")
    ours = load_tokenizer(tmp_path / "fast")
    assert (ours.special.eos, ours.special.stops, ours.special.pad, begin(ours)) == (2, (2,), 1, [0])
    assert_same(tmp_path / "fast")
    # The pair of files that engine.model.save writes lists <s> and the others nowhere but in the vocabulary.
    (tmp_path / "pair").mkdir()
    engine.model.save(str(tmp_path / "pair"))
    with pytest.raises(InputError, match="names no token that ends a text") as caught:
        load_tokenizer(tmp_path / "pair")
    assert '"eos_token": "</s>"' in caught.value.fix
    (tmp_path / "pair" / "tokenizer_config.json").write_text(json.dumps(names))
    pair = load_tokenizer(tmp_path / "pair")
    assert pair.end_of_text == 2 and pair.encode("café </s>") == ours.encode("café </s>")


def test_ids_of_another_vocabulary_mean_nothing(tmp_path: Path, foreign: BPE) -> None:
    save_tokenizer(foreign, tmp_path)
    GPT2Config(vocab_size=foreign.n_vocab).save_pretrained(tmp_path)  # with its default 50256
    assert load_tokenizer(tmp_path).end_of_text == foreign.end_of_text == 0


def test_white_space_beside_a_token(tmp_path: Path) -> None:
    config = with_im()
    config["added_tokens_decoder"]["50257"] |= {"lstrip": True, "rstrip": True}
    assert_same(write(tmp_path / "m", tokenizer_config=config))


def test_added_tokens_in_one_another(tmp_path: Path) -> None:
    decoder = {
        str(50257 + n): IM | {"content": content, "special": n % 2 == 0}
        for n, content in enumerate(["<a", "<ab>", "<ab"])
    }
    folder = write(
        tmp_path / "m", tokenizer_config={"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder}
    )
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in ("<ab><a<ab", "x<abb", "<a b"):
        assert ours.encode(text, control_tokens=True) == theirs(text)["input_ids"]
    assert ours.encode("<ab> <ab") == [50258, *gpt2().encode(" <ab")]  # only the second is no control token


def test_more_tokens_after_the_last() -> None:
    more = gpt2().with_added([AddedToken(50257, "<|user|>", is_control=False)])
    assert more.encode("<|user|>a") == [50257, 64] and more.n_vocab == 50258
    assert gpt2().encode("<|user|>a")[0] == 27 and more.fingerprint != gpt2().fingerprint
