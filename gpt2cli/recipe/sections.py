"""The sections of recipes: every key in them with its type, limits, default and a line of help."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gpt2cli.model.config import PRESETS, GPT2Config


def require_unicode(value: str) -> str:
    """Lone surrogates cannot be tokenised or stored, and a path cannot hold NUL."""
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        raise PydanticCustomError("not_text", "must be Unicode text without NUL")
    return value


MOST_THREADS = 1024
PositiveInt = Annotated[int, Field(ge=1)]
RowCount = Annotated[int, Field(ge=1, le=1 << 20)]  # no batch is larger
NonNegativeInt = Annotated[int, Field(ge=0)]  # 0 usually turns the feature off
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
UnicodeText = Annotated[str, AfterValidator(require_unicode)]
NonEmptyText = Annotated[UnicodeText, Field(min_length=1)]


def _require_token_count(value: Any) -> Any:
    if value == "all" or (type(value) is int and value >= 1):
        return value
    raise PydanticCustomError("token_count", "must be a whole number >= 1, or all")


TokenCount = Annotated[int | Literal["all"], PlainValidator(_require_token_count)]


class RecipeSection(BaseModel):
    """A section. Strict: text is not a number, true is not 1, 4.0 is not 4. Frozen once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelConfig(RecipeSection):
    """The model: a size by name, or n_layer, n_head and n_embd."""

    size: Literal["124M", "355M", "774M", "1558M"] | None = Field(
        default=None, description="124M, 355M, 774M or 1558M; instead of the next three"
    )
    n_layer: PositiveInt | None = Field(default=None, description="transformer blocks")
    n_head: PositiveInt | None = Field(default=None, description="heads per block; must divide n_embd")
    n_embd: PositiveInt | None = Field(default=None, description="channels of the residual stream")
    n_inner: PositiveInt | None = Field(default=None, description="width of the MLP; null is 4 * n_embd")
    context: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="context length in tokens; null: that of init, 1024 for random weights"
    )
    positions: Literal["learned", "rotary"] | None = Field(
        default=None,
        description="learned: an embedding each; rotary: rotated queries and keys (Su et al. 2021);"
        " null: those of init, learned for random weights",
    )
    dropout: Probability = Field(default=0.0, description="dropout rate in training")

    def config(self, vocab_size: int) -> GPT2Config:
        """The config of a model with random weights; its context ends at `context`."""
        if self.size is not None:
            shape = PRESETS[self.size]
        else:
            assert self.n_layer and self.n_head and self.n_embd  # see _one_description and has_shape
            shape = GPT2Config(n_layer=self.n_layer, n_head=self.n_head, n_embd=self.n_embd)
        return replace(
            shape,
            n_inner=self.n_inner,
            n_positions=self.context or GPT2Config.n_positions,
            vocab_size=vocab_size,
            dropout=self.dropout,
            positions=self.positions or GPT2Config.positions,
        )

    @property
    def has_shape(self) -> bool:
        return self.size is not None or self.n_layer is not None

    @model_validator(mode="after")
    def _one_description(self) -> "ModelConfig":
        numbers = {"n_layer": self.n_layer, "n_head": self.n_head, "n_embd": self.n_embd}
        given = [name for name, value in numbers.items() if value is not None]
        if self.size is not None:
            if given:
                shape = {name: numbers[name] or getattr(PRESETS[self.size], name) for name in numbers}
                shape["n_head"] = next(n for n in range(shape["n_head"], 0, -1) if shape["n_embd"] % n == 0)
                fix = " ".join(["model.size=null", *(f"model.{name}={n}" for name, n in shape.items())])
                raise field_error(given[0], "size sets it already", fix)
        elif given and (missing := [name for name in numbers if name not in given]):
            fix = " ".join(f"model.{name}={getattr(PRESETS['124M'], name)}" for name in missing)
            raise field_error(missing[0], "is missing", fix)
        elif self.n_embd and self.n_head and self.n_embd % self.n_head:
            nearest = max(self.n_embd // self.n_head, 1) * self.n_head
            raise field_error("n_head", f"must divide n_embd ({self.n_embd})", f"model.n_embd={nearest}")
        elif self.n_embd and self.n_head and self.positions == "rotary" and self.n_embd // self.n_head % 2:
            fix = f"model.n_embd={2 * self.n_embd}"
            raise field_error("positions", "needs heads of an even number of channels for rotary", fix)
        return self


class BatchConfig(RecipeSection):
    """The batch: micro_batch * accumulation sequences per optimizer step."""

    micro_batch: RowCount = Field(default=8, description="sequences per forward and backward")
    accumulation: RowCount = Field(default=1, description="micro-batches per optimizer step")

    @property
    def rows_per_step(self) -> int:
        return self.micro_batch * self.accumulation


class OptimConfig(RecipeSection):
    """AdamW or Muon, the learning rate schedule and gradient clipping."""

    steps: PositiveInt = Field(description="optimizer steps in total")
    name: Literal["adamw", "muon"] = Field(
        default="adamw", description="adamw; muon: Muon for the blocks' matrices, AdamW for the rest"
    )
    lr: PositiveFloat = Field(default=6e-4, description="peak learning rate, reached after the warmup")
    min_lr: NonNegativeFloat = Field(default=0.0, description="learning rate at the end of the decay")
    warmup_steps: NonNegativeInt = Field(default=0, description="steps of linear warmup")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="cosine", description="decay after the warmup; wsd: constant, then linear over decay_steps"
    )
    decay_steps: NonNegativeInt = Field(
        default=0, description="steps of the decay of wsd; 0 is a fifth of optim.steps"
    )
    weight_decay: NonNegativeFloat = Field(default=0.1, description="decay of matrices; vectors have none")
    beta1: Probability = Field(default=0.9, description="AdamW's decay of the first moment")
    beta2: Probability = Field(default=0.95, description="AdamW's decay of the second moment")
    eps: PositiveFloat = Field(default=1e-8, description="AdamW's epsilon")
    clip: NonNegativeFloat = Field(default=1.0, description="maximum gradient norm; 0 does not clip")

    @model_validator(mode="after")
    def _in_order(self) -> "OptimConfig":
        if self.min_lr > self.lr:
            fix = f"optim.min_lr={self.lr / 10:g}"
            raise field_error("min_lr", f"must be <= optim.lr ({self.lr:g})", fix)
        if self.warmup_steps > self.steps:
            fix = f"optim.warmup_steps={self.steps // 10}"
            raise field_error("warmup_steps", f"must be <= optim.steps ({self.steps})", fix)
        if self.warmup_steps + self.decay_steps > self.steps:
            must = f"must be <= optim.steps - optim.warmup_steps ({self.steps - self.warmup_steps})"
            raise field_error("decay_steps", must, f"optim.decay_steps={self.steps - self.warmup_steps}")
        return self


