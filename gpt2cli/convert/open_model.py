"""A language model from any folder of gpt2cli or Hugging Face: whole, or an adapter over its base."""

from pathlib import Path

from gpt2cli.checkpoints.folder import LoadedModel, load_model
from gpt2cli.convert.merge_lora import load_merged
from gpt2cli.paths import is_adapter


def open_model(
    folder: Path, *, attention: str = "sdpa", dropout: float | None = None, remembered: bool = False
) -> LoadedModel:
    """The model of a folder, in fp32 and evaluation mode, on the CPU; `folder.load_model` has the options.

    An adapter's folder gives the model that it was trained over, with the adapter added into its
    weights. Raises InputError if a file is missing or damaged, and where an adapter's base is not found.
    """
    load = load_merged if is_adapter(folder) else load_model
    return load(folder, attention=attention, dropout=dropout, remembered=remembered)
