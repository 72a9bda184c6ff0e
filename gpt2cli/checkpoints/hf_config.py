"""The config.json of any program, checked: does it describe a GPT-2 that gpt2cli supports?

Checked before weights are downloaded, and again when they are opened. Imports no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2cli.errors import InputError, at_place
from gpt2cli.json_files import read_json_object
from gpt2cli.model.config import LANGUAGE_MODELS, GPT2Config, from_hugging_face, score_scales

# Hugging Face's names of the model, of the model without its output layer, of the text classifier.
LANGUAGE_MODEL, TRANSFORMER_BODY = LANGUAGE_MODELS["learned"], "GPT2Model"
CLASSIFIER = "GPT2ForSequenceClassification"
# Of language models with a second head, which a conversion leaves out: transformers', and trl's.
TWO_HEADS = ("GPT2DoubleHeadsModel", "AutoModelForCausalLMWithValueHead")


def read_gpt2_config(path: Path, model: Path | str, *, to_convert: bool = False) -> GPT2Config:
    """The config.json at `path`; errors call what it belongs to `model`.

    `to_convert` also accepts what a conversion turns into a GPT-2 that writes. Raises InputError if it
    is damaged, or describes another model.
    """
    values = read_json_object(path)
    require_language_model(model, values, to_convert=to_convert)
    if values.get("quantization_config"):
        raise InputError(
            f"{model}: its weights are quantised",
            "config.json has a quantization_config; floating-point numbers are needed",
            "use the model that it was made from",
        )
    with at_place(model):
        config = from_hugging_face(values, to_convert=True)
    if score_scales(values, config) and not to_convert:
        raise InputError(
            f"{model}: its attention scores are scaled otherwise than GPT-2's",
            "config.json says so; a conversion multiplies the factors into the weights",
            f"gpt2 convert {model}",
        )
    return config


def require_language_model(
    folder: Path | str, config: Mapping[str, Any], *, to_convert: bool = False
) -> None:
    """The `config` of a folder describes a GPT-2 language model; `to_convert`: or one without its output
    layer, which may be the embedding, or with a second head. Raises InputError that says which command
    takes the folder.
    """
    named = config.get("architectures") or [LANGUAGE_MODEL]
    whole = tuple(LANGUAGE_MODELS.values())
    accepted = (*whole, TRANSFORMER_BODY, *TWO_HEADS) if to_convert else whole
    if isinstance(named, list) and any(name in accepted for name in named):
        return
    what = str(named[0] if isinstance(named, list) else named)[:80]
    wrong = "not a language model" if what.startswith("GPT2") else "not a GPT-2 language model"
    fix = "gpt2 download 124M"
    if what == CLASSIFIER:
        why = "it classifies texts and has no output layer to generate with"
        fix = f"gpt2 classify {folder} TEXT; or gpt2 generate --model <a pretrained run or folder>"
    elif what == TRANSFORMER_BODY:
        why = "it is a transformer body, which generates once the embedding is its output layer too"
        fix = f"gpt2 convert {folder}"
    elif what in TWO_HEADS:
        why = "it has a second head, which a conversion leaves out"
        fix = f"gpt2 convert {folder}"
    elif what.startswith("GPT2"):
        why = "it has another head, which classifies texts and cannot generate"
    else:
        why = f"only GPT-2 can be read: {LANGUAGE_MODEL}, or {TRANSFORMER_BODY}, its body"
    raise InputError(f"{folder}: holds a {what}, {wrong}", why, fix)
