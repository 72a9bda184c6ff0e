"""The text that models are evaluated on: the documents of files, or one split of a prepared folder.

Encoded, its first token is context alone and all others are targets. An end-of-text precedes each
document, as in training, so that all of its tokens count; the tokens of a split are taken as they are.
"""

import os
import shlex
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gpt2cli.data.byte_source import ReadOptions, joined_digest
from gpt2cli.data.corpora import find_corpora
from gpt2cli.data.input_files import TextSource, expand_sources
from gpt2cli.data.manifest import TokenManifest, was_made_by_prepare
from gpt2cli.data.text_fields import TEXT
from gpt2cli.data.text_reader import SourceReader, SplitRule
from gpt2cli.data.token_dataset import TokenDataset, open_dataset
from gpt2cli.errors import InputError, UsageError
from gpt2cli.paths import checkpoints, has_home, is_model, prepared
from gpt2cli.tokenizer.base import Tokenizer, begin

READ_TOKENS = 1 << 20  # of a split at a time

Split = Literal["train", "validation"]
Int32s = np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(frozen=True)
class EncodedText:
    """Token ids (N,): the first is context alone, the others are the targets.

    Words, separated by whitespace, and UTF-8 bytes are those of the targets' text; an end-of-text has none.
    """

    ids: Int32s
    n_words: int
    n_bytes: int

    @property
    def n_targets(self) -> int:
        return len(self.ids) - 1


@dataclass(frozen=True)
class EvalText:
    """Documents to encode, or the ids of a prepared split with the manifest of its folder.

    `sha256` is that of the file; of several files or shards, that of their hashes in hex, one after another.
    """

    name: str
    sha256: str
    is_corpus: bool  # of the table of corpora, not a path
    documents: tuple[str, ...] = ()
    split: Split | None = None
    prepared: EncodedText | None = None
    manifest: TokenManifest | None = None
    notes: tuple[str, ...] = ()  # what to say of the files

    def encoded(self, tokenizer: Tokenizer, model: str) -> EncodedText:
        """The ids for the tokenizer of `model`.

        Raises InputError for fewer than 2 tokens, for a character that the tokenizer does not know, and
        for a split that another tokenizer made.
        """
        if not self.manifest or not self.prepared:
            return encode_documents(self.documents, tokenizer, self.name)
        if tokenizer.fingerprint != self.manifest.fingerprint:
            raise _other_tokenizer(model, tokenizer, self.name, self.manifest)
        return self.prepared


def read_eval_text(
    on: str | Sequence[str],
    *,
    split: Split | None = None,
    text_fields: Sequence[str] = (),
    offline: bool = False,
    options: ReadOptions | None = None,
    rule: SplitRule | None = None,
) -> EvalText:
    """Read and check what `on` names: a corpus, files, globs, folders of texts, or a prepared folder.

    `split` is for a prepared folder, by default its validation split; `text_fields` are for records, by
    default "text"; `options` and `rule` say how files are read and split. Raises UsageError where they do
    not apply, InputError for text that cannot be read, ServiceError for a corpus that cannot be downloaded.
    """
    names = [on] if isinstance(on, str) else list(on)
    on = ", ".join(names)
    found = find_corpora(names, offline=offline, allow_bundled=False)
    path, is_corpus = found.paths[0], found.origin != "path"
    if not is_corpus and was_made_by_prepare(path):
        if text_fields:
            raise UsageError(f"--text-field: {on} holds tokens, not records", fix="leave --text-field out")
        if rule and rule != SplitRule():
            raise UsageError(f"--split-on: {on} holds tokens, not text", fix="leave it out")
        return _read_split(path, on, split or "validation")
    if split:
        raise UsageError(
            f"--split {split}: {on} is not a prepared folder",
            "a text has no splits and is measured whole",
            "leave --split out, or name a folder made by `gpt2 prepare`",
        )
    if is_model(path) or checkpoints(path):
        raise InputError(
            f"{on}: is a model, not a text", "--on names the text", shlex.join(["gpt2", "evaluate", on])
        )
    sources = expand_sources(found.paths, out=prepared() if has_home() else Path(os.devnull))
    if text_fields and all(source.kind == "text" for source in sources):
        raise UsageError(f"--text-field: {on} is plain text without fields", fix="leave --text-field out")
    documents, hashes, notes = _read_documents(sources, text_fields or TEXT, options, rule)
    return EvalText(found.name, joined_digest(hashes), is_corpus, documents, notes=tuple(notes))


