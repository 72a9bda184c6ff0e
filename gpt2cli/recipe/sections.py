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


def _require_unicode(value: str) -> str:
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
UnicodeText = Annotated[str, AfterValidator(_require_unicode)]
NonEmptyText = Annotated[UnicodeText, Field(min_length=1)]


def _require_token_count(value: Any) -> Any:
    if value == "all" or (type(value) is int and value >= 1):
        return value
    raise PydanticCustomError("token_count", "must be a whole number >= 1, or all")


def _require_names(value: Any) -> Any:
    names = value if isinstance(value, list | tuple) else [value]
    if not isinstance(value, str | list | tuple):
        raise PydanticCustomError("string_type", "must be text; put it in quotes")
    if not names or not all(isinstance(name, str) for name in names):
        raise PydanticCustomError("names", "must be text, or a list like [a, b]")
    if not all(names):
        raise PydanticCustomError("string_too_short", "must not be empty")
    for name in names:
        _require_unicode(name)
    return value if isinstance(value, str) else tuple(names)


# One name or several, such as the files of a source.
Names = Annotated[str | tuple[str, ...], PlainValidator(_require_names)]


def each_name(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of `Names`; none for null."""
    return () if names is None else (names,) if isinstance(names, str) else names


TokenCount = Annotated[int | Literal["all"], PlainValidator(_require_token_count)]


_ENCODING = "encoding of the files, such as cp1252, latin-1 or utf-16; null: utf-8"
_MAX_BAD = "share of a file's records that may be bad and are left out, rounded up; 0: none; null: 0.001"
BadShare = Annotated[float, Field(ge=0, le=1)]


def _require_training_share(data: Any) -> Any:
    validation = 0.0 if data.validation_source else data.validation
    if validation + (0.0 if data.test_source else data.test) >= 1:
        raise field_error("test", "leaves nothing to train on", "data.validation=0.1 data.test=0.2")
    return data


class RecipeSection(BaseModel):
    """A section. Strict: text is not a number, true is not 1, 4.0 is not 4. Frozen once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(RecipeSection):
    """The text to train on."""

    source: Names = Field(
        description="a named corpus, text or record files, globs or folders, a list of them, a folder made"
        " by gpt2 prepare, or one of nanoGPT's tokens"
    )
    tokenizer: Literal["gpt2", "chars"] | None = Field(
        default=None, description="null: that of init or of a prepared folder, else gpt2"
    )
    validation: Fraction | None = Field(
        default=None, description="fraction of tokens held out; null: a prepared folder's, else 0.1"
    )
    validation_source: Names | None = Field(
        default=None,
        description="a file, folder, glob or corpus held out for validation, instead of a fraction",
    )
    # Strict mode would refuse YAML's list for a tuple; the items stay strict.
    text_fields: Annotated[tuple[NonEmptyText, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None,
        description="fields of records with the text, dots within objects; null: a prepared folder's, else"
        " [text]",
    )
    split_on: NonEmptyText | None = Field(
        default=None,
        description="text between documents, such as <|endoftext|>; null: a file is one document",
    )
    per_line: bool | None = Field(default=None, description="whether each line of a text is a document")
    blank_line: bool | None = Field(default=None, description="whether blank lines end a document")
    encoding: NonEmptyText | None = Field(default=None, description=_ENCODING)
    max_bad: BadShare | None = Field(default=None, description=_MAX_BAD)
    bundled: bool = Field(
        default=True, description="whether a bundled text may replace the corpus if there is no network"
    )

    @model_validator(mode="after")
    def _one_validation(self) -> "DataConfig":
        if self.validation_source is not None and self.validation is not None:
            fix = "data.validation=null, or no data.validation_source"
            raise field_error("validation", "data.validation_source takes its place", fix)
        return self


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
    dropout: Probability = Field(default=0.0, description="dropout rate in training")

    def config(self, vocab_size: int) -> GPT2Config:
        """The config of a model with random weights; its position embeddings end at `context`."""
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
                raise field_error(given[0], f"size: {self.size} sets it already", fix)
        elif given and (missing := [name for name in numbers if name not in given]):
            fix = " ".join(f"model.{name}={getattr(PRESETS['124M'], name)}" for name in missing)
            raise field_error(missing[0], "is missing: without a size all three are needed", fix)
        elif self.n_embd and self.n_head and self.n_embd % self.n_head:
            nearest = max(self.n_embd // self.n_head, 1) * self.n_head
            raise field_error("n_head", f"must divide n_embd ({self.n_embd})", f"model.n_embd={nearest}")
        return self


class BatchConfig(RecipeSection):
    """The batch: micro_batch * accumulation sequences per optimizer step."""

    micro_batch: RowCount = Field(default=8, description="sequences per forward and backward")
    accumulation: RowCount = Field(default=1, description="micro-batches per optimizer step")

    @property
    def rows_per_step(self) -> int:
        return self.micro_batch * self.accumulation


class OptimConfig(RecipeSection):
    """AdamW, the learning rate schedule and gradient clipping."""

    steps: PositiveInt = Field(description="optimizer steps in total")
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
        default=0, description="CPU threads, at most 4 per core; 0 is one per core"
    )
    attention: Literal["auto", "sdpa", "formula", "blocks"] = Field(
        default="auto", description="torch's fused kernel, the plain formula, or the formula in blocks"
    )
    activation_checkpointing: Literal["on", "off"] = Field(
        default="off", description="whether backward recomputes each block: less memory, more time"
    )
    max_skipped_steps: NonNegativeInt = Field(
        default=10, description="skipped steps in a row that end the run"
    )
    max_minutes: NonNegativeFloat = Field(
        default=0.0, description="minutes of training until the run saves and ends; 0 is no limit"
    )


_INSTEAD = "files held out, instead of the fraction data.{}"


class ClassifyDataConfig(RecipeSection):
    """Labelled texts and their splits."""

    source: Names = Field(
        description="sms-spam, or CSV, TSV, JSON, JSONL or parquet files, globs or folders, or a list of them"
    )
    text: Names = Field(
        default="text", description="column or field with the text; of a list, the texts are joined"
    )
    label: NonEmptyText = Field(default="label", description="column or field with the class")
    columns: Annotated[tuple[NonEmptyText, ...], Field(strict=False, min_length=2)] | None = Field(
        default=None,
        description="names of all columns of a CSV or TSV file without a header; null: the first row",
    )
    validation: Fraction = Field(default=0.1, description="fraction held out to choose the best checkpoint")
    test: Probability = Field(
        default=0.2, description="fraction held out for the report at the end; 0 reports on validation"
    )
    validation_source: Names | None = Field(default=None, description=_INSTEAD.format("validation"))
    test_source: Names | None = Field(default=None, description=_INSTEAD.format("test"))
    encoding: NonEmptyText | None = Field(default=None, description=_ENCODING)
    max_bad: BadShare | None = Field(default=None, description=_MAX_BAD)
    balance: Literal["none", "undersample", "weights"] = Field(
        default="none", description="drop rows of the larger classes, or weight the loss of the smaller ones"
    )
    max_tokens: NonNegativeInt = Field(default=0, description="truncate there; 0 is the model's context")
    bundled: bool = Field(
        default=True, description="whether bundled messages may replace the corpus if there is no network"
    )

    @model_validator(mode="after")
    def _both_columns(self) -> "ClassifyDataConfig":
        if self.columns is None:
            return self
        texts = each_name(self.text)
        for name in (*texts, self.label):
            if name not in self.columns:
                fix = f"data.columns='[{', '.join((self.label, *texts))}]'"
                raise field_error("columns", f"lacks {name!r}", fix)
        if len(set(self.columns)) < len(self.columns):
            raise field_error("columns", "has a name twice", "data.columns='[label, text]'")
        return self

    _leaves_some = model_validator(mode="after")(_require_training_share)


class InstructDataConfig(RecipeSection):
    """Instructions with answers, or conversations, and their splits."""

    source: Names = Field(
        description="instructions, summaries, or JSON, JSONL, CSV or parquet files, globs, folders, or a list"
    )
    instruction: NonEmptyText = Field(default="instruction", description="field with the instruction")
    input: NonEmptyText = Field(default="input", description="field with the input; may be missing")
    output: NonEmptyText = Field(default="output", description="field with the answer")
    task: UnicodeText = Field(default="", description="instruction of records without one")
    validation: Fraction = Field(default=0.05, description="fraction held out to choose the best checkpoint")
    test: Probability = Field(
        default=0.1, description="fraction held out, and answered at the end; 0 answers nothing"
    )
    validation_source: Names | None = Field(default=None, description=_INSTEAD.format("validation"))
    test_source: Names | None = Field(default=None, description=_INSTEAD.format("test"))
    encoding: NonEmptyText | None = Field(default=None, description=_ENCODING)
    max_bad: BadShare | None = Field(default=None, description=_MAX_BAD)
    max_tokens: NonNegativeInt = Field(default=0, description="truncate there; 0 is the model's context")
    bundled: bool = Field(
        default=True, description="whether bundled records may replace the corpus if there is no network"
    )

    _leaves_some = model_validator(mode="after")(_require_training_share)


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
