"""A classifier's folder: Hugging Face's GPT2ForSequenceClassification, with our manifest.

The transformer body is stored as in `folder.py`; `score` takes the place of the output layer. Labels
are in config.json. tokenizer_config.json has the length at which texts were cut and the padding
token, so that transformers' pipeline cuts and pads as `gpt2 classify` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2cli.checkpoints.folder import (
    CONFIG,
    RECIPE,
    WEIGHTS,
    read_manifest,
    require_tensors,
    stored_shapes_of,
    transposed,
    verify_texts,
)
from gpt2cli.checkpoints.hf_config import CLASSIFIER, LANGUAGE_MODEL
from gpt2cli.checkpoints.safetensors_file import read_tensors, write_tensors
from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of, write_file, write_json
from gpt2cli.json_files import read_json_object
from gpt2cli.model.config import GPT2Config, from_hugging_face, to_hugging_face
from gpt2cli.model.gpt2 import GPT2Classifier, empty_classifier
from gpt2cli.paths import is_adapter, shown_model
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.files import CONFIG as TOKENIZER_CONFIG
from gpt2cli.tokenizer.files import COPY, load_tokenizer, save_tokenizer, token_name

SCORE = "score.weight"


@dataclass(frozen=True)
class LoadedClassifier:
    model: GPT2Classifier
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    max_tokens: int  # longer texts are cut there, as they were in training
    folder: Path


def write_classifier(
    folder: Path,
    model: GPT2Classifier,
    labels: tuple[str, ...],
    tokenizer: Tokenizer,
    max_tokens: int,
    recipe: str,
) -> dict[str, str]:
    """Write the files into an existing folder; returns {file name: SHA-256} for the manifest."""
    state = model.state_dict()
    tensors = {name: transposed(name, state[name]) for name in stored_shapes_of(model)}
    hashes = {WEIGHTS: write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})}
    pad = tokenizer.end_of_text if tokenizer.special.pad is None else tokenizer.special.pad
    write_json(
        folder / CONFIG,
        to_hugging_face(model.config)
        | tokenizer.special.as_config()
        | {
            "architectures": [CLASSIFIER],
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
            "num_labels": len(labels),
            "problem_type": "single_label_classification",
            # By this id Hugging Face finds a row's last token; no text encodes to it.
            "pad_token_id": pad,
        },
    )
    write_file(folder / RECIPE, recipe)
    names = [CONFIG, RECIPE, *save_tokenizer(tokenizer, folder)]
    settings = read_json_object(folder / TOKENIZER_CONFIG)
    padding = {"pad_token": token_name(tokenizer, pad), "padding_side": "right"}
    settings |= {**padding, "model_max_length": max_tokens}
    write_json(folder / TOKENIZER_CONFIG, settings)
    return hashes | {name: sha256_of(folder / name) for name in names}


def load_classifier(
    folder: Path, *, attention: str = "sdpa", dropout: float | None = None, remembered: bool = False
) -> LoadedClassifier:
    """Load and verify a classifier, in fp32 and evaluation mode, on the CPU; the rest as `load_model`.

    Raises InputError if a file is missing, damaged or fits the others badly, and for a folder
    that holds a language model or an adapter to one.
    """
    if is_adapter(folder) and (folder.parent / CONFIG).is_file():
        raise InputError(
            f"{folder}: is a classifier's adapter, without the weights of its base",
            "the whole classifier, with the adapter merged, is the folder above it",
            f"use {folder.parent}",
        )
    if is_adapter(folder):
        raise InputError(
            f"{folder}: is an adapter of a language model, not a classifier",
            "it generates text and has no classes",
            f"gpt2 generate --model {folder}; or gpt2 convert {folder} --merge, and make a classifier of the"
            " result: gpt2 finetune-classify spam init=RESULT",
        )
    read_manifest(folder)  # a later format may have another config
    values = read_json_object(folder / CONFIG)
    _require_classifier(folder, values)
    config = from_hugging_face(values)
    if dropout is not None:
        config = config.with_dropout(dropout)
    hashes = verify_texts(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer.n_vocab > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.n_vocab} tokens, the model {config.vocab_size}",
            "they were not made for each other",
            COPY,
        )
    tensors = read_tensors(folder / WEIGHTS, hashes.get(WEIGHTS), remembered=remembered)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    labels = _labels(folder, values, _n_classes(shapes, config))
    model = empty_classifier(config, len(labels), attention)
    require_tensors(folder / WEIGHTS, stored_shapes_of(model), shapes)
    state = {name: transposed(name, tensor.to(torch.float32)) for name, tensor in tensors.items()}
    model.load_state_dict(state, assign=True)
    max_tokens = _max_tokens(folder, config.n_positions)
    return LoadedClassifier(model.eval(), tokenizer, labels, max_tokens, folder)


def _n_classes(shapes: Mapping[str, tuple[int, ...]], config: GPT2Config) -> int:
    """As many as `score` has rows. 0 for one of another form, whose shape `require_exactly` refuses then."""
    shape = shapes.get(SCORE, ())
    return shape[0] if len(shape) == 2 and shape[1] == config.n_embd else 0


def _labels(folder: Path, values: dict[str, Any], n_classes: int) -> tuple[str, ...]:
    """The classes' names in order; Hugging Face leaves them out where they are LABEL_0, LABEL_1, ..."""
    named = values.get("id2label")
    if named is None:
        return tuple(f"LABEL_{i}" for i in range(max(2, n_classes)))
    fits = isinstance(named, dict) and set(named) == {str(i) for i in range(len(named))}
    if not fits or not all(isinstance(label, str) for label in named.values()) or len(named) < 2:
        raise InputError(
            f"{folder / CONFIG}: id2label is {str(named)[:80]}",
            "it must name each class, of which there are at least two, by its number from 0",
        )
    return tuple(named[str(i)] for i in range(len(named)))


def _max_tokens(folder: Path, context: int) -> int:
    path = folder / TOKENIZER_CONFIG
    limit = read_json_object(path).get("model_max_length") if path.exists() else None
    # true is an int to Python, and no length.
    return min(limit, context) if type(limit) is int and limit > 0 else context


def _require_classifier(folder: Path, values: Mapping[str, Any]) -> None:
    """The `values` of a config.json are those of a GPT-2 that gives a text one class."""
    named = values.get("architectures") or [LANGUAGE_MODEL]
    if not isinstance(named, list) or CLASSIFIER not in named:
        what = str(named[0] if isinstance(named, list) else named)[:80]
        writes = what == LANGUAGE_MODEL
        raise InputError(
            f"{folder}: holds a {what}, not a classifier",
            "it has no classes; gpt2 generate writes with it" if writes else f"only {CLASSIFIER} can be read",
            f"gpt2 finetune-classify spam init={shown_model(folder)}"
            if writes
            else "gpt2 finetune-classify spam-tiny",
        )
    kind = values.get("problem_type") or "single_label_classification"
    if kind != "single_label_classification":
        raise InputError(
            f"{folder}: its problem_type is {str(kind)[:80]!r}",
            "only single-label classification is supported",
            "gpt2 finetune-classify spam-tiny",
        )