def encode_documents(documents: Iterable[str], tokenizer: Tokenizer, name: str) -> EncodedText:
    """Encode texts, with an end-of-text before each, or the tokenizer's own beginning. Raises InputError,
    which calls them `name`, for fewer than 2 tokens.
    """
    end_of_text = np.array(begin(tokenizer) or [tokenizer.end_of_text], np.int32)
    parts, n_words, n_bytes = [], 0, 0
    for document in documents:
        parts += [end_of_text, np.array(tokenizer.encode(document), np.int32)]
        n_words += len(document.split())
        n_bytes += len(document.encode("utf-8"))
    ids = np.concatenate(parts or [end_of_text])
    _require_tokens(len(ids) - 1, name, "choose a longer text: --on FILE")
    return EncodedText(ids, max(n_words, 1), n_bytes)


def encode_split(data: TokenDataset, split: Split, name: str) -> EncodedText:
    """The tokens of a split, as they are. Raises InputError, which calls its folder `name`, for fewer
    than 2 tokens.
    """
    tokens, other = (data.validation, "train") if split == "validation" else (data.train, "validation")
    _require_tokens(tokens.n_tokens, f"{name}, {split} split", f"--split {other}")
    ids = np.empty(tokens.n_tokens, np.int32)
    for start in range(0, len(ids), READ_TOKENS):
        n = min(READ_TOKENS, len(ids) - start)
        ids[start : start + n] = tokens.read(start, n)
    return EncodedText(ids, *_count_words_and_bytes(ids[1:], data.tokenizer))


def _require_tokens(n: int, name: str, fix: str) -> None:
    if n < 2:
        raise InputError(f"{name}: has {n} tokens", "perplexity needs at least 2", fix)


def _count_words_and_bytes(ids: Int32s, tokenizer: Tokenizer) -> tuple[int, int]:
    """Words and bytes of the text of `ids`, at least 1 of each. An end-of-text separates words."""
    end_of_text, no_text = tokenizer.end_of_text, [tokenizer.end_of_text, *begin(tokenizer)]
    n_words = n_bytes = 0
    for document in np.split(ids, np.flatnonzero(ids == end_of_text)):  # the end-of-text comes first
        data = tokenizer.decode_bytes(document[~np.isin(document, no_text)].tolist())
        n_words += len(data.decode("utf-8", "replace").split())
        n_bytes += len(data)
    return max(n_words, 1), max(n_bytes, 1)


def _read_documents(
    sources: Sequence[TextSource],
    text_fields: Sequence[str],
    options: ReadOptions | None,
    rule: SplitRule | None,
) -> tuple[tuple[str, ...], list[str], list[str]]:
    """The documents of all sources, the SHA-256 of each file, and what to say of them."""
    documents, hashes, notes = [], [], list[str]()
    for source in sources:
        with closing(SourceReader(source, text_fields, options, rule)) as reader:
            pieces: list[str] = []
            for piece in reader.pieces():
                pieces.append(piece.text)
                if piece.ends:
                    documents.append("".join(pieces))
                    pieces = []
            hashes.append(reader.digest)
            notes += reader.notes
    return tuple(documents), hashes, notes


def _read_split(folder: Path, on: str, split: Split) -> EvalText:
    with open_dataset(folder) as data:
        text, manifest = encode_split(data, split, on), data.manifest
    shards = manifest.train if split == "train" else manifest.validation
    sha256 = joined_digest([shard.sha256 for shard in shards])
    return EvalText(on, sha256, False, split=split, prepared=text, manifest=manifest)


def _other_tokenizer(model: str, tokenizer: Tokenizer, on: str, manifest: TokenManifest) -> InputError:
    """The error for a folder whose ids mean other text to the model; the text itself can be measured."""

    def named(name: str, n_vocab: int, fingerprint: str) -> str:
        return f"{name} with {n_vocab:,} tokens (fingerprint {fingerprint[:8]})"

    source = next((source for source in manifest.sources if os.path.isfile(source.path)), None)
    fix = "choose a model with the tokenizer of the folder"
    if source:
        fields = [word for field in manifest.settings.text_fields for word in ("--text-field", field)]
        words = ["gpt2", "evaluate", model, "--on", source.path, *(fields if source.kind != "text" else ())]
        fix = shlex.join(words)
    return InputError(
        f"{model}: its tokenizer is not the one that made {on}",
        f"the model has {named(tokenizer.name, tokenizer.n_vocab, tokenizer.fingerprint)}, the folder"
        f" {named(manifest.settings.tokenizer, manifest.n_vocab, manifest.fingerprint)}",
        fix,
    )
