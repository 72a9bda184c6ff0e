"""A prepared folder and a recipe: the settings that a recipe asks for, a refusal where the folder has
others, and the `gpt2 prepare` command that would make the folder again.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2cli.data.input_files import STDIN, STDIN_NAME
from gpt2cli.data.manifest import PrepareSettings, SourceRecord, TokenManifest
from gpt2cli.data.text_fields import TEXT
from gpt2cli.errors import UsageError
from gpt2cli.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from gpt2cli.recipe.data_sections import DataConfig

# How text is read: these settings are options and recipe keys of the same names.
READING = ("encoding", "max_bad", "split_on", "per_line", "blank_line")
SMALL = 20_000  # tokens: a text below may have fewer than the default --block of another tokenizer


def prepare_settings(data: "DataConfig", tokenizer: Tokenizer | None = None) -> PrepareSettings:
    """The settings for the text of a recipe; `tokenizer` is that of a base model, if there is one."""
    validation = 0.1 if data.validation is None else data.validation
    return PrepareSettings(
        tokenizer=tokenizer.name if tokenizer else data.tokenizer or "gpt2",
        text_fields=data.text_fields or TEXT,
        validation=0.0 if data.validation_source else validation,
        encoding=data.encoding or PrepareSettings.encoding,
        max_bad=PrepareSettings.max_bad if data.max_bad is None else data.max_bad,
        split_on=data.split_on or "",
        per_line=bool(data.per_line),
        blank_line=bool(data.blank_line),
    )


def require_same_settings(
    folder: Path,
    manifest: TokenManifest,
    *,
    tokenizer: str | None = None,
    fingerprint: str | None = None,
    validation: float | None = None,
    text_fields: Sequence[str] | None = None,
    validation_source: str | None = None,
    reading: Mapping[str, str | float | bool | None] | None = None,
) -> None:
    """Raise UsageError if a recipe whose data.source is the prepared folder asks for other settings than
    the folder's. None: not asked for. `fingerprint` is that of a tokenizer which lies in a folder; `reading`
    are the settings of READING.
    """
    made = manifest.settings
    has_fields = any(source.kind != "text" for source in manifest.sources)
    held_out = shlex.join(manifest.validation_arguments)
    split = held_out or _number(made.validation)
    same = fingerprint == manifest.fingerprint if fingerprint else tokenizer == made.tokenizer
    if tokenizer is not None and not same:
        command = prepare_command(manifest, folder, tokenizer=tokenizer)
        raise _other(folder, "tokenizer", tokenizer, made.tokenizer, command)
    if validation_source is not None:
        command = prepare_command(manifest, folder, validation_source=validation_source)
        raise _other(folder, "validation_source", validation_source, split, command)
    if validation is not None and (held_out or validation != made.validation):
        command = prepare_command(manifest, folder, validation=validation)
        raise _other(folder, "validation", _number(validation), split, command)
    if text_fields is not None and has_fields and tuple(text_fields) != made.text_fields:
        command = prepare_command(manifest, folder, text_fields=text_fields)
        asked, found = (f"[{', '.join(names)}]" for names in (text_fields, made.text_fields))
        raise _other(folder, "text_fields", asked, found, command)
    for key, value in (reading or {}).items():
        if value is not None and value != getattr(made, key):
            asked, found = (
                repr(one) if isinstance(one, str) else str(one) for one in (value, getattr(made, key))
            )
            command = prepare_command(manifest, folder, reading={key: value})
            raise _other(folder, key, asked, found or "none", command)


def prepare_command(
    manifest: TokenManifest,
    folder: Path,
    *,
    tokenizer: str | None = None,
    validation: float | None = None,
    text_fields: Sequence[str] | None = None,
    validation_source: str | None = None,
    block: int | None = None,
    reading: Mapping[str, str | float | bool | None] | None = None,
) -> str:
    """The shell command that prepares the folder's text again, with these settings changed."""
    made = manifest.settings
    from_stdin = [source for source in manifest.sources if source.path == STDIN_NAME]
    # Without arguments in the manifest (version 1): a source's path is what was typed, or found for it.
    words = ["gpt2", "prepare", *(manifest.arguments or [_typed(source) for source in manifest.sources])]
    held_out = manifest.validation_arguments if validation is None else ()
    if validation_source is not None:
        held_out = (validation_source,)
    share = made.validation if validation is None else validation
    words += [word for name in held_out for word in ("--validation-source", name)]
    is_import = any(source.kind == "nanogpt" for source in manifest.sources)
    words += [] if held_out or is_import else ["--validation", _number(share)]
    tokenizer = tokenizer or made.tokenizer
    if tokenizer != "gpt2":
        words += ["--tokenizer", str(folder) if tokenizer == "bpe" else tokenizer]
    fields = tuple(text_fields or made.text_fields)
    if fields != TEXT or any(source.kind != "text" for source in from_stdin):
        words += [word for name in fields for word in ("--text-field", name)]
    wanted = {key: getattr(made, key) for key in READING} | dict(reading or {})
    for key, value in wanted.items():
        if value != getattr(PrepareSettings, key):
            option = f"--{key.replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
    if made.shard_tokens != PrepareSettings.shard_tokens:
        words += ["--shard-tokens", str(made.shard_tokens)]
    if made.seed != PrepareSettings.seed:
        words += ["--seed", str(made.seed)]
    if block is None and manifest.n_tokens * (1 - share) < SMALL:
        block = 1
    words += [] if block is None else ["--block", str(block)]
    return shlex.join([*words, "--out", str(folder), "--force"]) + (" < TEXT.txt" if from_stdin else "")


def _other(folder: Path, key: str, asked: str, made: str, command: str) -> UsageError:
    return UsageError(
        f"data.{key} is {asked}, but {folder} was prepared with {made}",
        f"a prepared folder keeps its tokenizer and its split; made anew: {command}",
        f"data.{key}=null",
    )


def _number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _typed(source: SourceRecord) -> str:
    return STDIN if source.path == STDIN_NAME else source.path
