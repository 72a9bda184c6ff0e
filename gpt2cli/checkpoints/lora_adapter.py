"""A LoRA adapter's folder: peft's two files, and the base model that they belong to.

`adapter_config.json`, `adapter_model.safetensors` with peft's names and (rank, in), (out, rank)
matrices, tokenizer files, `recipe.yaml`, and `base.json`: where the base model was and the SHA-256
of its weights. `convert/merge_lora.py` finds that model again and merges the two.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2cli import paths
from gpt2cli.checkpoints.finite import require_finite
from gpt2cli.checkpoints.folder import RECIPE, TRANSPOSED, require_tensors, stored_shapes, verify_texts
from gpt2cli.checkpoints.safetensors_file import read_tensors, write_tensors
from gpt2cli.errors import InputError, UsageError
from gpt2cli.files import sha256_of, write_file, write_json
from gpt2cli.json_files import read_json_object
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.lora import PARTS, correction, load_lora_state, lora_layers, lora_state
from gpt2cli.paths import BASE
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.files import save_generation_config, save_tokenizer

ADAPTER_WEIGHTS, ADAPTER_PICKLE = "adapter_model.safetensors", "adapter_model.bin"
BASE_FORMAT = 1  # of base.json, which had no number at first
ADAPTER_CONFIG = "adapter_config.json"
# These say how the adapter came about or is to be stored, not what it computes.
_WITHOUT_EFFECT = (
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "fan_in_fan_out", "inference_mode"),
    *("lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision"),
    "runtime_config",
)
_READ = (
    *("peft_type", "task_type", "r", "lora_alpha", "target_modules", "use_rslora", "bias"),
    *("layers_to_transform", "layers_pattern"),
)
# Other initialisations change the base's own weights.
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal")
_MERGE = (
    "with peft: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(FOLDER), then use"
    " FOLDER"
)
# An embedding or output layer among an adapter's tensors: peft stores them whole where tokens were added.
_EMBEDDING = re.compile(r"\b(wte|wpe|lm_head|embed_tokens)\.(?!.*lora_)")
LANGUAGE_MODEL, CLASSIFIER, SCORE = "CAUSAL_LM", "SEQ_CLS", "score.weight"  # peft's task types; a head
_PREFIX = "base_model.model."  # peft's wrappers, which stand before each of its names


@dataclass(frozen=True)
class PeftConfig:
    """An adapter's numbers."""

    rank: int
    alpha: float  # the correction is scaled by alpha / rank
    targets: tuple[str, ...] | None  # ends of names; None where a pattern of peft's chose the matrices
    base: str  # a path or a name, as it was when the adapter was made; "" where it was not recorded
    layers: tuple[int, ...] | None = None  # blocks with an adapter; None: all

    def means(self, matrix: str) -> bool:
        """Whether a matrix of this name has an adapter, by peft's rule."""
        assert self.targets is not None
        # The block's number is the third word: transformer.h.3.attn.c_attn.
        if self.layers is not None and int(matrix.split(".")[2]) not in self.layers:
            return False
        return any(matrix == target or matrix.endswith(f".{target}") for target in self.targets)


@dataclass(frozen=True)
class StoredAdapter:
    """The content of a folder. `tensors` are named as in `model.lora.lora_state`, in fp32."""

    config: PeftConfig
    tensors: dict[str, Tensor]

    @property
    def matrices(self) -> list[str]:
        """Full names of the matrices with an adapter."""
        return list(dict.fromkeys(name.rpartition(".")[0] for name in self.tensors))

    def correction(self, matrix: str) -> Tensor:
        """The matrix to add to a weight, (out, in), in float64."""
        a, b = (self.tensors[f"{matrix}.{part}"] for part in PARTS)
        return correction(a, b, self.config.alpha / self.config.rank)


def write_adapter(
    folder: Path,
    model: nn.Module,
    *,
    dropout: float,
    targets: Collection[str],
    base: Path | None,
    base_sha256: str,
    tokenizer: Tokenizer,
    recipe: str,
) -> dict[str, str]:
    """Write the adapters of a language model into an existing folder, with what else a model folder has;
    returns {file name: SHA-256}. The caller completes it, as with `folder.write_model`.

    Raises UsageError as `write_peft`.
    """
    hashes = write_peft(folder, model, dropout=dropout, targets=targets, base=base, base_sha256=base_sha256)
    write_file(folder / RECIPE, recipe)
    names = [RECIPE, *save_tokenizer(tokenizer, folder), save_generation_config(tokenizer, folder)]
    return hashes | {name: sha256_of(folder / name) for name in names}


