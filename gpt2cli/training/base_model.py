"""The model that a run starts from: a recipe's `init` becomes a config, a tokenizer and weights."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gpt2cli import paths
from gpt2cli.checkpoints.folder import (
    CONFIG,
    EMBEDDING,
    HEAD,
    WEIGHTS,
    load_model,
    read_config,
    read_manifest,
)
from gpt2cli.checkpoints.lora_adapter import CLASSIFIER, LANGUAGE_MODEL
from gpt2cli.convert.merge_lora import find_base as base_of_adapter
from gpt2cli.errors import InputError, UsageError
from gpt2cli.files import sha256_of
from gpt2cli.json_files import read_json_object
from gpt2cli.model.config import GPT2Config, from_hugging_face
from gpt2cli.model.gpt2 import GPT2LMHead, empty_model, new_model
from gpt2cli.recipe.schema import SCRATCH, FinetuneRecipe, PretrainRecipe, Recipe
from gpt2cli.recipe.sections import ModelConfig
from gpt2cli.tokenizer.base import AddedToken, Tokenizer, is_made_of_text
from gpt2cli.tokenizer.bpe import BPE, gpt2
from gpt2cli.tokenizer.files import load_tokenizer, stopping_at_eos
from gpt2cli.training.train_state import read_state


@dataclass(frozen=True)
class BaseLM:
    """A language model to start from; `model` reads its weights."""

    config: GPT2Config  # its context may be shorter than the folder's
    tokenizer: Tokenizer
    folder: Path | None  # None: random weights
    seed: int
    recorded: str = ""  # of the weights a run began with, where `folder` is that run's own checkpoint
    notice: str = ""  # sentences for the user: what becomes of several dropout rates, and new tokens

    @property
    def name(self) -> str:
        return str(self.folder) if self.folder else SCRATCH

    @property
    def sha256(self) -> str:
        """Hash of the weights, or of what determines random ones; part of a run's identity."""
        if self.recorded:
            return self.recorded
        if self.folder is None:
            positions = self.config.positions if self.config.positions != GPT2Config.positions else ""
            return hashlib.sha256(f"{self.config} {self.seed}{positions}".encode()).hexdigest()
        return read_manifest(self.folder).get(WEIGHTS) or sha256_of(self.folder / WEIGHTS)

    def model(self, attention: str) -> GPT2LMHead:
        """The language model on the CPU, in fp32."""
        if self.folder is None:
            return new_model(self.config, self.seed, attention)
        loaded = load_model(self.folder, attention=attention, dropout=self.config.dropout).model
        grown = grow_vocabulary(loaded, self.config.vocab_size, attention)
        return cut_context(grown, self.config.n_positions, attention)


def find_base(recipe: FinetuneRecipe | PretrainRecipe) -> BaseLM:
    """Resolve `recipe.init`. Raises InputError, with the alternatives, if that model does not exist."""
    dropout = recipe.model.dropout
    if recipe.init == SCRATCH:
        return add_tokens(random_weights(recipe, gpt2()), recipe.tokenizer.add)
    try:
        is_newest = recipe.init == paths.NEWEST
        folder = newest_base() if is_newest else paths.find_model(recipe.init, paths.is_whole_language_model)
        config, tokenizer = read_config(folder), stopping_at_eos(load_tokenizer(folder))
    except InputError as error:
        raise InputError(
            f"init: {error.what}",
            f"{error.why}; other starts are init=newest, init=runs/NAME and init={SCRATCH}",
            error.fix,
        ) from None
    rates, notice = config.dropouts, ""
    if len(set(rates.values())) > 1:
        theirs = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        notice = f"the dropout rate is {dropout:g} everywhere (model.dropout); {recipe.init} has {theirs}"
    if recipe.model.positions not in (None, config.positions):
        raise UsageError(
            f"model.positions is {recipe.model.positions}, but init={recipe.init} has {config.positions}",
            "a model keeps the positions that it was trained with",
            f"model.positions={config.positions}",
        )
    base = BaseLM(config.with_dropout(dropout), tokenizer, folder, recipe.seed, notice=notice)
    return add_tokens(base, recipe.tokenizer.add)


