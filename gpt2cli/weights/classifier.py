"""Owns a classifier's folder: Hugging Face's GPT2ForSequenceClassification, with our manifest.

The trunk is stored as in `folder.py`; `score` takes the place of the output layer. Labels lie in
config.json. tokenizer_config.json has the length at which texts were cut and the token that fills
rows, so that transformers' pipeline cuts and fills as `gpt2 classify` does.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2cli.disk import open_regular, sha256_of, write_file, write_json
from gpt2cli.errors import InputError
from gpt2cli.model.config import GPT2Config, from_hugging_face, to_hugging_face
from gpt2cli.model.gpt2 import GPT2Classifier, empty_classifier
from gpt2cli.tokenizer.folder import CONFIG as TOKENIZER_CONFIG
from gpt2cli.tokenizer.folder import load_tokenizer, save_tokenizer
from gpt2cli.tokenizer.protocol import END_OF_TEXT, Tokenizer
from gpt2cli.weights.folder import CONFIG, RECIPE, TRANSPOSED, WEIGHTS, read_manifest
from gpt2cli.weights.source import require_exactly
from gpt2cli.weights.tensor_file import changed, read_tensors, write_tensors

ARCHITECTURE = "GPT2ForSequenceClassification"
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
    shapes = _stored_shapes(model.config, len(labels))
    tensors = {name: state[name].T if name.endswith(TRANSPOSED) else state[name] for name in shapes}
    hashes = {WEIGHTS: write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})}
    write_json(
        folder / CONFIG,
        to_hugging_face(model.config, tokenizer.end_of_text)
        | {
            "architectures": [ARCHITECTURE],
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
            "num_labels": len(labels),
            "problem_type": "single_label_classification",
            # By this id Hugging Face finds a row's last token; no text of ours encodes to it.
            "pad_token_id": tokenizer.end_of_text,
        },
    )
    write_file(folder / RECIPE, recipe)
    names = [CONFIG, RECIPE, *save_tokenizer(tokenizer, folder)]
    settings = _read_json(folder / TOKENIZER_CONFIG)
    settings |= {"pad_token": END_OF_TEXT, "padding_side": "right", "model_max_length": max_tokens}
    write_json(folder / TOKENIZER_CONFIG, settings)
    return hashes | {name: sha256_of(folder / name) for name in names}


def load_classifier(
    folder: Path, *, attention: str = "sdpa", dropout: float | None = None
) -> LoadedClassifier:
    """Load and verify a classifier, in fp32 and evaluation mode, on the CPU.

    Raises InputError where a file is missing, damaged or fits the others badly, and for a folder
    that holds a language model.
    """
    values = _read_json(folder / CONFIG)
    _refuse_other_heads(folder, values)
    config = from_hugging_face(values)
    if dropout is not None:
        config = replace(config, dropout=dropout)
    hashes = read_manifest(folder)
    for name, sha256 in hashes.items():
        if name.endswith((".json", ".txt")) and not name.startswith("train_state"):
            found = sha256_of(folder / name)
            if found != sha256:
                raise changed(folder / name, found, sha256)
    tokenizer = load_tokenizer(folder)
    if tokenizer.n_vocab > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.n_vocab} tokens, the model {config.vocab_size}",
            "they were not made for each other",
            "copy the tokenizer files that the model was trained with into the folder",
        )
    tensors = read_tensors(folder / WEIGHTS, hashes.get(WEIGHTS))
    n_classes = tensors[SCORE].shape[0] if SCORE in tensors else 0
    labels = _labels(folder, values, n_classes)
    model = empty_classifier(config, len(labels), attention)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    require_exactly(folder / WEIGHTS, _stored_shapes(config, len(labels)), shapes)
    model.load_state_dict({name: _turned(name, tensor) for name, tensor in tensors.items()}, assign=True)
    max_tokens = _max_tokens(folder, config.n_positions)
    return LoadedClassifier(model.eval(), tokenizer, labels, max_tokens, folder)


def _turned(name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.to(torch.float32)
    return tensor.T if name.endswith(TRANSPOSED) else tensor


def _stored_shapes(config: GPT2Config, n_classes: int) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(t.shape) for name, t in empty_classifier(config, n_classes).state_dict().items()}
    return {name: shape[::-1] if name.endswith(TRANSPOSED) else shape for name, shape in shapes.items()}


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
    limit = _read_json(path).get("model_max_length") if path.exists() else None
    return min(limit, context) if isinstance(limit, int) and limit > 0 else context


def _refuse_other_heads(folder: Path, values: dict[str, Any]) -> None:
    architecture = (values.get("architectures") or ["GPT2LMHeadModel"])[0]
    kind = values.get("problem_type") or "single_label_classification"
    if architecture != ARCHITECTURE:
        raise InputError(
            f"{folder}: holds a {architecture}, not a classifier",
            "it writes texts and knows no classes",
            f"make one of it: gpt2 finetune-classify spam init={folder}; or gpt2 generate --model {folder}",
        )
    if kind != "single_label_classification":
        raise InputError(f"{folder}: its problem_type is {kind!r}", "a text has one class here")


def _read_json(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        try:
            value = json.loads(file.read(1 << 24))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: is not valid JSON", str(error)) from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: is not a JSON object")
    return value
