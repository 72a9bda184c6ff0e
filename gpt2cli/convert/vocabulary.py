"""The tokenizer of a checkpoint whose file, like PyTorch's, holds none.

`tokenizer/files.py` reads and writes tokenizer files.
"""

import os
from pathlib import Path

from gpt2cli.checkpoints.folder import fits_rows
from gpt2cli.errors import InputError
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.files import PAIRS, TOKENIZER_JSON, load_tokenizer


def tokenizer_for(path: Path, n_rows: int) -> tuple[Tokenizer, tuple[Path, ...], list[str]]:
    """The tokenizer of the model at `path`, whose embedding has `n_rows`; its files; what to say of it.

    One that lies beside the model and fits goes first, then GPT-2's. It fits with as many tokens as
    there are rows, or with so many that the rows are the next round number. Raises InputError else.
    """
    files = tokenizer_files(path.parent)
    beside = [load_tokenizer(path.parent)] if files else []
    for tokenizer in (*beside, gpt2()):
        if fits_rows(tokenizer.n_vocab, n_rows):
            taken = files if tokenizer in beside else ()
            return tokenizer, taken, _notes(tokenizer, n_rows, taken)
    raise InputError(
        f"{path}: the model has {n_rows} tokens, and no tokenizer with as many is known",
        f"the one beside it has {beside[0].n_vocab}, GPT-2's {gpt2().n_vocab}"
        if beside
        else "the file holds none; characters of nanoGPT are in a meta.pkl, a pickle that is not opened,"
        " and lack the <|endoftext|> that models have here",
        "put its tokenizer.json, or vocab.json and merges.txt, beside the file;"
        " characters are trained here by: gpt2 pretrain shakespeare-char",
    )


def cut_note(n_vocab: int, n_rows: int) -> list[str]:
    """The note about padding that was cut off, if there was any."""
    if n_rows == n_vocab:
        return []
    n_cut = n_rows - n_vocab
    return [f"{n_cut} rows of the embedding from {n_vocab} on stand for no token and were cut off"]


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files that `load_tokenizer` would read."""
    for names in ((TOKENIZER_JSON,), *PAIRS):
        found = tuple(folder / name for name in names if os.path.lexists(folder / name))
        if found:
            return found
    return ()


def _notes(tokenizer: Tokenizer, n_rows: int, files: tuple[Path, ...]) -> list[str]:
    names = " and ".join(file.name for file in files)
    of = f"the tokenizer beside it ({names})" if files else "GPT-2's tokenizer"
    taken = f"the file holds no tokenizer: {of} is taken, {tokenizer.n_vocab} tokens"
    return [taken, *cut_note(tokenizer.n_vocab, n_rows)]
