"""Training a vocabulary: byte-level BPE over a text, by the `tokenizers` library.

Its ids have GPT-2's order: the 256 bytes, the products of the merges, <|endoftext|>.
"""

import contextlib
import json
import queue
import re
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.errors import InputError, UsageError
from gpt2cli.files import sha256_of, write_json
from gpt2cli.json_files import read_json_object
from gpt2cli.tokenizer.base import END_OF_TEXT, SMALLEST, AddedToken
from gpt2cli.tokenizer.bpe import BPE
from gpt2cli.tokenizer.files import SPECIAL_MAP, TOKENIZER_JSON, added_entry, save_tokenizer
from gpt2cli.tokenizer.merges import CHARACTER_OF

MIN_FREQUENCY = 2  # a pair that occurs once teaches nothing; the default of ByteLevelBPETokenizer too
# Measured: 2 MB of memory per MB of code, and 100 MB per MB of random words, 0.8 KB for each distinct one.
# So both the text and its distinct words are bounded: about 1.6 GB at most.
MOST_BYTES = 1 << 27
MOST_WORDS = 2_000_000
PIECE = 1 << 14  # characters: `tokenizers` gathers 256 texts before it counts
FORMAT, VERSION, MANIFEST = "gpt2cli tokenizer", 1, "manifest.json"

_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]+")  # nearly GPT-2's words, to count the distinct ones


@dataclass(frozen=True)
class VocabularyProgress:
    """`n_bytes` of text are read, and `tokenizer` is the result, in the last item alone."""

    n_bytes: int
    is_merging: bool = False
    is_cut: bool = False  # the text had more words than MOST_WORDS; the rest was left out
    tokenizer: BPE | None = None


def require_size(size: int, name: str) -> None:
    """Raise UsageError for a vocabulary that has no room for the bytes. `name`: the option."""
    if size < SMALLEST:
        raise UsageError(
            f"{name}{size}: a vocabulary has at least {SMALLEST} tokens",
            f"the 256 bytes and {END_OF_TEXT}; merges come on top",
            f"{name}8192",
        )


def train_bpe(texts: Iterable[str], size: int) -> Generator[VocabularyProgress, None, None]:
    """Learn a vocabulary of `size` tokens from texts, fewer if they repeat too little.

    Deterministic: the number of threads and the order of texts do not matter, but where texts are cut does.
    Runs in a thread of its own, because the library lets no signal through.
    """
    pieces: queue.Queue[str | None] = queue.Queue(64)
    result: list[Any] = []

    def work() -> None:
        try:
            result.append(_train(iter(pieces.get, None), size))
        except BaseException as error:  # noqa: BLE001 - raised again where the caller waits
            result.append(error)

    thread = threading.Thread(target=work, daemon=True, name="vocabulary")
    thread.start()
    n_bytes, words, is_cut = 0, set[str](), False
    try:
        for text in texts:
            words.update(_WORD.findall(text))
            if is_cut := len(words) > MOST_WORDS:
                break
            _put(pieces, text, thread)
            n_bytes += len(text.encode("utf-8", "replace"))
            yield VocabularyProgress(n_bytes)
    finally:
        _put(pieces, None, thread)
    words.clear()
    while thread.is_alive():
        yield VocabularyProgress(n_bytes, is_merging=True, is_cut=is_cut)
        thread.join(0.2)
    (found,) = result
    if isinstance(found, BaseException):
        raise found
    yield VocabularyProgress(n_bytes, is_cut=is_cut, tokenizer=found)


def _put(pieces: "queue.Queue[str | None]", text: str | None, thread: threading.Thread) -> None:
    while thread.is_alive():
        with contextlib.suppress(queue.Full):
            pieces.put(text, timeout=1)
            return


def _train(texts: Iterator[str], size: int) -> BPE:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=sorted(CHARACTER_OF.values()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*CHARACTER_OF.values(), *(left + right for left, right in merges)]
    end = AddedToken(len(tokens), END_OF_TEXT)
    vocab = {token: id for id, token in enumerate(tokens)}
    return BPE.from_vocabulary(vocab, merges, [end], "the new vocabulary")


def save_trained(tokenizer: BPE, folder: Path, facts: dict[str, Any]) -> None:
    """Write a Hugging Face tokenizer folder, with a manifest by which `is_trained` knows it again."""
    names = save_tokenizer(tokenizer, folder)
    write_json(folder / TOKENIZER_JSON, _tokenizer_json(tokenizer))
    write_json(folder / SPECIAL_MAP, dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT))
    names += [TOKENIZER_JSON, SPECIAL_MAP]
    files = {name: sha256_of(folder / name) for name in sorted(names)}
    write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, **facts, "files": files})


def is_trained(folder: Path) -> bool:
    """Whether the folder holds what `save_trained` wrote, and nothing else."""
    try:
        manifest = read_json_object(folder / MANIFEST)
    except InputError:
        return False
    listed = manifest.get("files")
    known = {MANIFEST, *(listed if isinstance(listed, dict) else ())}
    return manifest.get("format") == FORMAT and known.issuperset(path.name for path in folder.iterdir())


def _tokenizer_json(tokenizer: BPE) -> dict[str, Any]:
    """As the `tokenizers` library writes one for GPT-2."""
    apart = {token.id for token in tokenizer.added}
    names = [tokenizer.spelling(id) for id in range(tokenizer.n_vocab)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token.id, **added_entry(token)} for token in tokenizer.added],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: id for id, name in enumerate(names) if id not in apart},
            "merges": [[names[left], names[right]] for left, right in tokenizer.merges],
        },
    }
