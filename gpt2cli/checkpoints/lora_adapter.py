"""An adapter's folder: peft's two files, and which base model they belong to.

`adapter_config.json`, `adapter_model.safetensors` with peft's names and (rank, in), (out, rank)
matrices, tokenizer files, `recipe.yaml`, and `base.json`: where the base model was and the SHA-256
of its weights. Finding that model again, and merging the two, is `convert/merge_lora.py`'s.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from gpt2cli import paths
from gpt2cli.checkpoints.finite import require_finite
from gpt2cli.checkpoints.folder import RECIPE, TRANSPOSED, read_manifest, require_tensors, stored_shapes
from gpt2cli.checkpoints.peft_config import ADAPTER_CONFIG, PeftConfig, read_peft_config, write_peft_config
from gpt2cli.checkpoints.safetensors_bytes import changed
from gpt2cli.checkpoints.safetensors_file import read_tensors, write_tensors
from gpt2cli.errors import InputError, UsageError
from gpt2cli.files import sha256_of, write_file, write_json
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.lora import PARTS, correction, load_lora_state, lora_layers, lora_state
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.files import save_tokenizer

ADAPTER_WEIGHTS, BASE = "adapter_model.safetensors", "base.json"
_PREFIX = "base_model.model."  # peft's wrappers, which stand before each of its names


class LoraSettings(Protocol):
    """An adapter's numbers, as a recipe has them."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def targets(self) -> Collection[str]: ...


class AdapterBase(Protocol):
    """The model that an adapter is trained over; its folder is None for random weights."""

    @property
    def folder(self) -> Path | None: ...
    @property
    def sha256(self) -> str:
        """Of its weights' file."""

    @property
    def tokenizer(self) -> Tokenizer: ...


@dataclass(frozen=True)
class StoredAdapter:
    """What a folder holds. `tensors` are named as in `model.lora.adapter_state`, in fp32."""

    config: PeftConfig
    tensors: dict[str, Tensor]

    @property
    def matrices(self) -> list[str]:
        """Full names of the matrices that are corrected."""
        return list(dict.fromkeys(name.rpartition(".")[0] for name in self.tensors))

    def correction(self, matrix: str) -> Tensor:
        """What is added to a matrix, (out, in), in float64."""
        a, b = (self.tensors[f"{matrix}.{part}"] for part in PARTS)
        return correction(a, b, self.config.alpha / self.config.rank)


def write_adapter(
    folder: Path, model: nn.Module, lora: LoraSettings, base: AdapterBase, recipe: str
) -> dict[str, str]:
    """Write the adapters of a model into an existing folder; returns {file name: SHA-256}.

    The caller completes it, as with `folder.write_model`. Raises UsageError where the base is in
    no folder.
    """
    if base.folder is None:
        raise UsageError(
            "train: lora over random weights",
            "an adapter is stored without its base, and this base is in no folder",
            "train=all, or begin with a model: init=newest",
        )
    numbers = {(adapter.rank, adapter.alpha) for adapter in lora_layers(model).values()}
    assert numbers == {(lora.rank, lora.alpha)}, "these adapters were not made with these numbers"
    place = base.folder.resolve()
    write_peft_config(
        folder, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets, base=place
    )
    tensors = {f"{_PREFIX}{name}.weight": tensor for name, tensor in lora_state(model).items()}
    hashes = {ADAPTER_WEIGHTS: write_tensors(folder / ADAPTER_WEIGHTS, tensors, {"format": "pt"})}
    write_json(folder / BASE, {"path": str(place), "name": _name_of(place), "sha256": base.sha256})
    write_file(folder / RECIPE, recipe)
    names = [ADAPTER_CONFIG, BASE, RECIPE, *save_tokenizer(base.tokenizer, folder)]
    return hashes | {name: sha256_of(folder / name) for name in names}


