"""adapter_config.json: writing peft's fields, and reading those that an adapter here can express.

peft has dozens of variants. An unknown field is accepted only where it is switched off: what it
would change is not computed here. The tensors are lora_adapter.py's.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.errors import InputError
from gpt2cli.files import write_json
from gpt2cli.json_files import read_json_object

ADAPTER_CONFIG = "adapter_config.json"
# These say how the adapter came about or is to be stored, not what it computes.
_WITHOUT_EFFECT = (
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "fan_in_fan_out", "inference_mode"),
    *("layers_pattern", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision"),
    "runtime_config",
)
_READ = ("peft_type", "task_type", "r", "lora_alpha", "target_modules", "use_rslora", "bias")
# Other initialisations change the base's own weights.
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal")


@dataclass(frozen=True)
class PeftConfig:
    """An adapter's numbers."""

    rank: int
    alpha: float  # the correction is scaled by alpha / rank
    targets: tuple[str, ...] | None  # ends of names; None where a pattern of peft's chose the matrices
    base: str  # a path or a name, as it was when the adapter was made; "" where it was not recorded

    def means(self, matrix: str) -> bool:
        """Whether a matrix of this name has an adapter, by peft's rule."""
        assert self.targets is not None
        return any(matrix == target or matrix.endswith(f".{target}") for target in self.targets)


def write_peft_config(
    folder: Path, *, rank: int, alpha: float, dropout: float, targets: Collection[str], base: Path
) -> None:
    """Write what `peft.PeftModel.from_pretrained` needs to open the folder over the model at `base`."""
    write_json(
        folder / ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "r": rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": dropout,
            "target_modules": list(targets),
            "fan_in_fan_out": True,  # GPT-2's matrices are (in, out) in transformers
            "bias": "none",
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
            "init_lora_weights": True,
            "inference_mode": True,
        },
    )


def read_peft_config(folder: Path) -> PeftConfig:
    """Raises InputError naming the field by which the adapter is another kind, or damaged."""
    path = folder / ADAPTER_CONFIG
    values = read_json_object(path)
    _require(path, values, "peft_type", ("LORA",), "only LoRA adapters can be read")
    _require(path, values, "task_type", ("CAUSAL_LM", None), "the adapter belongs to another head")
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
        if not known and value not in (None, False, [], {}, "", 0):
            raise InputError(
                f"{path}: {name} is {value!r}"[:300],
                "this adapter is not supported, and without it the model would compute something else",
                "with peft: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
                ".save_pretrained(FOLDER), then use FOLDER",
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
    return PeftConfig(rank, float(alpha), _targets(path, values.get("target_modules")), base or "")  # type: ignore[arg-type]


def _targets(path: Path, value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str) and value:
        # A regular expression. It is not run: a hostile one can run for ever. Which
        # matrices it chose shows in the tensors.
        return None
    if isinstance(value, list) and value and all(isinstance(name, str) and name for name in value):
        return tuple(value)
    raise InputError(f"{path}: target_modules is {value!r}"[:300], "names of matrices are needed")


def _require(path: Path, values: dict[str, Any], name: str, allowed: tuple[object, ...], why: str) -> None:
    value = values.get(name)
    if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
        wanted = ", ".join(json.dumps(one) for one in allowed if one is not None)
        raise InputError(f"{path}: {name} is {value!r}"[:300], f"{why}; known is {wanted}")
