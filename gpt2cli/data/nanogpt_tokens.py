"""nanoGPT's token files, train.bin and val.bin, as a prepared folder: GPT-2's ids, or characters by meta.pkl.

meta.pkl is a pickle, which is a program. Only one that builds tables of texts and numbers is read; what
would import or call anything is refused before it runs.
"""

import contextlib
import hashlib
import io
import pickle
import pickletools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2cli import files, paths
from gpt2cli.data.input_files import NANOGPT, TextSource, is_nanogpt
from gpt2cli.data.manifest import PrepareSettings, SourceRecord, WriterState, was_made_by_prepare
from gpt2cli.data.shards import Ids, ShardWriter, dtype_for, to_shard_dtype
from gpt2cli.errors import InputError, UsageError
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.chars import Chars

META = "meta.pkl"
LARGEST_META = 1 << 24  # bytes; that of all of Unicode has a quarter
_ON_DISK = np.dtype("<u2")
# The codes of pickle that build texts, numbers and containers, and neither import nor call.
_PLAIN_CODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"),
    *("GET", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2"),
    *("LONG", "LONG1", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
}


def nanogpt_sources(folder: Path) -> list[TextSource]:
    """Its two files, the second held out."""
    return [
        TextSource(str(folder / name), folder / name, "nanogpt", held_out=name == NANOGPT[1])
        for name in NANOGPT
    ]


def nanogpt_folder(
    sources: Sequence[str | Path], settings: PrepareSettings, validation_sources: Sequence[str | Path]
) -> Path | None:
    """The folder of nanoGPT's token files, if that is the source. Raises UsageError for what tokens cannot
    be given any more.
    """
    folder = paths.expand(str(sources[0])) if len(sources) == 1 else None
    if not folder or not folder.is_dir() or was_made_by_prepare(folder) or not is_nanogpt(folder):
        return None
    asked = {
        "validation sources": bool(validation_sources),
        "an encoding": settings.encoding != PrepareSettings.encoding,
        "a rule that splits text": bool(settings.split_on or settings.per_line or settings.blank_line),
    }
    if what := next((name for name, is_so in asked.items() if is_so), ""):
        raise UsageError(
            f"{folder}: holds tokens, which cannot have {what}",
            "val.bin is its validation split",
            "leave that out",
        )
    return folder


def require_nanogpt_tokenizer(folder: Path, asked: str, base: Tokenizer | None) -> Tokenizer:
    """GPT-2's tokenizer, or the characters of meta.pkl. Raises UsageError if another is `asked` for or the
    base model has another, InputError for a meta.pkl of another kind.
    """
    characters = _characters(folder)
    found: Tokenizer = Chars.from_text(characters) if characters else gpt2()
    if asked not in ("gpt2", found.name) and not base:  # "gpt2" is asked for by default
        raise UsageError(
            f"{folder}: its tokens are not those of the tokenizer {asked}",
            f"without a {META} they are GPT-2's, with one they are characters",
            "leave the tokenizer out: --tokenizer gpt2, in a recipe data.tokenizer=null",
        )
    if base and base.fingerprint != found.fingerprint:
        raise UsageError(
            f"{folder}: its tokens are those of another tokenizer than the base model's",
            f"it has {found.n_vocab:,} tokens, the model {base.n_vocab:,}",
            "give the text itself: data.source=TEXT.txt",
        )
    return found


class TokenImport:
    """Reads the token files into the shards of a prepared folder; `blocks` does the work."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.n_bytes = self.n_documents = self.n_read = 0
        self.sources: list[SourceRecord] = []
        self._lengths = np.array([len(tokenizer.decode_bytes([i])) for i in range(tokenizer.n_vocab)])
        self._lengths[tokenizer.end_of_text] = 0
        characters = _characters(folder)
        self._ours = np.array([tokenizer.id_of(c) for c in characters], np.int64) if characters else None

    def write(self, out: Path, shard_tokens: int) -> Iterator[tuple[WriterState, WriterState]]:
        """Write both splits; yields their states after each block, finished at the last."""
        dtype = dtype_for(self.tokenizer.n_vocab)
        states: list[WriterState] = [WriterState(), WriterState()]
        for number, (source, split) in enumerate(
            zip(nanogpt_sources(self.folder), ("train", "validation"), strict=True)
        ):
            assert source.path
            with contextlib.closing(ShardWriter(out, split, dtype, shard_tokens, WriterState())) as writer:
                digest, n_read, last = hashlib.sha256(), 0, -1
                with files.open_regular(source.path) as file:
                    while block := file.read(files.CHUNK):
                        if len(block) % 2:
                            fix = "fetch the file again, or write it again with nanoGPT's prepare.py"
                            raise InputError(
                                f"{source.path}: ends within a token", "each takes two bytes", fix
                            )
                        digest.update(block)
                        ids = self._checked(
                            np.frombuffer(block, _ON_DISK).astype(np.int64), source.path, n_read
                        )
                        writer.write(to_shard_dtype(ids, dtype, self.tokenizer.n_vocab))
                        n_read += len(block)
                        self.n_read += len(block)
                        self.n_bytes += int(self._lengths[ids].sum())
                        self.n_documents += int((ids == self.tokenizer.end_of_text).sum())
                        last = int(ids[-1])
                        states[number] = writer.state
                        yield states[0], states[1]
                self.n_documents += last not in (-1, self.tokenizer.end_of_text)
                writer.finish()
                states[number] = writer.state
                self.sources.append(
                    SourceRecord(source.name, source.kind, n_read, digest.hexdigest(), source.held_out)
                )
        yield states[0], states[1]

    def _checked(self, ids: Ids, path: Path, n_before: int) -> Ids:
        if not n_before and len(ids) >= 64 and not ids[1::2].any() and ids.any():
            fix = "write them as numpy.uint16, as nanoGPT's prepare.py does"
            raise InputError(f"{path}: has four bytes for each token", "nanoGPT's have two", fix)
        n_known = self.tokenizer.n_vocab if self._ours is None else len(self._ours)
        if int(ids.max()) >= n_known:
            place = int(np.argmax(ids >= n_known))
            has_meta = self._ours is not None
            raise InputError(
                f"{path}: token {n_before // 2 + place:,} is {int(ids[place])}",
                f"the vocabulary {f'of {META}' if has_meta else 'of GPT-2'} has {n_known:,} tokens",
                "it was made with another meta.pkl"
                if has_meta
                else f"put the {META} it was made with beside it",
            )
        return ids if self._ours is None else self._ours[ids]


def _characters(folder: Path) -> list[str]:
    """The characters of meta.pkl in the order of nanoGPT's ids; none without it."""
    path = folder / META
    if not path.exists():
        return []
    itos = _read_plain_pickle(path).get("itos")
    n = len(itos) if isinstance(itos, dict | list) else 0
    try:
        found = [itos[i] for i in range(n)]  # type: ignore[index]
    except (KeyError, TypeError, IndexError):
        found = []
    if (
        not found
        or len(set(map(str, found))) < n
        or not all(isinstance(c, str) and len(c) == 1 for c in found)
    ):
        raise InputError(
            f"{path}: holds no table of characters",
            'nanoGPT writes {"itos": {0: "a", ...}}',
            "prepare the text itself: gpt2 prepare input.txt --tokenizer chars --out OUT",
        )
    return found


def _read_plain_pickle(path: Path) -> dict[Any, Any]:
    """A pickled table of texts and numbers. Raises InputError for anything else, which is never run."""
    with files.open_regular(path) as file:
        data = file.read(LARGEST_META + 1)
    fix = "prepare the text that the tokens were made from"
    if len(data) > LARGEST_META:
        raise InputError(f"{path}: is larger than {LARGEST_META >> 20} MiB", "no alphabet is near that", fix)
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name not in _PLAIN_CODES:
                raise InputError(f"{path}: wants to run code ({code.name})", "a vocabulary is a table", fix)
            if code.name.endswith("PUT") and not 0 <= int(argument or 0) <= len(data):
                raise ValueError("a memo beyond the file")
        value = _NothingToCall(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, ValueError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is damaged", f"not a readable pickle: {error}"[:200], fix) from None
    except (MemoryError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: is damaged", f"it claims too much: {type(error).__name__}", fix) from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: is no table", f"it is a {type(value).__name__}", fix)
    return value


class _NothingToCall(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it wants {module}.{name}")
