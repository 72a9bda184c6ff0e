"""The keys of a recipe, and "did you mean" for an unknown one."""

import difflib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.recipe.schema import RECIPES, Recipe, recipe_fields

# The names of these keys in other codebases.
OTHER_NAMES = {
    "optim.lr": ("learning_rate", "max_lr"),
    "optim.min_lr": ("min_learning_rate",),
    "optim.name": ("optimizer", "optimizer_name"),
    "optim.steps": ("max_iters", "max_steps", "epochs"),
    "optim.warmup_steps": ("warmup_iters",),
    "optim.clip": ("grad_clip", "max_grad_norm"),
    "batch.micro_batch": ("batch_size",),
    "batch.accumulation": ("gradient_accumulation_steps",),
    "model.context": ("block_size", "context_length", "n_positions"),
    "model.positions": ("position_embedding_type", "rope"),
    "model.dropout": ("drop_rate",),
    "eval.every": ("eval_interval",),
    "eval.tokens": ("eval_iters", "batches"),
    "init": ("init_from", "initial_checkpoint_dir", "model_name_or_path"),
    "log.every": ("log_interval",),
    "checkpoint.every": ("save_every",),
    "run.activation_checkpointing": ("recompute", "gradient_checkpointing"),
    "run.precision": ("dtype",),
    "run.shard": ("fsdp", "zero"),
    "data.source": ("dataset",),
}


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The types of a union, each without its Annotated."""
    for part in typing.get_args(annotation):
        yield typing.get_args(part)[0] if typing.get_origin(part) is typing.Annotated else part


@dataclass(frozen=True)
class RecipeKeys:
    """The dotted keys of one kind of recipe, in the schema's order."""

    kind: type[Recipe]

    @cached_property
    def all(self) -> list[str]:
        return [key for key, _, _ in recipe_fields(self.kind)]

    @cached_property
    def sections(self) -> list[str]:
        return list(dict.fromkeys(key.partition(".")[0] for key in self.all if "." in key))

    def takes_text(self, key: str) -> bool:
        """Whether any text is a value of the key, the empty one too."""
        fields: Any = self.kind.model_fields
        *section, name = key.split(".")
        for part in section:
            fields = fields[part].annotation.model_fields
        annotation = fields[name].annotation
        return str in (annotation, *_alternatives(annotation))

    def siblings(self, section: str) -> str:
        inside = [key.rpartition(".")[2] for key in self.all if key.rpartition(".")[0] == section]
        return ", ".join([*inside, *self.sections] if not section else inside)

    def unknown(self, where: str, key: str) -> UsageError:
        """The error for an unknown key, with the one that was probably meant."""
        section = key.rpartition(".")[0]
        section = section if section in self.sections else ""
        near = self.nearest(key)
        task = next(name for name, kind in RECIPES.items() if kind is self.kind)
        example = {"pretrain": "verdict", "finetune-classify": "spam", "finetune-instruct": "instruct"}[task]
        return UsageError(
            f"{where}: unknown key",
            f"the keys of {section or 'a recipe'} are {self.siblings(section)}",
            f"did you mean {near}?" if near else f"gpt2 recipes show {example}",
        )

    def nearest(self, key: str) -> str:
        """The key that was probably meant, or ''; its own section comes first."""
        section, _, word = key.rpartition(".")
        known = [*self.all, *self.sections]
        own = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
        elsewhere = {other: name for name in known for other in OTHER_NAMES.get(name, ())}
        last_words = {name.rpartition(".")[2]: name for name in reversed(known)}
        every = last_words | elsewhere | {name: name for name in self.all}
        if word in every:  # another program's name for it, or another section's key
            return every[word]
        for names, cutoff in ((own, 0.6), (every, 0.75)):
            if close := difflib.get_close_matches(word, names, 1, cutoff):
                return names[close[0]]
        return every.get(key, "")