def write_peft(
    folder: Path,
    model: nn.Module,
    *,
    dropout: float,
    targets: Collection[str],
    base: Path | None,
    base_sha256: str,
) -> dict[str, str]:
    """Write the adapters of a model into an existing folder, as `peft.PeftModel.from_pretrained` opens
    them over the model at `base`, whose weights have that hash; returns {file name: SHA-256}.

    A classifier's head goes with them. Raises UsageError if the base is in no folder.
    """
    if base is None:
        raise UsageError(
            "train: lora over random weights",
            "an adapter is stored without its base, and this base is in no folder",
            "train=all, or begin with a model: init=newest",
        )
    ((rank, alpha),) = {(adapter.rank, adapter.alpha) for adapter in lora_layers(model).values()}
    base = base.resolve()
    head = {name: p.detach() for name, p in model.named_parameters() if name == SCORE}
    tensors = {f"{_PREFIX}{name}.weight": tensor for name, tensor in lora_state(model).items()}
    tensors |= {f"{_PREFIX}{name}": tensor for name, tensor in head.items()}
    hashes = {ADAPTER_WEIGHTS: write_tensors(folder / ADAPTER_WEIGHTS, tensors, {"format": "pt"})}
    write_json(
        folder / ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": CLASSIFIER if head else LANGUAGE_MODEL,
            "base_model_name_or_path": str(base),
            "r": rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": dropout,
            "target_modules": list(targets),
            "fan_in_fan_out": True,  # GPT-2's matrices are (in, out) in transformers
            "bias": "none",
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": ["score"] if head else None,
            "init_lora_weights": True,
            "inference_mode": True,
        },
    )
    # `paths.find_model` knows a checkpoint by its run's name, any other folder by its own.
    name = base.parent.parent.name if base.parent.name == paths.CHECKPOINTS else base.name
    record = {"format": BASE_FORMAT, "path": str(base), "name": name, "sha256": base_sha256}
    write_json(folder / BASE, record)
    return hashes | {name: sha256_of(folder / name) for name in (ADAPTER_CONFIG, BASE)}


def read_classifier_adapter(folder: Path, sha256: str | None) -> dict[str, Tensor]:
    """The adapters and the head that `write_peft` stored, by a classifier's own names."""
    tensors = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in read_tensors(folder / ADAPTER_WEIGHTS, sha256).items()
    }
    return {name if name == SCORE else name.removesuffix(".weight"): t for name, t in tensors.items()}