BestBy = Literal["loss", "accuracy", "macro_f1"]
_BEST = "measure by which best and patience compare evaluations: loss"


def _require_loss(eval: Any) -> Any:
    if eval.best != "loss":
        must = "must be loss: accuracy and macro_f1 are measured by finetune-classify alone"
        raise field_error("best", must, "eval.best=loss")
    return eval


class EvalConfig(RecipeSection):
    """Evaluations on the validation split, and the sample generated after each."""

    every: PositiveInt = Field(default=100, description="steps between evaluations")
    tokens: TokenCount = Field(
        default=131_072, description="validation tokens per evaluation, spread over the split; or all"
    )
    best: BestBy = Field(default="loss", description=_BEST)
    patience: NonNegativeInt = Field(
        default=0, description="evaluations without improvement before early stopping; 0 never stops"
    )
    prompt: UnicodeText | None = Field(
        default=None, description="prompt of the sample; null: the first words of the training text"
    )
    sample_tokens: NonNegativeInt = Field(default=40, description="tokens of the sample; 0 generates none")
    temperature: NonNegativeFloat = Field(default=0.8, description="of the sample; 0 is greedy decoding")
    top_k: NonNegativeInt = Field(default=40, description="most likely tokens to draw from; 0 draws from all")

    _by_loss = model_validator(mode="after")(_require_loss)


