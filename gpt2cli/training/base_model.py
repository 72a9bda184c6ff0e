"""The model that a fine-tune starts from: a recipe's `init` becomes a config, a tokenizer and weights."""

import contextlib
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2cli import paths
from gpt2cli.checkpoints.folder import WEIGHTS, load_model, read_config, read_manifest
from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.recipe.schema import FinetuneRecipe
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import gpt2
from gpt2cli.tokenizer.files import load_tokenizer

SCRATCH = "scratch"


@dataclass(frozen=True)
class FinetuneBase:
    """A language model to start from; `model` reads its weights."""

    config: GPT2Config
    tokenizer: Tokenizer
    folder: Path | None  # None: random weights
    seed: int

    @property
    def name(self) -> str:
        return str(self.folder) if self.folder else SCRATCH

    @property
    def sha256(self) -> str:
        """Of the weights, or of what random ones follow from; part of a run's identity."""
        if self.folder is None:
            return hashlib.sha256(f"{self.config} {self.seed}".encode()).hexdigest()
        return read_manifest(self.folder).get(WEIGHTS) or sha256_of(self.folder / WEIGHTS)

    def model(self, attention: str) -> GPT2LMHead:
        """The language model on the CPU, in fp32."""
        if self.folder is None:
            return new_model(self.config, self.seed, attention)
        return load_model(self.folder, attention=attention, dropout=self.config.dropout).model


def find_base(recipe: FinetuneRecipe) -> FinetuneBase:
    """Resolve `recipe.init`. Raises InputError, with the alternatives, if that model does not exist."""
    dropout = recipe.model.dropout
    if recipe.init == SCRATCH:
        return FinetuneBase(recipe.model.config(gpt2().n_vocab), gpt2(), None, recipe.seed)
    try:
        folder = newest_base() if recipe.init == paths.NEWEST else paths.find_model(recipe.init)
        config, tokenizer = read_config(folder), load_tokenizer(folder)
    except InputError as error:
        raise InputError(
            f"init: {error.what}",
            error.why,
            f"{error.fix}; or start from another model: init=newest, init=runs/NAME, init={SCRATCH}",
        ) from None
    return FinetuneBase(replace(config, dropout=dropout), tokenizer, folder, recipe.seed)


def newest_base() -> Path:
    """The newest language model; classifiers and adapters do not count.

    Raises InputError if there is none.
    """
    for folder in paths.models_newest_first():
        with contextlib.suppress(InputError):  # another kind of model, or damaged
            read_config(folder)
            return folder
    raise InputError(
        "there is no language model here yet",
        f"neither {paths.runs()} nor {paths.models()} holds one",
        "gpt2 pretrain verdict",
    )