def add_tokens(base: BaseLM, texts: Sequence[str]) -> BaseLM:
    """The base with a new token for each of the texts that its vocabulary lacks. Raises UsageError for a
    vocabulary of characters.
    """
    tokenizer = base.tokenizer
    new = [text for text in dict.fromkeys(texts) if tokenizer.id_of(text) is None]
    if not new:
        return base
    if not isinstance(tokenizer, BPE):
        raise UsageError(
            f"tokenizer.add: {base.name} is a character model",
            "each of its tokens is one character",
            "tokenizer.add=[]",
        )
    first = tokenizer.n_vocab
    grown = tokenizer.with_added(
        [AddedToken(first + i, text, is_control=False) for i, text in enumerate(new)]
    )
    said = (
        f"new tokens, whose embeddings begin at the mean of all others: {', '.join(new)}, from id {first} on"
    )
    notice = f"{base.notice}; {said}" if base.notice else said
    config = replace(base.config, vocab_size=grown.n_vocab)
    return replace(base, config=config, tokenizer=grown, notice=notice)


def base_of_run(recipe: Recipe, checkpoint: Path | None) -> BaseLM:
    """The base of a run: what `init` means, or on a resume from `checkpoint` the model that it meant.

    A run that `init` names may have gone on and have other weights by now. Adapters then need the
    checkpoint that they were trained over. Any other run needs its base only once: a resume takes the
    shape and the tokenizer from its own checkpoint. Raises InputError as `find_base`.
    """
    if checkpoint is None:
        return find_base(recipe)
    recorded = read_state(checkpoint)[1].get("init")
    base = problem = None
    try:
        base = find_base(recipe)
    except InputError as error:
        problem = error
    if base and (base.folder is None or base.sha256[:16] == recorded):
        return base
    if base and base.folder and not paths.is_checkpoint(base.folder.resolve()):
        return base  # other weights, which is refused
    if recipe.train != "lora":
        config = from_hugging_face(read_json_object(checkpoint / CONFIG))
        config = config.with_dropout(recipe.model.dropout)
        tokenizer = stopping_at_eos(load_tokenizer(checkpoint))
        return BaseLM(config, tokenizer, checkpoint, recipe.seed, str(recorded))
    for adapter, kind in ((checkpoint, LANGUAGE_MODEL), (checkpoint / paths.ADAPTER, CLASSIFIER)):
        if paths.is_adapter(adapter):
            folder = base_of_adapter(adapter, kind)
            config = read_config(folder).with_dropout(recipe.model.dropout)
            return BaseLM(config, stopping_at_eos(load_tokenizer(folder)), folder, recipe.seed)
    if problem:
        raise problem
    assert base
    return base


def random_weights(recipe: FinetuneRecipe | PretrainRecipe, tokenizer: Tokenizer) -> BaseLM:
    """The start of `init: scratch`."""
    return BaseLM(recipe.model.config(tokenizer.n_vocab), tokenizer, None, recipe.seed)


