"""config.json from any program: whether it describes a GPT-2 that can be read here.

Checked before weights are downloaded, and again when they are opened. Imports no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2cli.errors import InputError
from gpt2cli.json_files import read_json_object
from gpt2cli.model.config import GPT2Config, from_hugging_face

ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model")


def read_gpt2_config(path: Path, model: str) -> GPT2Config:
    """The config.json at `path`; errors call what it belongs to `model`.

    Raises InputError where it is damaged, or of another model than a GPT-2 that writes.
    """
    values = read_json_object(path)
    _require_language_model(model, values)
    return from_hugging_face(values)


def _require_language_model(model: str, values: Mapping[str, Any]) -> None:
    names = values.get("architectures") or [ARCHITECTURES[0]]
    if not isinstance(names, list) or not set(map(str, names)) & set(ARCHITECTURES):
        what = str(names[0] if isinstance(names, list) else names)[:80]
        raise InputError(
            f"{model}: holds a {what}, not a GPT-2 language model",
            "it has another head, which classifies texts and cannot generate"
            if what.startswith("GPT2")
            else "only GPT-2 can be read: GPT2LMHeadModel, or GPT2Model, its transformer body",
            "gpt2 download 124M",
        )
