"""A language model from any folder of gpt2cli or Hugging Face: whole, or with adapters over its base."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpt2cli.checkpoints.folder import LoadedModel, load_model
from gpt2cli.convert.merge_lora import find_base, load_merged
from gpt2cli.convert.vocabulary import tokenizer_files
from gpt2cli.paths import is_adapter
from gpt2cli.templates import TEMPLATE_FILE
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import BPE
from gpt2cli.tokenizer.files import load_tokenizer


def open_model(
    folder: Path,
    adapters: Sequence[Path] = (),
    *,
    attention: str = "sdpa",
    remembered: bool = False,
) -> LoadedModel:
    """The model of a folder, in fp32 and evaluation mode, on the CPU; `folder.load_model` has the options.

    An adapter's folder gives the model that it was trained over, with the adapter added into its
    weights; so are further `adapters`. With any, `LoadedModel.folder` is the first adapter that has a
    chat template, else the model if it has one, else the first adapter.
    Raises InputError if a file is missing or damaged, where an adapter's base is not found, and for
    adapters that do not belong to the model.
    """
    base = folder
    if is_adapter(folder):
        base, adapters = find_base(folder), (folder, *adapters)
    if not adapters:
        return load_model(folder, attention=attention, remembered=remembered)
    loaded = load_merged(base, adapters, attention=attention, remembered=remembered)
    templates = [place for place in (*adapters, folder) if (place / TEMPLATE_FILE).exists()]
    first = (templates or adapters)[0]
    return replace(loaded, folder=first, tokenizer=_with_own_tokens(first, loaded.tokenizer))


def _with_own_tokens(folder: Path, tokenizer: Tokenizer) -> Tokenizer:
    """The base's tokenizer; where the adapter's folder holds the same vocabulary, its end tokens count."""
    if folder.is_dir() and tokenizer_files(folder):
        own = load_tokenizer(folder)
        if isinstance(own, BPE) and isinstance(tokenizer, BPE) and own.tokens == tokenizer.tokens:
            return own
    return tokenizer