class LogConfig(RecipeSection):
    """Logging."""

    every: PositiveInt = Field(default=1, description="steps between log lines")
    tensorboard: bool = Field(default=False, description="whether to write TensorBoard event files")
    wandb: bool = Field(
        default=False, description="whether to log to Weights & Biases; the run's project is WANDB_PROJECT"
    )


class CheckpointConfig(RecipeSection):
    """Checkpoints and their retention."""

    every: NonNegativeInt = Field(
        default=0, description="steps between saves; 0 saves at evaluations and at the end"
    )
    keep: PositiveInt = Field(default=2, description="newest checkpoints to keep, besides best and last")


class RunConfig(RecipeSection):
    """The machine. None of this changes the result, except by rounding."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="device to train on")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="floating-point format of the matmuls"
    )
    compile: Literal["auto", "on", "off"] = Field(default="auto", description="whether to use torch.compile")
    threads: Annotated[int, Field(ge=0, le=MOST_THREADS)] = Field(
        default=0,
        description="CPU threads, at most 4 per core; 0: OMP_NUM_THREADS, else 1 if small, else one per core",
    )
    attention: Literal["auto", "sdpa", "formula", "blocks"] = Field(
        default="auto", description="torch's fused kernel, the plain formula, or the formula in blocks"
    )
    activation_checkpointing: Literal["on", "off"] = Field(
        default="off", description="whether backward recomputes each block: less memory, more time"
    )
    shard: Literal["on", "off"] = Field(
        default="off",
        description="whether each of several processes holds only its part of weights, gradients and moments",
    )
    max_skipped_steps: NonNegativeInt = Field(
        default=10, description="skipped steps in a row that end the run"
    )
    max_minutes: NonNegativeFloat = Field(
        default=0.0, description="minutes of training until the run saves and ends; 0 is no limit"
    )


class LoraConfig(RecipeSection):
    """Low-rank adapters (Hu et al. 2021), for train: lora."""

    rank: PositiveInt = Field(default=8, description="rank of each adapter")
    alpha: PositiveFloat = Field(default=16.0, description="adapters are scaled by alpha / rank")
    dropout: Probability = Field(default=0.0, description="dropout rate of the adapters' input")
    targets: Annotated[
        tuple[Literal["c_attn", "c_proj", "c_fc"], ...],
        Field(strict=False, min_length=1),
        BeforeValidator(lambda value: ("c_attn", "c_proj", "c_fc") if value in ("all", ["all"]) else value),
    ] = Field(
        default=("c_attn",),
        description="matrices with an adapter, or all; c_proj is that of attention and of the MLP",
    )


class TokenizerConfig(RecipeSection):
    """What is added to the base's tokenizer."""

    add: Annotated[tuple[NonEmptyText, ...], Field(strict=False)] = Field(
        default=(),
        description="new tokens, found wherever their text stands; each is a row of the embedding",
    )


class ClassifyEvalConfig(RecipeSection):
    """Evaluations on the whole validation split."""

    every: PositiveInt = Field(default=50, description="steps between evaluations")
    best: BestBy = Field(default="loss", description=f"{_BEST}, accuracy or macro_f1")
    patience: NonNegativeInt = Field(
        default=0, description="evaluations without improvement before early stopping; 0 never stops"
    )


class InstructEvalConfig(RecipeSection):
    """Evaluations on the whole validation split, and the answers to the test split at the end."""

    every: PositiveInt = Field(default=50, description="steps between evaluations")
    best: BestBy = Field(default="loss", description=_BEST)
    patience: NonNegativeInt = Field(
        default=0, description="evaluations without improvement before early stopping; 0 never stops"
    )
    max_new_tokens: PositiveInt = Field(default=256, description="maximum tokens per answer")
    temperature: NonNegativeFloat = Field(default=0.0, description="of the answers; 0 is greedy decoding")
    rouge: bool = Field(default=False, description="whether to compute ROUGE-1, 2 and L of the answers")

    _by_loss = model_validator(mode="after")(_require_loss)


def field_error(field: str, must: str, fix: str) -> PydanticCustomError:
    """An error of a whole section that the loader reports at one of its fields."""
    return PydanticCustomError("recipe", "{must}", {"field": field, "must": must, "fix": fix})
