"""The `data` sections of recipes: what is trained on, how it is read, and what is held out."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from gpt2cli.recipe.sections import (
    Fraction,
    NonEmptyText,
    NonNegativeInt,
    Probability,
    RecipeSection,
    UnicodeText,
    field_error,
    require_unicode,
)
from gpt2cli.tokenizer.base import SMALLEST, trained_size


def _require_names(value: Any) -> Any:
    names = value if isinstance(value, list | tuple) else [value]
    if not isinstance(value, str | list | tuple):
        raise PydanticCustomError("string_type", "must be text; put it in quotes")
    if not names or not all(isinstance(name, str) for name in names):
        raise PydanticCustomError("names", "must be text, or a list like [a, b]")
    if not all(names):
        raise PydanticCustomError("string_too_short", "must not be empty")
    for name in names:
        require_unicode(name)
    return value if isinstance(value, str) else tuple(names)


# One name or several, such as the files of a source.
Names = Annotated[
    str | tuple[str, ...],
    PlainValidator(_require_names),
    PlainSerializer(lambda names: names if isinstance(names, str) else list(names), when_used="json"),
]


def each_name(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of `Names`; none for null."""
    return () if names is None else (names,) if isinstance(names, str) else names


def _require_room_for_bytes(value: str) -> str:
    size = trained_size(value)
    if size is not None and size < SMALLEST:
        must = f"must be bpe-{SMALLEST} or larger: the 256 bytes and <|endoftext|> come first"
        raise PydanticCustomError("recipe_value", must)
    return value


TokenizerName = Annotated[NonEmptyText, AfterValidator(_require_room_for_bytes)]
_ENCODING = "encoding of the files, such as cp1252, latin-1 or utf-16; null: utf-8"
_MAX_BAD = "share of a file's records that may be bad and are left out, rounded up; 0: none; null: 0.001"
BadShare = Annotated[float, Field(ge=0, le=1)]


def _require_training_share(data: Any) -> Any:
    validation = 0.0 if data.validation_source else data.validation
    if validation + (0.0 if data.test_source else data.test) >= 1:
        raise field_error("test", "leaves nothing to train on", "data.validation=0.1 data.test=0.2")
    return data


class DataConfig(RecipeSection):
    """The text to train on."""

    source: Names = Field(
        description="a named corpus, text or record files, globs or folders, a list of them, a folder made"
        " by gpt2 prepare, or one of nanoGPT's tokens"
    )
    tokenizer: TokenizerName | None = Field(
        default=None,
        description="gpt2, chars, bpe-N (N tokens, trained on the training text), or a tokenizer folder;"
        " null: that of init or of a prepared folder, else gpt2",
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


_VALIDATION = "files held out, instead of the fraction data.validation"
_TEST = "files held out, instead of the fraction data.test"


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
    validation_source: Names | None = Field(default=None, description=_VALIDATION)
    test_source: Names | None = Field(default=None, description=_TEST)
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
    validation_source: Names | None = Field(default=None, description=_VALIDATION)
    test_source: Names | None = Field(default=None, description=_TEST)
    encoding: NonEmptyText | None = Field(default=None, description=_ENCODING)
    max_bad: BadShare | None = Field(default=None, description=_MAX_BAD)
    max_tokens: NonNegativeInt = Field(default=0, description="truncate there; 0 is the model's context")
    bundled: bool = Field(
        default=True, description="whether bundled records may replace the corpus if there is no network"
    )

    _leaves_some = model_validator(mode="after")(_require_training_share)
