"""An adapter merged into its base: finding the base, checking that it is the right one, adding.

An adapter's folder does not contain the base weights, only their path and hash: another model under
the same name would give other logits without any error.
"""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2cli import paths
from gpt2cli.checkpoints.finite import require_finite
from gpt2cli.checkpoints.folder import (
    RECIPE,
    WEIGHTS,
    LoadedModel,
    load_model,
    read_config,
    read_manifest,
    verify_texts,
)
from gpt2cli.checkpoints.lora_adapter import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    BASE_FORMAT,
    LANGUAGE_MODEL,
    StoredAdapter,
    read_adapter,
    read_peft_config,
)
from gpt2cli.convert.foreign_model import ForeignModel, ForeignTensor, RawTensors
from gpt2cli.convert.hf_folder import open_hugging_face
from gpt2cli.convert.torch_file import floating_tensors, read_torch_file, require_table
from gpt2cli.errors import InputError
from gpt2cli.files import sha256_of
from gpt2cli.json_files import read_own_json
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.lora import PARTS
from gpt2cli.paths import BASE


def load_merged(
    base: Path,
    adapters: Sequence[Path],
    *,
    attention: str = "sdpa",
    remembered: bool = False,
) -> LoadedModel:
    """The model at `base` with the sum of the adapters' corrections added into its weights: a plain
    model, as `load_model` gives it.

    Raises InputError if an adapter is damaged, of another kind, or over another base.
    """
    config = read_config(base)
    stored = []
    for folder in adapters:  # before the large file is read
        _require_base(folder, base)
        stored.append(_stored(folder, config))
    loaded = load_model(base, attention=attention, remembered=remembered)
    for matrix in dict.fromkeys(matrix for one in stored for matrix in one.matrices):
        weight = loaded.model.get_parameter(f"{matrix}.weight")
        added = sum(one.correction(matrix) for one in stored if matrix in one.matrices)
        with torch.no_grad():
            weight.copy_(weight.double() + added)  # rounded once
        too_large = InputError(
            f"{' + '.join(map(str, adapters))}: added to the base, {matrix} is beyond the range of fp32",
            "values this large come from diverged training or a damaged file",
            "use another checkpoint",
        )
        require_finite(weight, too_large)
    return loaded


def _require_base(folder: Path, base: Path) -> None:
    """Raise InputError unless the adapter was trained over the weights at `base`.

    peft records no hash: the base that it names must be this one, if it is here at all.
    """
    _, _, wanted = _recorded_base(folder)
    named = _model_called(read_peft_config(folder).base) if wanted is None else None
    if named is not None and not paths.is_adapter(named):
        if named == base:
            return
        wanted = _weights_of(named)
    if wanted is not None and wanted != (found := _weights_of(base)):
        where = f", as {named} has" if named else ""
        raise InputError(
            f"{folder}: was trained over another base than {base}",
            f"over weights with SHA-256 {str(wanted)[:16]}...{where}; here they have {found[:16]}...",
            "leave out --model, which takes the adapter's own base; several adapters need the same base",
        )


def _stored(folder: Path, config: GPT2Config) -> StoredAdapter:
    """An adapter in either of peft's files."""
    path = folder / ADAPTER_PICKLE
    if (folder / ADAPTER_WEIGHTS).exists() or not path.exists():
        return read_adapter(folder, config)
    state = require_table(path, read_torch_file(path))
    return read_adapter(folder, config, floating_tensors(path, state))