def base_to_train_further(
    recipe: PretrainRecipe, checkpoint: Path | None
) -> tuple[PretrainRecipe, BaseLM | None, tuple[str, ...]]:
    """The base of a pretraining recipe, None for random weights; the recipe that this means, and notices.

    The base determines the model's shape and the tokenizer; of `model`, context and dropout count.
    A run that trains all weights needs its base only once: a resume takes the run's own `checkpoint`.
    Raises UsageError for a context beyond the base's, InputError as `find_base`.
    """
    if recipe.init == SCRATCH:
        return recipe, None, ()
    again = checkpoint is not None and recipe.train == "all"
    base = (
        find_base(recipe.model_copy(update={"init": str(checkpoint)}))
        if again
        else base_of_run(recipe, checkpoint)
    )
    asked, longest = recipe.model, base.config.n_positions
    context = asked.context or longest
    if context > longest:
        raise UsageError(
            f"model.context is {context}, but init={recipe.init} ends at {longest}",
            "positions beyond that were never trained",
            f"model.context={longest}",
        )
    notices = [base.notice] if base.notice else []
    if context < longest:
        notices.append(f"the context of {recipe.init} is cut from {longest} to {context} positions")
    shape = {
        "n_layer": asked.n_layer,
        "n_head": asked.n_head,
        "n_embd": asked.n_embd,
        "n_inner": asked.n_inner,
    }
    if asked.size:
        wanted = asked.config(base.config.vocab_size)
        shape = {"n_layer": wanted.n_layer, "n_head": wanted.n_head, "n_embd": wanted.n_embd}
    found = {"n_inner": base.config.mlp_width} | {name: getattr(base.config, name) for name in shape}
    if other := [
        f"{name} {found[name]}" for name, value in shape.items() if value not in (None, found[name])
    ]:
        notices.append(f"the model's shape is that of {recipe.init}, not the recipe's: {', '.join(other)}")
    named = recipe.data.tokenizer
    if named and _is_folder(named):
        _require_same_tokenizer(recipe, base)
    elif named not in (None, base.tokenizer.name, f"{base.tokenizer.name}-{base.tokenizer.n_vocab}"):
        notices.append(
            f"the tokenizer is that of {recipe.init}, {base.tokenizer.name}, not the recipe's {named}"
        )
    meant = recipe.model_copy(
        update={
            "model": ModelConfig(context=context, dropout=asked.dropout),
            "data": recipe.data.model_copy(update={"tokenizer": None}),
        }
    )
    return meant, replace(base, config=replace(base.config, n_positions=context)), tuple(notices)


def _is_folder(tokenizer: str) -> bool:
    return tokenizer != "gpt2" and not is_made_of_text(tokenizer)


def _require_same_tokenizer(recipe: PretrainRecipe, base: BaseLM) -> None:
    """Raise UsageError if the recipe's tokenizer folder holds another one than the base has."""
    folder = paths.expand(str(recipe.data.tokenizer))
    if folder.is_dir() and load_tokenizer(folder).fingerprint != base.tokenizer.fingerprint:
        raise UsageError(
            f"data.tokenizer is {folder}, but init={recipe.init} has another tokenizer",
            "a model knows the tokens that it was trained on, and no others",
            f"data.tokenizer=null keeps that of {recipe.init}, init={SCRATCH} the folder's",
        )


def cut_context(model: GPT2LMHead, n_positions: int, attention: str = "sdpa") -> GPT2LMHead:
    """The model with the first `n_positions` of its position embeddings."""
    if n_positions == model.config.n_positions:
        return model
    state = model.state_dict()
    if model.config.positions == "learned":
        state["transformer.wpe.weight"] = state["transformer.wpe.weight"][:n_positions].clone()
    with torch.no_grad():
        shorter = empty_model(replace(model.config, n_positions=n_positions), attention)
        shorter.load_state_dict(state, assign=True)
        shorter.tie()
    return shorter.train(model.training)


def grow_vocabulary(model: GPT2LMHead, n_tokens: int, attention: str = "sdpa") -> GPT2LMHead:
    """The model with a row of the embedding for each new token, and of the output layer: the mean of the
    others, so that a new token is as likely as an average one (Hewitt 2021).
    """
    n_new = n_tokens - model.config.vocab_size
    if n_new == 0:
        return model
    state = model.state_dict()
    for name in dict.fromkeys((EMBEDDING, HEAD)):
        rows = state[name]  # (V, C)
        state[name] = torch.cat([rows, rows.mean(dim=0, keepdim=True).expand(n_new, -1)])
    with torch.no_grad():
        larger = empty_model(replace(model.config, vocab_size=n_tokens), attention)
        larger.load_state_dict(state, assign=True)
        larger.tie()
    return larger.train(model.training)


def newest_base() -> Path:
    """The newest language model; classifiers and adapters do not count.

    Raises InputError if there is none, NewerFormatError for one of a later version: an older one would
    be a surprise.
    """
    for folder in paths.models_newest_first():
        with contextlib.suppress(InputError):  # another kind of model, or damaged
            read_config(folder)
            return folder
    raise InputError(
        "there is no language model here yet",
        f"neither {paths.shown_places('nor')} holds one",
        "gpt2 pretrain verdict",
    )
