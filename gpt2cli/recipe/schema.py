"""The schema of recipes, a class per task. Defaults are defined here and in `sections.py` alone."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from gpt2cli.recipe.data_sections import ClassifyDataConfig, DataConfig, InstructDataConfig
from gpt2cli.recipe.sections import (
    BatchConfig,
    CheckpointConfig,
    ClassifyEvalConfig,
    EvalConfig,
    InstructEvalConfig,
    LogConfig,
    LoraConfig,
    ModelConfig,
    NonEmptyText,
    OptimConfig,
    RecipeSection,
    RunConfig,
    TokenizerConfig,
    field_error,
)

SCRATCH = "scratch"  # an `init` of random weights


class CommonRecipe(RecipeSection):
    """The keys of every recipe."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=1337, description="of the initial weights, the batches and dropout"
    )
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    run: RunConfig = RunConfig()


def _require_growth(recipe: Any) -> None:
    """New tokens have new rows in the embedding, which must be trained and saved."""
    if recipe.tokenizer.add and recipe.train != "all":
        raise field_error("train", "must be all with tokenizer.add", "train=all")


def _require_matrices(recipe: Any) -> None:
    """Muon is for the matrices of blocks, and must find some that are trained whole."""
    if recipe.optim.name == "muon" and recipe.train in ("lora", "head"):
        must = f"must be adamw with train: {recipe.train}, which trains no matrix of a block"
        raise field_error("optim.name", must, "optim.name=adamw, or train=all")


class PretrainRecipe(CommonRecipe):
    """A language model, from random weights or from another model's."""

    task: Literal["pretrain"] = Field(description="what the recipe is for")
    init: NonEmptyText = Field(
        default=SCRATCH,
        description="scratch: random weights; or the model to train further: 124M or another size,"
        " newest, a run, a folder",
    )
    train: Literal["all", "lora"] = Field(
        default="all", description="trainable weights: all or LoRA adapters, which need an init"
    )
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()  # with an init, only context and dropout count
    lora: LoraConfig = LoraConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _can_begin(self) -> "PretrainRecipe":
        if self.init == SCRATCH and not self.model.has_shape:
            fix = "add `size: 124M`, or n_layer, n_head and n_embd; or start from a model: init=124M"
            raise field_error("model.size", "is missing", fix)
        if self.init == SCRATCH and self.train == "lora":
            raise field_error("train", "must be all for init: scratch", "init=124M, or train=all")
        if self.init == SCRATCH and self.tokenizer.add:
            raise field_error("tokenizer.add", "needs a model to add tokens to", "init=124M")
        _require_growth(self)
        _require_matrices(self)
        return self


class FinetuneRecipe(CommonRecipe):
    """The keys of both fine-tunes."""

    init: NonEmptyText = Field(
        description="124M or another size, newest, a run, a folder, or scratch: random weights"
    )
    # Its sizes count for init: scratch only, its dropout always.
    model: ModelConfig = ModelConfig(size="124M")
    tokenizer: TokenizerConfig = TokenizerConfig()
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _can_grow(self) -> Self:
        _require_growth(self)
        _require_matrices(self)
        return self


class ClassifyRecipe(FinetuneRecipe):
    """A classifier of texts from a language model."""

    task: Literal["finetune-classify"] = Field(description="what the recipe is for")
    data: ClassifyDataConfig
    train: Literal["head", "last-block", "all", "lora"] = Field(
        default="last-block",
        description="trainable weights: head | head + last block + ln_f | all | LoRA adapters",
    )
    eval: ClassifyEvalConfig = ClassifyEvalConfig()


class InstructRecipe(FinetuneRecipe):
    """An assistant from a language model."""

    task: Literal["finetune-instruct"] = Field(description="what the recipe is for")
    data: InstructDataConfig
    train: Literal["all", "lora"] = Field(
        default="all", description="trainable weights: all or LoRA adapters"
    )
    template: Literal["alpaca", "chat"] = Field(
        default="alpaca", description="prompt template of a record; saved with the model"
    )
    mask_prompt: bool = Field(default=True, description="whether only answers count in the loss")
    packing: bool = Field(default=False, description="whether records share a row, each attending to itself")
    eval: InstructEvalConfig = InstructEvalConfig()


_ORDER = (
    *("task", "seed", "init", "train", "template", "mask_prompt", "packing"),
    *("data", "tokenizer", "model", "lora", "batch", "optim", "eval", "log", "checkpoint", "run"),
)
Recipe = PretrainRecipe | ClassifyRecipe | InstructRecipe
RECIPES: dict[str, type[PretrainRecipe] | type[ClassifyRecipe] | type[InstructRecipe]] = {
    "pretrain": PretrainRecipe,
    "finetune-classify": ClassifyRecipe,
    "finetune-instruct": InstructRecipe,
}


def recipe_fields(recipe: type[RecipeSection]) -> Iterator[tuple[str, str, Any]]:
    """(dotted key, description, default) of every key in order; Ellipsis for a required one."""
    is_whole = issubclass(recipe, CommonRecipe)
    for name, info in (in_reading_order(recipe.model_fields) if is_whole else recipe.model_fields).items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, RecipeSection):
            for key, description, default in recipe_fields(info.annotation):
                yield f"{name}.{key}", description, default
        else:
            yield name, info.description or "", ... if info.is_required() else info.default


def in_reading_order(values: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe, ordered for a reader: task, data, model, optimizer, machine."""
    return {name: values[name] for name in _ORDER if name in values} | values
