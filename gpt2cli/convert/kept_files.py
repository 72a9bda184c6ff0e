"""The other files of a Hugging Face folder, and which of them a conversion keeps.

A conversion keeps stop tokens, chat templates and the tokenizer's options; the receipt names what was kept
and what was left out.
"""

import contextlib
from pathlib import Path
from typing import Any

from gpt2cli.checkpoints.folder import CONFIG, MANIFEST, RECIPE, read_manifest
from gpt2cli.checkpoints.provenance import RECEIPT
from gpt2cli.convert.foreign_model import ForeignModel
from gpt2cli.errors import InputError, NewerFormatError
from gpt2cli.files import sha256_of, write_file, write_json
from gpt2cli.json_files import read_json_object
from gpt2cli.templates import CHAT_TEMPLATE, TEMPLATE_FILE
from gpt2cli.tokenizer.files import (
    ADDED,
    GENERATION_CONFIG,
    PAIRS,
    SPECIAL_MAP,
    TOKENIZER_JSON,
    save_generation_config,
)
from gpt2cli.tokenizer.files import CONFIG as TOKENIZER_CONFIG

MORE_TEMPLATES = "additional_chat_templates"
MODEL_CARD = "README.md"
# Settings of a tokenizer that change no id of a text.
_SETTINGS = ("chat_template", "model_max_length", "padding_side", "truncation_side")
# Files whose content is in others that are written.
_CONTAINED = (
    *(CONFIG, MANIFEST, RECEIPT, TOKENIZER_CONFIG, ADDED, SPECIAL_MAP, TOKENIZER_JSON),
    *(name for pair in PAIRS for name in pair),
)


def keep_files(source: ForeignModel, folder: Path, card: str) -> tuple[list[str], dict[str, list[str]]]:
    """Copy into `folder` what a conversion keeps; returns the names for the manifest, and the receipt's
    {"kept", "left_out"}.

    The caller has written the folder's tokenizer. `card` is the model card for a source without one.
    """
    theirs = source.path if source.format in ("huggingface", "gpt2cli") and source.path.is_dir() else None
    copied: list[str] = []
    settings: dict[str, Any] = {}
    if theirs:
        settings = _kept_settings(theirs)
        copied = _training_files(theirs)
        copied += [name for name in (GENERATION_CONFIG, CHAT_TEMPLATE) if (theirs / name).is_file()]
        more = theirs / MORE_TEMPLATES
        copied += sorted(f"{MORE_TEMPLATES}/{path.name}" for path in more.glob("*.jinja"))
        for name in copied:
            (folder / name).parent.mkdir(exist_ok=True)
            write_file(folder / name, (theirs / name).read_bytes())
        if (theirs / MODEL_CARD).is_file():
            card = (theirs / MODEL_CARD).read_text("utf-8", "replace")
    if card:  # not in the manifest: its author edits it
        write_file(folder / MODEL_CARD, card)
    names = list(copied)
    if GENERATION_CONFIG not in copied:
        names.append(save_generation_config(source.tokenizer, folder))
    if settings:
        path = folder / TOKENIZER_CONFIG
        write_json(path, read_json_object(path) | settings)
    named = {*(path.name for path in source.files), *copied, *_CONTAINED, MODEL_CARD}
    others = sorted(theirs.iterdir()) if theirs and source.format == "huggingface" else []
    left_out = [
        path.name for path in others if path.is_file() and path.name not in named and path.name[0] != "."
    ]
    kept = copied + [f"{TOKENIZER_CONFIG}: {name}" for name in settings]
    return names, {"kept": kept, "left_out": left_out}


def _kept_settings(folder: Path) -> dict[str, Any]:
    path = folder / TOKENIZER_CONFIG
    found = read_json_object(path) if path.is_file() else {}
    return {name: found[name] for name in _SETTINGS if found.get(name) is not None}


def _training_files(folder: Path) -> list[str]:
    """The recipe and the chat template of a model that was trained here, wherever it lies now."""
    with contextlib.suppress(InputError, NewerFormatError, NotADirectoryError):  # another program's
        hashes_of = read_manifest(folder)
        return [
            name
            for name in (RECIPE, TEMPLATE_FILE)
            if name in hashes_of and sha256_of(folder / name) == hashes_of[name]
        ]
    return []