def load_adapter(folder: Path, model: nn.Module) -> None:
    """Put a folder's tensors into a model that has such adapters, to train on.

    Raises InputError if the folder is damaged or its adapters are others.
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


def read_adapter(
    folder: Path, config: GPT2Config, pickled: Mapping[str, Tensor] | None = None
) -> StoredAdapter:
    """An adapter for a model of this config, from any program. `pickled` is the content of its
    ADAPTER_PICKLE, where it has no other weights.

    Raises InputError if a file is damaged, the adapter is of an unsupported kind, or its tensors do
    not match the configuration.
    """
    hashes = verify_texts(folder)
    peft, path = read_peft_config(folder), folder / (ADAPTER_WEIGHTS if pickled is None else ADAPTER_PICKLE)
    found = read_tensors(path, hashes.get(ADAPTER_WEIGHTS)) if pickled is None else pickled
    for name, tensor in found.items():
        if (layer := _EMBEDDING.search(name)) is not None:
            raise InputError(
                f"{path}: holds {layer[1]}.weight {list(tensor.shape)} beside its adapters",
                f"the embedding was trained too, or resized for new tokens: the base has {config.vocab_size}",
                _MERGE,
            )
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


def read_peft_config(folder: Path, kind: str = LANGUAGE_MODEL) -> PeftConfig:
    """`kind` is the model that the adapter is for, LANGUAGE_MODEL or CLASSIFIER.

    Raises InputError naming the field that is damaged or makes the adapter an unsupported kind.
    """
    path = folder / ADAPTER_CONFIG
    values = read_json_object(path)
    _require(path, values, "peft_type", ("LORA",), "only LoRA adapters can be read")
    _require(path, values, "task_type", (kind, None), "the adapter belongs to another head")
    _require(path, values, "bias", ("none", None), "biases were trained too, which is not supported")
    _require(
        path,
        values,
        "init_lora_weights",
        _INITIALISATIONS,
        "such an adapter changes the base model's own weights as well",
    )
    for name, value in values.items():
        known = name in _READ or name in _WITHOUT_EFFECT or name == "init_lora_weights"
        if kind == CLASSIFIER and name == "modules_to_save":
            continue
        if name == "modules_to_save" and value:
            raise InputError(
                f"{path}: {name} is {value!r}"[:300],
                "these layers were trained whole beside the adapters, which is not supported",
                _MERGE,
            )
        if not known and value not in (None, False, [], {}, "", 0):
            raise InputError(
                f"{path}: {name} is {value!r}"[:300],
                "this adapter is not supported, and without it the model would compute something else",
                _MERGE,
            )
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise InputError(f"{path}: r is {rank!r}"[:300], "the rank, a whole number from 1, is needed")
    if type(alpha) not in (int, float) or not abs(alpha) <= 1e9:  # type: ignore[arg-type]
        raise InputError(f"{path}: lora_alpha is {alpha!r}"[:300], "a number is needed")
    _require(path, values, "use_rslora", (True, False, None), "true or false is needed")
    if values.get("use_rslora"):  # Kalajdzievski 2023: scaled by alpha / sqrt(rank)
        alpha = alpha * math.sqrt(rank)  # type: ignore[operator]
    base = values.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise InputError(f"{path}: base_model_name_or_path is {base!r}"[:300], "a name or a path is needed")
    targets, layers = _targets(path, values.get("target_modules")), _layers(path, values)
    return PeftConfig(rank, float(alpha), targets, base or "", layers)  # type: ignore[arg-type]


def _shapes(
    folder: Path, peft: PeftConfig, config: GPT2Config, found: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """{name as in `lora_state`: shape} of the required tensors."""
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
            f"{folder / ADAPTER_CONFIG}: target_modules names no matrix of a GPT-2 block"
            + (f" in layers_to_transform {list(peft.layers)}" if peft.layers is not None else ""),
            f"blocks 0 to {config.n_layer - 1} have attn.c_attn, attn.c_proj, mlp.c_fc and mlp.c_proj",
        )
    smallest = min(min(matrices[name]) for name in begun)
    if peft.rank > smallest:
        raise InputError(f"{folder / ADAPTER_CONFIG}: r is {peft.rank}", f"a matrix has only {smallest} rows")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in begun:
        n_in, n_out = matrices[name]
        shapes |= {f"{name}.lora_A": (peft.rank, n_in), f"{name}.lora_B": (n_out, peft.rank)}
    return shapes


def _summary(numbers: Mapping[str, tuple[int, float]]) -> str:
    """The last names of the matrices with their numbers, each once."""
    short = {(name.split(".", 3)[3], *values) for name, values in numbers.items()}
    return "; ".join(f"{name} {rank}, {alpha:g}" for name, rank, alpha in sorted(short))


def _targets(path: Path, value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str) and value:
        # A regular expression. It is not run: a hostile one can run for ever. Which
        # matrices it chose shows in the tensors.
        return None
    if isinstance(value, list) and value and all(isinstance(name, str) and name for name in value):
        return tuple(value)
    raise InputError(f"{path}: target_modules is {value!r}"[:300], "names of matrices are needed")


def _layers(path: Path, values: dict[str, Any]) -> tuple[int, ...] | None:
    """The blocks with an adapter. peft takes one number or a list; an empty one means all."""
    value, pattern = values.get("layers_to_transform"), values.get("layers_pattern")
    numbers = value if isinstance(value, list) else [value]
    if value is None or not numbers:
        return None
    if not all(type(number) is int for number in numbers):
        raise InputError(
            f"{path}: layers_to_transform is {value!r}"[:300], "numbers of blocks from 0 are needed"
        )
    if pattern and pattern != "h" and pattern != ["h"]:
        raise InputError(
            f"{path}: layers_pattern is {pattern!r}"[:300], "the blocks of a GPT-2 are h.0, h.1, ..."
        )
    return tuple(numbers)


def _require(path: Path, values: dict[str, Any], name: str, allowed: tuple[object, ...], why: str) -> None:
    value = values.get(name)
    if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
        wanted = ", ".join(json.dumps(one) for one in allowed if one is not None)
        raise InputError(f"{path}: {name} is {value!r}"[:300], f"{why}; known is {wanted}")