def find_base(folder: Path, kind: str = LANGUAGE_MODEL) -> Path:
    """The folder of an adapter's base model: its recorded path, or a model of its name. `kind` as in
    `read_peft_config`.

    Raises InputError if there is none, or it has other weights.
    """
    verify_texts(folder)
    asked, names = read_peft_config(folder, kind).base, list[str]()
    path, name, wanted = _recorded_base(folder)
    if wanted is not None:
        asked, names = path, [name]
    others = []
    places = [place for name in dict.fromkeys([asked, *names]) if (place := _model_called(name))]
    for place in places:
        if paths.is_adapter(place):
            raise InputError(
                f"{folder}: its base model, {place}, is an adapter itself",
                "an adapter is added to a whole model",
                f"gpt2 convert {place} --merge",
            )
        if wanted is None:
            return place  # peft records no hash
        if (found := _weights_of(place)) == wanted:
            return place
        others.append(f"{place} has {found[:16]}...")
    for place in (Path(asked), *places):  # another checkpoint of the same run, perhaps put aside
        if place.parent.name == paths.CHECKPOINTS and place.parent.is_dir():
            for sibling in sorted(place.parent.iterdir()):
                with suppress(InputError):  # a damaged one
                    if wanted and read_manifest(sibling).get(WEIGHTS) == wanted:
                        return sibling
    if others:
        raise InputError(
            f"{folder}: the base model of this adapter has changed",
            f"its weights had SHA-256 {str(wanted)[:16]}...; {', '.join(others)}",
            _trained_again(folder, places[0]) or f"put the old weights back at {asked}",
        )
    name = names[0] if names else asked
    size = paths.canonical_size(name)
    new_place = asked if os.path.isabs(name) else paths.model_path(name or "NAME")
    raise InputError(
        f"{folder}: the base model of this adapter is not here",
        f"it was {asked}" if asked else f"{ADAPTER_CONFIG} names none in base_model_name_or_path",
        f"gpt2 download {size}" if size else f"put its folder at {new_place}",
    )


@contextmanager
def open_adapter(folder: Path) -> Iterator[ForeignModel]:
    """The base with the adapter added, as a source to convert: one tensor at a time is in memory."""
    with open_hugging_face(find_base(folder)) as base:
        yield merged_source(folder, base)


def merged_source(folder: Path, base: ForeignModel) -> ForeignModel:
    """`base` with the adapter added to its tensors.

    `raw` is merged too, by NumPy from the same two factors, so that the verification compares two
    independent merges.
    """
    stored = _stored(folder, base.config)
    weights = {f"{matrix}.weight": matrix for matrix in stored.matrices}

    def load(tensor: ForeignTensor, matrix: str) -> Tensor:
        return (tensor.load().double() + stored.correction(matrix).T).float()

    def read(name: str) -> NDArray[np.floating]:
        array = base.raw[name]
        return array + _product(stored, corrected[name]) if name in corrected else array

    corrected = {base.tensors[name].source: matrix for name, matrix in weights.items()}
    tensors = {
        name: replace(tensor, load=partial(load, tensor, weights[name])) if name in weights else tensor
        for name, tensor in base.tensors.items()
    }
    peft = stored.config
    note = f"{folder}: rank {peft.rank}, alpha {peft.alpha:g}, added to {len(weights)} matrices"
    names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE, BASE)
    own = [folder / name for name in names if (folder / name).exists()]
    return replace(
        base,
        path=folder,
        format="huggingface",  # how `raw` is spelled
        tensors=tensors,
        raw=RawTensors(list(base.raw), read),
        files=(*base.files, *own),
        notes=(*base.notes, note),
    )


def _product(stored: StoredAdapter, matrix: str) -> NDArray[np.float64]:
    """The correction in Hugging Face's layout, (in, out): A^T B^T * alpha / rank."""
    a, b = (stored.tensors[f"{matrix}.{part}"].numpy().astype(np.float64) for part in PARTS)
    return a.T @ b.T * (stored.config.alpha / stored.config.rank)


def _recorded_base(folder: Path) -> tuple[str, str, str | None]:
    """Path, name and SHA-256 of the base in base.json; the last is None without that file."""
    if not (folder / BASE).exists():
        return "", "", None
    record = read_own_json(folder / BASE, BASE_FORMAT, is_numbered=False)
    path, name, wanted = (record.get(key) for key in ("path", "name", "sha256"))
    if not (isinstance(path, str) and isinstance(name, str) and isinstance(wanted, str)):
        raise InputError(f"{folder / BASE}: path, name and sha256 are needed, each a string")
    return path, name, wanted


def _weights_of(base: Path) -> str:
    return read_manifest(base).get(WEIGHTS) or sha256_of(base / WEIGHTS)


def _trained_again(folder: Path, base: Path) -> str:
    """The command that trains such an adapter over other weights; "" without its recipe."""
    recipe = folder / RECIPE
    text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
    if (task := re.search(r"^task: ([\w-]+)$", text, re.MULTILINE)) is None:
        return ""
    name = folder.parent.parent.name if folder.parent.name == paths.CHECKPOINTS else folder.name
    words = ["gpt2", task[1], str(recipe), f"init={base}", "--name", f"{name}-again"]
    return f"train it again over these: {shlex.join(words)}"


def _model_called(name: str) -> Path | None:
    try:
        return paths.find_model(name)
    except InputError:
        return None