def load_adapter(folder: Path, model: nn.Module) -> None:
    """Put a folder's tensors into a model that has such adapters, to train on.

    Raises InputError where the folder is damaged or its adapters are others.
    """
    stored = read_adapter(folder, model.config)  # type: ignore[arg-type]
    there = {name: (adapter.rank, adapter.alpha) for name, adapter in lora_layers(model).items()}
    saved = dict.fromkeys(stored.matrices, (stored.config.rank, stored.config.alpha))
    if there != saved:
        raise InputError(
            f"{folder}: its adapters are not those of this run",
            f"rank and alpha of each: {_summary(saved)} there, {_summary(there)} here",
            "undo the change in the recipe's lora, or start a new run with --name",
        )
    load_lora_state(model, stored.tensors)


def read_adapter(folder: Path, config: GPT2Config) -> StoredAdapter:
    """An adapter for a model of this config, from any program.

    Raises InputError where a file is damaged, the adapter is of a kind that is not known here, or
    its tensors are not those that the configuration speaks of.
    """
    hashes = checked_manifest(folder)
    peft, path = read_peft_config(folder), folder / ADAPTER_WEIGHTS
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise InputError(
            f"{folder}: there is no {ADAPTER_WEIGHTS}",
            "adapter_model.bin is a pickle, which can run any code when it is opened",
            "with peft: save_pretrained(FOLDER, safe_serialization=True)",
        )
    found = read_tensors(path, hashes.get(ADAPTER_WEIGHTS))
    shapes = _shapes(folder, peft, config, found)
    theirs = {name: f"{_PREFIX}{name}.weight" for name in shapes}
    require_tensors(
        path,
        {theirs[name]: shape for name, shape in shapes.items()},
        {name: tuple(tensor.shape) for name, tensor in found.items()},
    )
    tensors: dict[str, Tensor] = {}
    for name in shapes:
        tensor = found[theirs[name]]
        tensors[name] = tensor.to(torch.float32)
        broken = InputError(
            f"{path}: {theirs[name]} holds values that are not finite numbers",
            "a model with such an adapter computes nothing",
            "use another copy",
        )
        if not tensor.is_floating_point():
            raise broken
        require_finite(tensors[name], broken)
    return StoredAdapter(peft, tensors)


def checked_manifest(folder: Path) -> dict[str, str]:
    """{file name: SHA-256} of a folder of ours, whose small files are just that; else empty."""
    hashes = read_manifest(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE) if hashes else ():
        if name not in hashes:
            raise InputError(f"{folder}: its manifest does not list {name}", "it is not ours, or was edited")
        found = sha256_of(folder / name) if name != ADAPTER_WEIGHTS else hashes[name]
        if found != hashes[name]:
            raise changed(folder / name, found, hashes[name])
    return hashes


def _shapes(
    folder: Path, peft: PeftConfig, config: GPT2Config, found: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """{name as in `adapter_state`: shape} of the tensors that must be there."""
    matrices = {
        name.removesuffix(".weight"): shape  # (in, out)
        for name, shape in stored_shapes(config).items()
        if name.endswith(TRANSPOSED)
    }
    if peft.targets is None:
        begun = [
            matrix for matrix in matrices if any(name.startswith(f"{_PREFIX}{matrix}.") for name in found)
        ]
    else:
        begun = [matrix for matrix in matrices if peft.means(matrix)]
    if not begun:
        raise InputError(
            f"{folder / ADAPTER_CONFIG}: target_modules names no matrix of a GPT-2 block",
            "there are attn.c_attn, attn.c_proj, mlp.c_fc and mlp.c_proj",
        )
    smallest = min(min(matrices[name]) for name in begun)
    if peft.rank > smallest:
        raise InputError(f"{folder / ADAPTER_CONFIG}: r is {peft.rank}", f"a matrix has only {smallest} rows")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in begun:
        n_in, n_out = matrices[name]
        shapes |= {f"{name}.lora_A": (peft.rank, n_in), f"{name}.lora_B": (n_out, peft.rank)}
    return shapes


def _name_of(place: Path) -> str:
    """What `home.find_model` knows a folder by: its run's name, or its own."""
    return place.parent.parent.name if place.parent.name == paths.CHECKPOINTS else place.name


def _summary(numbers: Mapping[str, tuple[int, float]]) -> str:
    """The last names of the matrices with their numbers, each once."""
    short = {(name.split(".", 3)[3], *values) for name, values in numbers.items()}
    return "; ".join(f"{name} {rank}, {alpha:g}" for name, rank, alpha in sorted(short))
