"""A language model from any folder of gpt2cli or Hugging Face: whole, or with adapters over its base."""

from collections.abc import Sequence
from pathlib import Path

from gpt2cli.checkpoints.folder import LoadedModel, load_model
from gpt2cli.convert.merge_lora import find_base, load_merged
from gpt2cli.paths import is_adapter


def open_model(
    folder: Path,
    adapters: Sequence[Path] = (),
    *,
    attention: str = "sdpa",
    dropout: float | None = None,
    remembered: bool = False,
) -> LoadedModel:
    """The model of a folder, in fp32 and evaluation mode, on the CPU; `folder.load_model` has the options.

    An adapter's folder gives the model that it was trained over, with the adapter added into its
    weights; so are further `adapters`. Raises InputError if a file is missing or damaged, where an
    adapter's base is not found, and for adapters that do not belong to the model.
    """
    if is_adapter(folder):
        folder, adapters = find_base(folder), (folder, *adapters)
    if adapters:
        return load_merged(folder, adapters, attention=attention, dropout=dropout, remembered=remembered)
    return load_model(folder, attention=attention, dropout=dropout, remembered=remembered)
