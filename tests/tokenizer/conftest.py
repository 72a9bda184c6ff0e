"""Tokenizers and folders that the tests of this room share."""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gpt2cli.tokenizer.bpe import BPE, gpt2
from gpt2cli.tokenizer.files import save_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and then the dog jumps over the fox.\n" * 3,
    "It's what they've said: we'll see 1234 foxes in 2024...\n\n  Indented   text\tand tabs.\n" * 3,
    "naïve café, Straße, Ελλάδα, 中文字符, 👩‍👩‍👧 and 😀😀 again; zażółć gęślą jaźń.\n" * 3,
]


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that we write for GPT-2."""
    folder = tmp_path_factory.mktemp("gpt2")
    save_tokenizer(gpt2(), folder)
    return folder


@pytest.fixture(scope="session")
def reference(gpt2_folder: Path) -> PreTrainedTokenizerBase:
    """transformers' GPT-2 tokenizer over our own files."""
    return AutoTokenizer.from_pretrained(gpt2_folder)


@pytest.fixture(scope="session")
def foreign_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt of a small vocabulary trained by Hugging Face's tokenizers, with
    <|endoftext|> at id 0, where their trainer puts it, and the engine's own tokenizer.json apart.
    """
    folder = tmp_path_factory.mktemp("foreign")
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    engine.train_from_iterator(CORPUS, trainer)
    engine.model.save(str(folder))
    (folder / "engine").mkdir()
    engine.save(str(folder / "engine" / "tokenizer.json"))
    return folder


@pytest.fixture
def small() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary to damage: GPT-2's first 50 merges, and <|endoftext|> after them."""
    merges = [tuple(line.split(" ")) for line in gpt2().merges_txt.decode().split("\n")[1:51]]
    names = list(json.loads(gpt2().vocab_json))[:306]
    return {name: i for i, name in enumerate([*names, "<|endoftext|>"])}, merges


@pytest.fixture
def write_pair(tmp_path: Path):
    """A function that writes a vocabulary and merges, and gives the paths of the two files."""

    def write(vocab: object, merges: list[tuple[str, str]]) -> tuple[Path, Path]:
        paths = tmp_path / "vocab.json", tmp_path / "merges.txt"
        paths[0].write_text(json.dumps(vocab))
        paths[1].write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        return paths

    return write


@pytest.fixture(scope="session")
def foreign(foreign_folder: Path) -> BPE:
    return BPE.from_files(foreign_folder / "vocab.json", foreign_folder / "merges.txt")


@pytest.fixture(scope="session")
def foreign_engine(foreign_folder: Path) -> PreTrainedTokenizerBase:
    """transformers over the engine's own file, without a line of ours."""
    return PreTrainedTokenizerFast(tokenizer_file=str(foreign_folder / "engine" / "tokenizer.json"))


@pytest.fixture(params=["gpt2", "bpe"])
def byte_level(request: pytest.FixtureRequest, foreign: BPE) -> BPE:
    return gpt2() if request.param == "gpt2" else foreign
